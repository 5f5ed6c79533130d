import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from speechbrain.inference.ASR import EncoderDecoderASR
from tiny import ROOT

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import locked
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.tasks import recognition
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import curves, experiment, loggers


@pytest.fixture(scope="module")
def trained(command, tmp_path_factory):
    """The output folder of a finished small training."""
    folder = tmp_path_factory.mktemp("trained") / "out"
    experiment.run(command(folder), ASR)
    return folder


def manifest(folder, split="test"):
    with open(folder / f"{split}.csv", newline="") as file:
        return {row["ID"]: row for row in csv.DictReader(file)}


def hypotheses(folder, name="test"):
    """From each ID to the words of the test pass, out of its alignment file."""
    words = {}
    for block in (folder / f"wer_{name}.txt").read_text().split("=" * 80):
        lines = block.strip().splitlines()
        if lines and ", %WER" in lines[0]:
            key = lines[0].split(",")[0]
            hypothesis = lines[3] if len(lines) > 3 else ""
            words[key] = [
                w.strip() for w in hypothesis.split(";") if w.strip() not in ("", "<eps>")
            ]
    return words


def test_a_run_leaves_everything_it_promises(trained, noises):
    results = json.loads((trained / "results.json").read_text())
    assert set(results["test"]) == {"test"}
    test = results["test"]["test"]
    low, high = test["WER_95"]
    assert low <= test["WER"] <= high and test["utterances"] == 6
    assert sum(c["utterances"] for c in test["WER_by_seconds"].values()) == 6
    assert results["parameters"] > 1000 and results["train_seconds"] > 0
    history = curves.read(trained)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert results["optimizer_steps"] == int(history[-1]["steps"])
    with open(trained / "errors_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["ID"] for row in rows} == set(manifest(noises)) and len(rows) == 6
    wrong, words = (sum(int(row[column]) for row in rows) for column in ("errors", "total"))
    assert test["WER"] == pytest.approx(100 * wrong / words)
    for name in ("curves.png", "wer_test.txt", "train_log.txt", "log.txt", "hyperparams.yaml"):
        assert (trained / name).stat().st_size > 0, name
    assert sorted(p.name for p in (trained / "pretrained").iterdir()) == [
        *("README.md", "config.json", "hyperparams.yaml"),
        *("model.ckpt", "normalizer.ckpt", "tokenizer.ckpt"),
    ]
    told = json.loads((trained / "pretrained/config.json").read_text())
    assert told["versions"]["speechbrain"] and "commit" in told
    assert told["sha256"].keys() == {
        *("hyperparams.yaml", "model.ckpt", "normalizer.ckpt", "tokenizer.ckpt")
    }


def test_speechbrain_loads_the_export_and_says_the_words_of_the_test_pass(trained, noises):
    model = EncoderDecoderASR.from_hparams(source=str(trained / "pretrained"))
    said = hypotheses(trained)
    rows = manifest(noises)
    assert set(said) == set(rows)
    for key, row in rows.items():
        assert model.transcribe_file(row["wav"]).split() == said[key]
    together = transcribe(load_model(trained / "pretrained"), [r["wav"] for r in rows.values()])
    assert [t.text.split() for t in together] == [said[key] for key in rows]


def test_a_wrong_weight_file_is_refused(trained, tmp_path):
    folder = tmp_path / "pretrained"
    shutil.copytree(trained / "pretrained", folder)
    state = torch.load(folder / "model.ckpt")
    state["0.unknown"] = state.pop(next(iter(state)))
    torch.save(state, folder / "model.ckpt")
    with pytest.raises(UserError, match="0.unknown"):
        EncoderDecoderASR.from_hparams(source=str(folder))


def test_test_only_gives_the_same_again(trained, command, capsys):
    before = json.loads((trained / "results.json").read_text())["test"]
    (trained / "results.json").unlink()
    experiment.run([*command(trained), "--test_only"], ASR)
    assert json.loads((trained / "results.json").read_text())["test"] == before


@pytest.mark.parametrize(
    "options, message",
    [
        ({"lr": "fast"}, "--lr is 'fast', but must be a number"),
        ({"grad_accumulation_factor": 0}, "--grad_accumulation_factor is 0, but must be 1 or more"),
        ({"eval_precision": "fp16"}, "--eval_precision is fp16, which .* --eval_precision bf16"),
        ({"token_type": "words"}, "token_type is 'words', but must be one of bpe, unigram, char"),
        ({"error_unit": "letter"}, "error_unit is 'letter', but must be word or character"),
    ],
)
def test_values_that_no_run_can_have(train, options, message):
    with pytest.raises(SystemExit, match=message):
        train(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(command, tmp_path):
    arguments = [a for a in command(tmp_path) if a != "--device=cpu"]
    with pytest.raises(SystemExit, match="--device is cuda, but torch finds no GPU: leave it out"):
        experiment.run([*arguments, "--device=cuda"], ASR)


def test_each_process_takes_its_own_gpu(command, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(experiment, "infer_device", lambda: "cuda:1")  # by LOCAL_RANK
    for given, taken in (("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")):
        arguments = [a for a in command(tmp_path) if a != "--device=cpu"]
        _, run_opts = experiment.start([*arguments, f"--device={given}"])
        assert run_opts["device"] == taken
    with pytest.raises(SystemExit, match="--device is cuda:2, but torch finds 2 GPUs: give one"):
        experiment.run([*arguments, "--device=cuda:2"], ASR)


def test_test_only_without_training_says_so(train):
    with pytest.raises(SystemExit, match="nothing to test: train first"):
        train(test_only=True)


def test_other_settings_in_the_same_folder_are_refused(trained, command):
    with pytest.raises(SystemExit) as error:
        experiment.run(command(trained, lr=0.5, dropout=0.3), ASR)
    assert re.search(r"lr.*0\.002.*0\.5", str(error.value))
    assert "dropout" in str(error.value)


def test_unknown_option_and_missing_csv(train, tmp_path):
    with pytest.raises(SystemExit, match="--learning_rate: no such option"):
        train(learning_rate=1)
    with pytest.raises(SystemExit, match="--ctc_weight is 0, but must be above 0"):
        train(ctc_weight=0)
    with pytest.raises(SystemExit, match="give all three"):
        train(valid_csv="null")
    with pytest.raises(SystemExit, match="absent.csv"):
        train(valid_csv=tmp_path / "absent.csv")
    with pytest.raises(SystemExit, match="--corpus is timit, but must be one of"):
        train(corpus="timit", train_csv="null", valid_csv="null", test_csv="null")


def test_a_nan_loss_stops_with_the_ids_and_spoils_no_weight(train, monkeypatch):
    seen = {}
    original = recognition.ASR.compute_objectives

    def poisoned(self, predictions, batch, stage):
        loss = original(self, predictions, batch, stage)
        if self.optimizer_step == 2:
            seen.update(ids=batch.id, brain=self)
            return loss * float("nan")
        return loss

    monkeypatch.setattr(recognition.ASR, "compute_objectives", poisoned)
    with pytest.raises(SystemExit) as error:
        train()
    assert all(key in str(error.value) for key in seen["ids"])
    assert "the loss is nan" in str(error.value)
    assert all(p.isfinite().all() for p in seen["brain"].hparams.model.parameters())


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_saves_says_how_to_resume_and_loses_no_step(
    train, monkeypatch, trained, number, capsys
):
    original = recognition.ASR.fit_batch

    def interrupted(self, batch):
        if self.optimizer_step == 3:
            os.kill(os.getpid(), number)
        return original(self, batch)

    monkeypatch.setattr(recognition.ASR, "fit_batch", interrupted)
    with pytest.raises(SystemExit) as stop:
        train()
    assert stop.value.code == 128 + number
    told = capsys.readouterr().err
    assert "error:" not in told
    assert re.search("after optimiser step 4.*The same command goes on", told)
    monkeypatch.setattr(recognition.ASR, "fit_batch", original)
    folder = train()
    steps = [row["steps"] for row in curves.read(folder)]
    assert steps == [row["steps"] for row in curves.read(trained)]


def test_a_full_disk_is_named_and_loses_no_checkpoint(train, monkeypatch):
    original = recognition.export

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "model.ckpt")

    monkeypatch.setattr(recognition, "export", full)
    with pytest.raises(SystemExit, match="no space left to write model.ckpt"):
        train()
    monkeypatch.setattr(recognition, "export", original)
    folder = train()
    assert (folder / "pretrained" / "model.ckpt").is_file()


def test_speechbrain_run_options(train):
    folder = train(precision="bf16", grad_accumulation_factor=2, number_of_epochs=1)
    assert (folder / "pretrained").is_dir()
    with pytest.raises(SystemExit, match="--precision is fp16, which .* --precision bf16"):
        train(precision="fp16")


def test_minutes_between_checkpoints_need_not_be_whole(train, monkeypatch):
    saved, save = [], recognition.ASR._save_intra_epoch_ckpt
    monkeypatch.setattr(
        recognition.ASR, "_save_intra_epoch_ckpt", lambda brain: (saved.append(1), save(brain))
    )
    train(number_of_epochs=1, ckpt_interval_minutes=0.00001)
    assert saved


def test_a_device_that_is_none_is_named(command, tmp_path):
    with pytest.raises(
        SystemExit, match="--device is meta, which torch cannot use here .*give cpu"
    ):
        experiment.run([*command(tmp_path / "out"), "--device=meta"], ASR)
    with pytest.raises(SystemExit, match="--device is gpu, which torch does not know: give cpu"):
        experiment.run([*command(tmp_path / "out"), "--device=gpu"], ASR)


def test_a_start_says_nothing_of_torchvision():
    code = "import speechbrain_summarymixing.training.experiment"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_debug_writes_beside_a_finished_run_and_not_into_it(command, trained, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(trained, folder)
    before = contents(folder)
    experiment.run(command(folder, number_of_epochs=1, debug=True), ASR)
    assert contents(folder) == before
    assert (tmp_path / "out-debug/pretrained/model.ckpt").is_file()
    measured = json.loads((tmp_path / "out-debug/results.json").read_text())
    assert measured["test"]["test"]["utterances"] == 2


def test_the_same_command_again_measures_the_same(command, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    before = json.loads((trained / "results.json").read_text())
    experiment.run(command(tmp_path / "out"), ASR)
    assert json.loads((tmp_path / "out/results.json").read_text()) == before
    assert curves.read(tmp_path / "out") == curves.read(trained)


def test_a_run_goes_on_where_its_folders_have_moved(command, trained, noises, tmp_path):
    shutil.copytree(trained, tmp_path / "moved")
    shutil.copytree(noises, tmp_path / "data")
    for file in (tmp_path / "data").glob("*.csv"):
        file.write_text(file.read_text().replace(str(noises), str(tmp_path / "data")))
    csvs = {f"{part}_csv": tmp_path / f"data/{part}.csv" for part in ("train", "valid", "test")}
    moved = command(tmp_path / "moved", **csvs, manifest_folder=tmp_path / "m", language="nl")
    experiment.run(moved, ASR)
    assert len(curves.read(tmp_path / "moved")) == 2  # nothing was trained again


def test_another_training_set_is_refused_but_another_test_set_is_not(
    command, trained, changed_csv, tmp_path
):
    shutil.copytree(trained, tmp_path / "out")
    other = changed_csv(tmp_path / "other.csv", lambda rows: rows[0].update(ID="other"))
    with pytest.raises(SystemExit, match="other utterances to train on .24 there, 24 now, or with"):
        experiment.run(command(tmp_path / "out", train_csv=other), ASR)
    experiment.run([*command(tmp_path / "out", test_csv=other), "--test_only"], ASR)
    assert "other" in json.loads((tmp_path / "out/results.json").read_text())["test"]


def test_an_output_folder_in_use_is_refused(command, tmp_path):
    with locked(tmp_path / "out/.lock"), pytest.raises(SystemExit) as error:
        experiment.run(command(tmp_path / "out"), ASR)
    assert f"process {os.getpid()} on" in str(error.value)
    assert "another --output_folder" in str(error.value)
    assert not (tmp_path / "out/settings.json").exists()


def test_an_output_folder_that_cannot_be_made_is_named(command, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file.*cannot be .*another --output_folder"):
        experiment.run(command(tmp_path / "file/out"), ASR)


@pytest.mark.parametrize(
    "yaml, options, message",
    [
        (
            "recipes/Google-speech-commands/hparams/sumformer.yaml",
            {},
            "for the task classification, not for recognition, which this train.py trains",
        ),
        (
            "hparams/contextnet.yaml",
            {"causal": "True"},
            "cannot be built with --causal True .*sees",
        ),
        ("hparams/sumformer_decay.yaml", {"causal": "True"}, "with --causal True"),
        (
            "hparams/sumformer.yaml",
            {"task": "singing"},
            "for the task singing, not for recognition",
        ),
        ("hparams/sumformer.yaml", {"nhead": 5}, "cannot be built with --nhead 5 "),
        ("hparams/sumformer.yaml", {"speeds": 100}, "cannot be built with --speeds 100 "),
    ],
)
def test_what_cannot_be_built_is_told_before_anything_is_done(
    yaml, options, message, tmp_path, noises
):
    csvs = [f"--{part}_csv={noises}/{part}.csv" for part in ("train", "valid", "test")]
    given = [f"--{key}={value}" for key, value in options.items()]
    folder = tmp_path / "out"
    with pytest.raises(SystemExit, match=message):
        experiment.run([str(ROOT / yaml), f"--output_folder={folder}", *csvs, *given], ASR)
    assert not (folder / "settings.json").exists()


def test_activation_checkpointing_changes_no_result(train, trained):
    folder = train(activation_checkpointing="True", dropout=0.1)
    for name in ("train_loss", "valid_loss"):
        expected = [float(row[name]) for row in curves.read(trained)]
        assert [float(row[name]) for row in curves.read(folder)] == pytest.approx(expected)


def test_a_lack_of_memory_names_the_longest_utterance_and_the_setting(train, noises, monkeypatch):
    seen = []

    def full(self, predictions, batch, stage):
        seen.extend(zip(map(float, batch.duration), batch.id))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(recognition.ASR, "compute_objectives", full)
    with pytest.raises(SystemExit) as error:
        train()
    seconds, key = max(seen)
    assert f"{key} of {seconds:.1f} s" in str(error.value)
    assert "--batch_seconds (4 now)" in str(error.value)
    assert "--activation_checkpointing True" in str(error.value)


def test_tensorboard_is_an_option(train):
    folder = train(tensorboard="True")
    assert list((folder / "tensorboard").glob("**/events*"))


def test_a_missing_tensorboard_is_named(train, monkeypatch):
    def missing(**_):
        raise ImportError("tensorboard")

    monkeypatch.setattr(loggers, "TensorBoard", missing)
    with pytest.raises(SystemExit, match=r'pip install "speechbrain-summarymixing\[tensorboard\]"'):
        train(tensorboard="True")
