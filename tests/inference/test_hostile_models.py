"""Models that are damaged, mixed up or ill-meant: an error that names the file, and no more."""

import pickle
import re
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from tiny import EXAMPLE, FILES

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.inference.transcribe import load_model


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan(path):
    state = torch.load(path, weights_only=True)
    next(iter(state.values())).view(-1)[0] = float("nan")
    torch.save(state, path)


def of_another_model(path):
    torch.save({"weight": torch.zeros(3)}, path)


def payload(path):
    path.write_bytes(pickle.dumps({"weight": Payload(path.with_name("run"))}))


def zipped_payload(path):
    torch.save({"weight": Payload(path.with_name("run"))}, path)


def other_tokenizer(path):
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["A B C D E"]),
            model_writer=file,
            vocab_size=9,
            model_type="char",
            bos_id=1,
            eos_id=2,
            unk_id=0,
            minloglevel=2,
        )


def tabs(path):
    path.write_text(path.read_text().replace("  sample_rate", "\tsample_rate", 1))


def latin1(path):
    path.write_bytes(b"# caf\xe9\n" + path.read_bytes())


def absent_class(path):
    path.write_text(path.read_text().replace("frontend.KaldiFbank", "frontend.Nothing"))


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("model.ckpt", truncated, "model.ckpt: cannot be loaded as weights"),
        ("model.ckpt", nan, "has values that are NaN or infinite"),
        ("model.ckpt", of_another_model, "holds the weights of another model"),
        ("model.ckpt", payload, "holds more than weights, which could run anything"),
        ("model.ckpt", zipped_payload, "holds more than weights, which could run anything"),
        ("normalizer.ckpt", truncated, "cannot be loaded"),
        ("normalizer.ckpt", zipped_payload, "cannot be loaded"),
        ("tokenizer.ckpt", truncated, "tokenizer.ckpt: is no sentencepiece model"),
        ("tokenizer.ckpt", other_tokenizer, "has 9 tokens, but the model's outputs are 80"),
        ("hyperparams.yaml", tabs, "cannot be loaded"),
        ("hyperparams.yaml", truncated, "cannot be loaded"),
        ("hyperparams.yaml", latin1, "hyperparams.yaml: is no UTF-8 text"),
        ("hyperparams.yaml", absent_class, "cannot be loaded .*Nothing"),
    ],
)
def test_a_bad_model_is_named_and_runs_nothing(tmp_path, capfd, name, damage, message):
    folder = tmp_path / "model"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("config.json"))  # the sums
    damage(folder / name)
    assert cli.main(["transcribe", "--device=cpu", str(folder), FILES[0]]) == 1
    told = capfd.readouterr().err
    assert "error: " in told and "Traceback" not in told and "weights_only" not in told
    line = next(line for line in told.splitlines() if line.startswith("error: "))
    assert re.search(message, line) and str(folder) in line
    assert not (folder / "run").exists()


def test_all_that_the_search_needs_goes_to_the_models_device():
    model = load_model(EXAMPLE, "cpu")
    model.mods.to("meta")
    for head in (model.hparams.ctc_lin, model.hparams.seq_lin):
        assert all(p.device.type == "meta" for p in head.parameters())
