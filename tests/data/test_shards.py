"""Training on the shards that `summarymixing shard` writes, beside training on CSV files."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import shards as corpus_shards
from speechbrain_summarymixing.corpora.corpus import Corpus, declared
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.shards import read_shard, urls_of, write_shards
from speechbrain_summarymixing.data import loading, sets, shards, tokens
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks import recognition
from speechbrain_summarymixing.tasks.language_model import LanguageModel
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import curves, experiment

pytest.importorskip("webdataset")
pytest.importorskip("importlib_metadata")

LIMITS = {"min_seconds": 0.1, "max_seconds": 30.0}


@pytest.fixture(scope="module")
def folder(noises, tmp_path_factory):
    """Six shards of the 24 training noises."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    write_shards(noises / "train.csv", folder, utterances_per_shard=4, progress=False)
    return folder


@pytest.fixture(scope="module")
def pattern(folder):
    return f"{folder}/shard-{{000000..000005}}.tar"


@pytest.fixture(scope="module")
def tokenizer(noises, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.ckpt"
    texts = [utterance.wrd for utterance in read_manifest(noises / "train.csv")]
    return tokens.train_tokenizer(texts, path, vocab_size=30), path.parent


@pytest.fixture
def reader(pattern, tokenizer):
    def make(pattern=pattern, **options):
        options = {
            "batch_seconds": 4.0, "max_batch_size": 5, "num_buckets": 2, "seed": 1,
            "sample_rate": 16000, "whole_samples": 640, **options,
        }  # fmt: skip
        return shards.ShardReader(urls_of(pattern), tokenizer[0], **options)

    return make


@pytest.fixture
def train(command, pattern, tmp_path):
    """Runs a small training on shards in a folder of its own and returns the folder."""

    def run(**options):
        options = {"shards": pattern, "train_csv": "null", **options}
        experiment.run(command(tmp_path / "out", **options), ASR)
        return tmp_path / "out"

    return run


def ids(batches):
    return [key for batch in batches for key in batch.id]


def loaded(dataset, workers=0):
    return list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers))


def test_an_utterance_is_the_same_as_from_csv(reader, noises, tokenizer):
    rows = read_manifest(noises / "train.csv")
    spell = partial(tokens.spelled, tokenizer=tokenizer[0])
    dataset = loading.Utterances(rows, spell, tokens.SPELLED, sample_rate=16000, whole_samples=640)
    expected = {item["id"]: item for item in dataset}
    batches = loaded(reader().dataset(1))
    assert sorted(ids(batches)) == sorted(expected)
    for batch in batches:
        for index, key in enumerate(batch.id):
            for name in ("sig", "tokens", "tokens_bos", "tokens_eos"):
                padded, lengths = getattr(batch, name)
                size = round(float(lengths[index]) * padded.size(1))
                assert padded[index, :size].equal(expected[key][name]), (key, name)
            assert batch.wrd[index] == expected[key]["wrd"]
            assert batch.duration[index] == expected[key]["duration"]


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg", "sph"])
def test_audio_is_the_same_from_a_file_and_from_its_content(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    options = {"format": "NIST", "subtype": "PCM_16"} if kind == "sph" else {}
    samples = numpy.random.default_rng(0).uniform(-0.5, 0.5, (8000, 2))
    soundfile.write(path, samples, 44100, **options)
    assert read_audio(path.read_bytes(), name="x").equal(read_audio(path))
    with pytest.raises(UserError, match="^x in a shard: cannot be read as audio"):
        read_audio(b"no audio", name="x in a shard")


def test_batches_respect_their_limits(reader):
    batches = loaded(reader().dataset(3))
    assert max(len(batch.id) for batch in batches) <= 5
    for batch in batches:
        assert len(batch.id) == 1 or len(batch.id) * float(max(batch.duration)) <= 4.0 + 1e-9
    alone = loaded(reader(batch_seconds=0.1).dataset(1))
    assert [len(batch.id) for batch in alone] == [1] * 24


def test_each_utterance_once_in_a_pass_over_processes_and_workers(reader, noises):
    every = sorted(utterance.ID for utterance in read_manifest(noises / "train.csv"))
    assert sorted(ids(loaded(reader().dataset(1), workers=2))) == every
    ranks = [ids(loaded(reader(rank=r, processes=2).dataset(1), workers=2)) for r in (0, 1)]
    assert min(map(len, ranks)) == 8 and sorted(ranks[0] + ranks[1]) == every
    ranks = [ids(loaded(reader(rank=r, processes=2).dataset(2))) for r in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == sorted(2 * every)


def test_order_is_of_seed_and_pass_and_resumed_step(reader):
    def passes(**options):
        made = reader(**options)
        return [[batch.id for batch in loaded(made.dataset(1))] for _ in range(2)]

    first, second = passes()
    assert first != second
    assert passes() == [first, second]
    assert passes(seed=2)[0] != first
    resumed = reader()
    resumed.steps_before = 7
    assert [batch.id for batch in loaded(resumed.dataset(1))] != first


def test_urls_are_webdatasets(pattern, folder, reader):
    urls = urls_of(pattern)
    assert urls == [str(path) for path in sorted(folder.glob("*.tar"))]
    piped = reader(f"pipe:cat {pattern}")
    assert len(ids(loaded(piped.dataset(1)))) == 24
    with pytest.raises(UserError, match="names a shard twice"):
        urls_of(f"{pattern}::{urls[0]}")


def test_length_of_an_epoch(pattern, folder, tmp_path):
    urls = urls_of(pattern)
    texts, amount = shards.scan(urls, **LIMITS)
    assert len(texts) == 24 and (amount.shards, amount.utterances) == (6, 24)
    told = shards.amount_beside(urls)
    assert told.seconds == pytest.approx(amount.seconds, abs=1e-3)
    assert shards.amount_beside(urls[:3]).seconds == pytest.approx(told.seconds / 2)
    assert shards.amount_beside([f"pipe:cat {url}" for url in urls]) is None
    whole = shards.epoch_steps(amount, batch_seconds=4.0, max_batch_size=64)
    assert whole == -(-amount.seconds // 4.0)
    assert shards.epoch_steps(amount, batch_seconds=4.0, max_batch_size=64, processes=2) == -(
        -whole // 2
    )
    assert shards.epoch_steps(amount, batch_seconds=4.0, max_batch_size=1) == 24


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_trains_tests_and_exports(train, num_workers):
    if num_workers == 0:
        assert not train(check="True").exists()
    out = train(num_workers=num_workers, warmup_steps=2)
    results = json.loads((out / "results.json").read_text())
    assert results["test"]["test"]["utterances"] == 6
    history = curves.read(out)
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert int(history[1]["steps"]) == 2 * int(history[0]["steps"]) == results["optimizer_steps"]
    assert float(history[1]["lr"]) == pytest.approx(0, abs=1e-9)
    assert (out / "pretrained" / "model.ckpt").is_file()
    assert "shard-{000000..000005}" in (out / "pretrained" / "README.md").read_text()


def test_what_waits_for_its_batch_is_bounded_by_seconds(reader, monkeypatch):
    read, seconds = shards.read_shard, []

    def counted(url, **options):
        for utterance in read(url, **options):
            seconds.append(utterance.duration)
            yield utterance

    monkeypatch.setattr(shards, "read_shard", counted)
    large = {"max_batch_size": 1000, "num_buckets": 1000}
    next(iter(reader(batch_seconds=0.1, **large).dataset(1)))
    assert 4.0 <= sum(seconds) < 4.0 + 2 * 1.5  # 40 batches, and an utterance or two
    seconds.clear()
    next(iter(reader(batch_seconds=1.0, **large).dataset(1)))
    assert len(seconds) == 24  # all of them


@pytest.mark.slow
def test_two_processes_take_equal_steps(command, pattern, noises, tmp_path):
    options = {"shards": pattern, "train_csv": "null", "distributed_backend": "gloo"}
    root = Path(__file__).parents[2]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, root / "train.py", *command(tmp_path / "out", **options)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    seconds = sum(utterance.duration for utterance in read_manifest(noises / "train.csv"))
    assert results["processes"] == 2 and results["optimizer_steps"] == 2 * -(-seconds // 8)


def test_a_corpus_prepares_no_training_part(monkeypatch, noises):
    prepared = []

    def prepare(root, folder, *, splits, **options):
        prepared.extend(splits)
        return {"dev": noises / "valid.csv", "test": noises / "test.csv"}

    own = Corpus("own", prepare, ["train"], ["dev"], ["test"])
    monkeypatch.setitem(declared(), "own", own)
    names = [f"{part}_{kind}" for part in ("train", "valid", "test") for kind in ("csv", "splits")]
    hparams = {name: None for name in names}
    hparams.update(corpus="own", shards="x.tar", data_folder="", manifest_folder="")
    train, valid, test = sets.manifests(hparams)
    assert prepared == ["dev", "test"]
    assert (len(train), len(valid["dev"]), len(test["test"])) == (0, 5, 6)


def test_a_tokenizer_alone_is_trained_and_a_language_model_refuses(pattern, tmp_path, tokenizer):
    recipes = Path(__file__).parents[2] / "recipes/LibriSpeech"
    options = [f"--shards={pattern}", f"--output_folder={tmp_path / 'out'}", "--vocab_size=30"]
    yaml = str(recipes / "Tokenizer/hparams/unigram5000.yaml")
    experiment.run_tokenizer([yaml, *options, "--token_type=bpe"])
    assert (tmp_path / "out/tokenizer.ckpt").stat().st_size > 0
    with pytest.raises(SystemExit, match="--shards is for recognisers"):
        yaml = str(recipes / "LM/hparams/transformer.yaml")
        experiment.run([yaml, *options, "--device=cpu"], LanguageModel)


def test_a_trained_tokenizer_and_the_length_of_an_epoch_can_be_given(train, tokenizer):
    out = train(number_of_epochs=1, shard_epoch_steps=2, tokenizer_folder=tokenizer[1])
    assert (out / "tokenizer.model").read_bytes() == (tokenizer[1] / "tokenizer.ckpt").read_bytes()
    assert curves.read(out)[0]["steps"] == "2"


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_lose_no_step(train, monkeypatch, capsys):
    original, steps = recognition.ASR.fit_batch, []

    def interrupted(self, batch):
        steps.append((self.step, batch.id))
        if self.optimizer_step == 5 and len(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(recognition.ASR, "fit_batch", interrupted)
    with pytest.raises(SystemExit):
        train(shard_epoch_steps=4)
    assert "in epoch 2 after optimiser step 6" in capsys.readouterr().err
    out = train(shard_epoch_steps=4)
    assert [step for step, _ in steps] == [1, 2, 3, 4] * 2
    assert [row["steps"] for row in curves.read(out)] == ["4", "8"]
    assert (out / "log.txt").read_text().count("the shards are read from their begin") == 1


@pytest.fixture
def rewritten(changed_csv, tmp_path):
    """A function that returns the pattern of shards whose rows went through a change."""

    def write(change, **options):
        path = changed_csv(tmp_path / "changed.csv", change)
        write_shards(path, tmp_path / "changed", progress=False, **options)
        return str(tmp_path / "changed" / "shard-000000.tar")

    return write


def test_bad_utterances_are_named_before_training_or_when_read(train, rewritten, tokenizer):
    def spoil(rows):
        rows[0]["wrd"] = "ÉTÉ"

    url = rewritten(spoil)
    with pytest.raises(SystemExit, match="train-0 in .*shard-000000.tar: cannot be spelled.*: É"):
        train(shards=url, tokenizer_folder=tokenizer[1])
    with pytest.raises(UserError) as error:
        shards.scan([url, url], **LIMITS)
    assert "24 utterances of the shards cannot be used" in str(error.value)
    assert f"train-0 in {url}: also in {url}" in str(error.value)


def test_utterances_too_long_to_train_on_are_left_out(reader, pattern, noises, caplog):
    kept = {u.ID for u in read_manifest(noises / "train.csv") if u.duration <= 1.0}
    assert 5 < len(kept) < 24
    assert set(ids(loaded(reader(max_seconds=1.0).dataset(1)))) == kept
    texts, amount = shards.scan(urls_of(pattern), min_seconds=0.1, max_seconds=1.0)
    assert (len(texts), amount.utterances) == (24, len(kept))  # tokens spell all, as from CSV
    assert f"{24 - len(kept)} of 24 utterances" in caplog.text
    with pytest.raises(UserError, match="no utterance of 0 to 0.2 s: leave such shards out, or"):
        loaded(reader(max_seconds=0.2).dataset(1))
    with pytest.raises(UserError, match="nothing to train on: 24 of 24"):
        shards.scan(urls_of(pattern), min_seconds=0.1, max_seconds=0.2)


def test_the_amount_of_shards_in_several_folders(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other")
    urls = urls_of(f"{folder}/shard-{{000000..000005}}.tar::{tmp_path}/other/shard-000000.tar")
    told = shards.amount_beside(urls)
    one = shards.amount_beside(urls[:6])
    assert (told.shards, told.utterances) == (7, 28)
    assert told.seconds == pytest.approx(one.seconds * 7 / 6)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_audio_that_turns_out_corrupt_is_named(train, rewritten, corrupt, num_workers):
    def spoil(rows):
        rows[7]["wav"] = corrupt(rows[7])

    url = rewritten(spoil)
    with pytest.raises(SystemExit) as error:
        train(shards=url, num_workers=num_workers)
    assert re.search("train-7 in .*shard-000000.tar: ", str(error.value))
    assert "Traceback" not in str(error.value)


def test_damaged_shards_are_named(folder, tmp_path):
    content = (folder / "shard-000000.tar").read_bytes()
    path = tmp_path / "bad.tar"
    entries = content.rstrip(b"\0")
    spoilt = {
        "empty": b"",
        "no tar": b"x" * 4096,
        "cut in an entry": content[: len(content) // 2 - 100],
        "no end": content[: -(-len(entries) // 512) * 512],
        "a header": content[: (header := content.index(b"ustar", 600) - 257)]
        + bytes([255]) * 512
        + content[header + 512 :],
    }
    for kind, bad in spoilt.items():
        path.write_bytes(bad)
        for url in (str(path), f"pipe:cat {path}"):
            for audio in (True, False):
                with pytest.raises(UserError, match="bad.tar: cannot be read as a shard"):
                    print(kind, url, audio, len(list(read_shard(url, audio=audio))))
    for url in (f"{tmp_path}/absent.tar", f"pipe:cat {tmp_path}/absent.tar"):
        with pytest.raises(UserError, match="absent.tar: cannot be read as a shard"):
            list(read_shard(url))
    with pytest.raises(UserError, match="exit 7"):
        list(read_shard("pipe:exit 7"))


def test_a_lost_utterance_is_noticed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    urls = [str(path) for path in sorted((tmp_path / "copy").glob("*.tar"))]
    shutil.copy(urls[0], tmp_path / "other.tar")
    (tmp_path / "copy" / "shards.json").write_text('{"shards": 6, "utterances": 25, "seconds": 20}')
    with pytest.raises(UserError, match="hold 24 utterances, but 25 by shards.json"):
        shards.scan(urls, **LIMITS)


def test_options_that_do_not_go_together(train, noises, pattern, tokenizer, monkeypatch):
    with pytest.raises(SystemExit, match="--shards and --train_csv .* are both given"):
        train(train_csv=noises / "train.csv")
    with pytest.raises(SystemExit, match="with --shards the latter two"):
        train(valid_csv="null")
    with pytest.raises(SystemExit, match="6 shards cannot be split .* 7 workers"):
        train(num_workers=7)
    with pytest.raises(SystemExit, match="give --shard_epoch_steps"):
        train(shards=f"pipe:cat {pattern}", tokenizer_folder=tokenizer[1])
    monkeypatch.setattr(corpus_shards, "WDS_AVAILABLE", False)
    with pytest.raises(SystemExit, match=r'pip install "speechbrain-summarymixing\[shards\]"'):
        train()
