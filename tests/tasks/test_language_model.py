"""Tokenizer, language model and recogniser, one after the other as the recipes' READMEs say."""

import csv
import gzip
import json
import math
import os
import pickle
import shutil

import numpy
import pytest
import sentencepiece
import torch
from speechbrain.inference.ASR import EncoderDecoderASR

from speechbrain_summarymixing.data.tokens import load_tokenizer, unspellable
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.language_model import load_language_model
from speechbrain_summarymixing.tasks import language_model
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import experiment

LIBRISPEECH = "recipes/LibriSpeech"
TOKENS = 60
SMALL_LM = {
    "d_model": 16, "nhead": 2, "num_encoder_layers": 1, "d_ffn": 16, "number_of_epochs": 1,
    "num_workers": 0, "batch_sentences": 16, "lr": 0.01, "warmup_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(speech_data):
    """Options that take a recipe from LibriSpeech to the part of it that is at hand."""
    return {
        "data_folder": speech_data / "LibriSpeech",
        "train_splits": "train-clean-5", "valid_splits": "dev-clean", "test_splits": "dev-clean",
        "vocab_size": TOKENS,
    }  # fmt: skip


def arguments(root, yaml, options):
    return [str(root / yaml), "--noprogressbar", "--device=cpu", *(
        f"--{key}={value}" for key, value in options.items()
    )]  # fmt: skip


@pytest.fixture(scope="module")
def made(corpus, pytestconfig, tmp_path_factory):
    """A folder with a tokenizer and a language model, trained by their recipes."""
    folder, root = tmp_path_factory.mktemp("made"), pytestconfig.rootpath
    experiment.run_tokenizer(
        arguments(
            root,
            f"{LIBRISPEECH}/Tokenizer/hparams/unigram5000.yaml",
            {**corpus, "output_folder": folder / "tokenizer"},
        )
    )
    text = folder / "more.txt.gz"
    with gzip.open(text, "wt") as file:
        file.write("MORE TEXT\n\nAND MORE OF IT\n")
    options = {
        **corpus, **SMALL_LM, "output_folder": folder / "lm", "lm_text": text,
        "tokenizer_folder": folder / "tokenizer",
    }  # fmt: skip
    yaml = f"{LIBRISPEECH}/LM/hparams/transformer.yaml"
    experiment.run(arguments(root, yaml, options), language_model.LanguageModel)
    return folder


def test_the_language_model_counts_every_sentence_and_loads_as_it_was_tested(made):
    results = json.loads((made / "lm/results.json").read_text())
    assert len((made / "lm/train.txt").read_text().splitlines()) == 115 + 2
    measured = results["test"]["dev-clean"]
    assert measured["sentences"] == 25
    model = load_language_model(made / "lm/pretrained")
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(made / "lm/pretrained/tokenizer.ckpt")
    )
    nats, tokens = 0.0, 0
    for line in (made / "lm/test_dev-clean.txt").read_text().splitlines():
        ids = tokenizer.encode(line)
        scores = model(torch.tensor([[1, *ids]])).detach().log_softmax(-1)[0]
        nats -= float(scores[torch.arange(len(ids) + 1), torch.tensor([*ids, 2])].sum())
        tokens += len(ids) + 1
    assert measured["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    low, high = measured["perplexity_95"]
    assert low < measured["perplexity"] < high < TOKENS  # it has learnt something
    with open(made / "lm/errors_dev-clean.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["errors"]) for row in rows) == pytest.approx(nats, rel=1e-4)
    assert sum(int(row["total"]) for row in rows) == tokens
    assert results["parameters"] == sum(p.numel() for p in model.parameters())


def test_a_recogniser_decodes_with_the_language_model_and_so_does_its_export(
    made, corpus, command, tmp_path, speech_data
):
    options = {
        **corpus, "train_csv": "null", "valid_csv": "null", "test_csv": "null",
        "tokenizer_folder": made / "tokenizer", "lm_folder": made / "lm/pretrained",
        "optimizer_step_limit": 2, "number_of_epochs": 1, "batch_seconds": 30,
        "max_decode_ratio": 0.02,
    }  # fmt: skip
    yaml = f"{LIBRISPEECH}/ASR/transformer/hparams/sumformer.yaml"
    experiment.run(command(tmp_path / "asr", yaml=yaml, **options), ASR)
    with_lm = json.loads((tmp_path / "asr/results.json").read_text())["test"]["dev-clean"]
    assert with_lm["utterances"] == 25
    model = EncoderDecoderASR.from_hparams(source=str(tmp_path / "asr/pretrained"))
    scorer = model.hparams.scorer
    assert scorer.weights["transformerlm"] == 0.6
    joined = scorer.full_scorers["transformerlm"]
    original = load_language_model(made / "lm/pretrained")
    tokens = torch.tensor([[1, 5, 7, 9]])
    torch.testing.assert_close(joined.lm(tokens), original(tokens))
    wav = next(speech_data.glob("LibriSpeech/dev-clean/*/*/*.flac"))
    heard, calls = model.transcribe_file(str(wav)), []
    joined.lm.register_forward_hook(lambda *_: calls.append(1))
    assert model.transcribe_file(str(wav)) == heard and calls
    # decoded again, without
    experiment.run([
        *command(tmp_path / "asr", yaml=yaml, **{**options, "lm_folder": "null"}), "--test_only",
    ], ASR)  # fmt: skip
    assert not (tmp_path / "asr/pretrained/lm.ckpt").exists()


def test_other_tokens_than_the_recognisers_are_refused(made, command, tmp_path):
    other = tmp_path / "lm"
    shutil.copytree(made / "lm/pretrained", other)
    (other / "tokenizer.ckpt").write_bytes(b"other")
    with pytest.raises(SystemExit, match="whose tokens .* are not this model's"):
        experiment.run(command(tmp_path / "out", lm_folder=other, number_of_epochs=1), ASR)


def test_another_text_is_read_anew(made, corpus, pytestconfig, tmp_path):
    shutil.copytree(made / "lm", tmp_path / "lm")
    shutil.rmtree(tmp_path / "lm/save")  # as if stopped before the first checkpoint
    (tmp_path / "more.txt").write_text("ONE\nTWO\nTHREE\n")
    options = {
        **corpus, **SMALL_LM, "output_folder": tmp_path / "lm", "lm_text": tmp_path / "more.txt",
        "tokenizer_folder": made / "tokenizer", "optimizer_step_limit": 1,
    }  # fmt: skip
    yaml = f"{LIBRISPEECH}/LM/hparams/transformer.yaml"
    command = arguments(pytestconfig.rootpath, yaml, options)
    experiment.run(command, language_model.LanguageModel)
    learnt = (tmp_path / "lm/train.txt").read_text()
    assert len(learnt.splitlines()) == 115 + 3
    (tmp_path / "more.txt").unlink()  # a run that has begun keeps what it learns from
    experiment.run(command, language_model.LanguageModel)
    assert (tmp_path / "lm/train.txt").read_text() == learnt


def test_debug_and_check_leave_a_run_alone_and_debug_measures_sentences(
    made, corpus, pytestconfig, tmp_path
):
    shutil.copytree(made / "lm", tmp_path / "lm")
    files = [path for path in (tmp_path / "lm").rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    yaml = f"{LIBRISPEECH}/LM/hparams/transformer.yaml"
    options = {**corpus, **SMALL_LM, "output_folder": tmp_path / "lm"}
    options |= {"tokenizer_folder": made / "tokenizer"}
    command = arguments(pytestconfig.rootpath, yaml, options)
    experiment.run([*command, "--debug"], language_model.LanguageModel)
    options |= {"lm_text": made / "more.txt.gz", "check": "True"}
    command = arguments(pytestconfig.rootpath, yaml, options)
    experiment.run(command, language_model.LanguageModel)
    assert [path.read_bytes() for path in files] == before
    results = json.loads((tmp_path / "lm-debug/results.json").read_text())
    assert results["test"]["dev-clean"]["sentences"] == 2


def test_batches_hold_each_sentence_once_and_those_of_like_length(tmp_path):
    lengths = numpy.random.default_rng(0).integers(1, 1000, size=1003)
    batches = language_model.LengthBuckets(lengths, 10, seed=0, batches=50)
    first = list(batches)
    assert len(first) == len(batches) == 101
    assert sorted(index for batch in first for index in batch) == list(range(1003))
    spread = numpy.mean([numpy.ptp(lengths[batch]) for batch in first])
    assert spread < 0.1 * numpy.ptp(lengths)  # 0.8 at random
    assert list(batches) == first
    batches.set_epoch(1)
    assert list(batches) != first


def test_sentences_are_indexed_on_the_disk_and_reach_a_spawned_worker(tmp_path, made):
    path = tmp_path / "text.txt"
    tokenizer = load_tokenizer(made / "tokenizer/tokenizer.ckpt")
    for words in (["A", "ÉÉ B", "C D"], ["LONGER ONE", "X"]):
        path.write_text("\n".join(words) + "\n", encoding="utf-8")
        os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)
        language_model.index_sentences(path)
        sentences = language_model.Sentences(path, tokenizer, max_tokens=100)
        assert len(sentences) == len(words)
        for there in (sentences, pickle.loads(pickle.dumps(sentences))):
            for index, word in enumerate(words):
                assert there[index]["tokens_eos"].tolist() == [*tokenizer.encode(word), 2]
        assert len(pickle.dumps(sentences)) < 50_000  # not the index


@pytest.mark.parametrize(
    "kind, message",
    [
        ("tokenizer", "which has no hyperparams.yaml"),
        ("unlike its sum", "lm.ckpt: is not the file that was exported"),
        ("misspelt", "whose lm_model cannot be made .*d_modle"),
        ("cut", "lm.ckpt: cannot be loaded as weights"),
        ("other", "lm.ckpt: holds the weights of another model"),
    ],
)
def test_what_is_no_language_model_is_told_before_training(made, command, tmp_path, kind, message):
    folder = tmp_path / "lm"
    shutil.copytree(made / "lm/pretrained", folder)
    if kind != "unlike its sum":
        (folder / "config.json").unlink()
    if kind == "tokenizer":
        (folder / "hyperparams.yaml").unlink()
    elif kind == "misspelt":
        file = folder / "hyperparams.yaml"
        file.write_text(file.read_text().replace("d_model", "d_modle"))
    elif kind == "cut":
        (folder / "lm.ckpt").write_bytes((folder / "lm.ckpt").read_bytes()[:1000])
    else:  # other weights
        torch.save({"other": torch.zeros(1)}, folder / "lm.ckpt")
    with pytest.raises(SystemExit, match=f"--lm_folder is .*{message}"):
        experiment.run(command(tmp_path / "out", lm_folder=folder), ASR)
    assert not list((tmp_path / "out").glob("save/CKPT*"))


@pytest.mark.parametrize(
    "option, message",
    [
        ({"tokenizer_folder": "no/such/folder"}, "no/such/folder: no such folder, and no name on"),
        ({"tokenizer_folder": "tests"}, "tests, which has no tokenizer.ckpt"),
        ({"lm_folder": "tests"}, "--lm_folder is .*tests, which has no"),
    ],
)
def test_a_folder_that_is_no_model_is_named(option, message, command, tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        experiment.run(command(tmp_path / "out", number_of_epochs=1, **option), ASR)


def test_a_tokenizer_of_another_size_is_refused(made, command, tmp_path):
    with pytest.raises(SystemExit, match="has 60 tokens.*--vocab_size is 30"):
        experiment.run(command(tmp_path, tokenizer_folder=made / "tokenizer"), ASR)


def test_text_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="--lm_text .*absent.txt: cannot be read"):
        language_model.write_sentences(tmp_path / "a.txt", [], [str(tmp_path / "absent.txt")])
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no sentence"):
        language_model.write_sentences(tmp_path / "a.txt", [], [str(tmp_path / "empty.txt")])
    (tmp_path / "damaged.txt.gz").write_bytes(gzip.compress(b"A" * 999)[:10] + b"\xff" * 60)
    with pytest.raises(UserError, match="damaged.txt.gz: cannot be read as UTF-8 text"):
        language_model.write_sentences(tmp_path / "a.txt", [], [str(tmp_path / "damaged.txt.gz")])
    assert not (tmp_path / "a.txt").exists()


def test_lines_that_have_no_tokens_are_left_out_and_told(tmp_path, caplog):
    text, spell = tmp_path / "text.txt", unspellable(["AB C"])
    text.write_text("AB\nab\n\nC\n")
    language_model.write_sentences(tmp_path / "a.txt", ["A"], [str(text)], spell)
    assert (tmp_path / "a.txt").read_text() == "A\nAB\nC\n"
    assert "1 lines cannot be written in the tokens (line 2 has characters not in" in caplog.text
    text.write_text("ab\nba\n")
    with pytest.raises(UserError, match="2 lines cannot be written .*: a b.*in capitals or not"):
        language_model.write_sentences(tmp_path / "b.txt", ["A"], [str(text)], spell)
