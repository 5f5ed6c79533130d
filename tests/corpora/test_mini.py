import collections
import json
import os
import sys

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import mini
from speechbrain_summarymixing.corpora.checks import check_manifests
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.mini_text import TEMPLATES
from speechbrain_summarymixing.errors import UserError

TINY = {"train": 10, "dev": 3, "test": 4, "test_large": 5, "progress": False}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    pytest.importorskip("espeakng_loader", reason="the mini corpus needs the extra [mini]")
    return mini.build(tmp_path_factory.mktemp("mini") / "corpus", **TINY)


@pytest.fixture(scope="module")
def planned():
    pytest.importorskip("espeakng_loader", reason="the mini corpus needs the extra [mini]")
    plan = mini.plan()
    splits = (*mini.SPLITS, mini.LARGE)
    return {split: [u for u in plan if u["split"] == split] for split in splits}


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != mini.STAMP)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_size_voices_and_vocabulary_of_the_default_corpus(planned):
    assert {split: len(rows) for split, rows in planned.items()} == {
        "train": 4000, "dev": 120, "test": 200, "test-large": 2000,
    }  # fmt: skip
    pairs = {s: {(u["variant"], u["accent"]) for u in rows} for s, rows in planned.items()}
    assert len(pairs["train"]) >= 300 and len(pairs["test"]) >= 60
    assert len({variant for variant, _ in pairs["test"]}) >= 20
    words = collections.Counter(w for u in planned["train"] for w in u["text"].split())
    assert len(TEMPLATES) >= 15 and len(words) >= 120
    assert all(words[w] >= 15 for u in planned["test"] for w in u["text"].split())
    assert all(w.replace("'", "").isalpha() and w.isupper() for w in words)


@pytest.mark.parametrize("what", ["variant", "speaker", "text", "file"])
def test_splits_share_no_voice_and_no_sentence(planned, what):
    pairs = (("train", "dev"), ("train", "test"), ("dev", "test"))
    for a, b in (*pairs, ("train", "test-large"), ("dev", "test-large")):
        assert not {u[what] for u in planned[a]} & {u[what] for u in planned[b]}


def test_the_large_test_set_begins_with_the_small_one(planned):
    small, large = planned["test"], planned["test-large"]
    for key in ("variant", "accent", "speaker", "text", "seed"):
        assert [u[key] for u in small] == [u[key] for u in large[: len(small)]]
    assert len({u["text"] for u in large}) > 900
    assert len({(u["variant"], u["accent"]) for u in large}) == 120


def test_both_test_sets_can_be_tested_at_once(corpus, tmp_path):
    paths = mini.prepare(corpus, tmp_path, splits=["train", "test", "test-large"], **TINY)
    assert check_manifests({name: read_manifest(path) for name, path in paths.items()}) == []


def test_audio_is_16_khz_mono_of_1_to_6_seconds_and_no_silence(corpus, tmp_path):
    sizes = {"train": 10, "dev": 3, "test": 4, "test-large": 5}
    paths = mini.prepare(corpus, tmp_path, splits=list(sizes), **TINY)
    rows = {split: read_manifest(path) for split, path in paths.items()}
    assert {split: len(r) for split, r in rows.items()} == sizes
    for u in (u for r in rows.values() for u in r):
        samples, rate = soundfile.read(u.wav)
        assert rate == 16000 and samples.ndim == 1 and u.wav.endswith(".flac")
        assert 1.0 <= u.duration <= 6.0
        assert 0.09 < numpy.abs(samples).max() < 0.91


def test_the_longest_and_the_shortest_sentence_keep_to_1_to_6_seconds(corpus):
    from speechbrain_summarymixing.corpora.espeak import Espeak, utter

    espeak = Espeak()
    for text in ("GO", " ".join(["SEVENTEENTH SEPTEMBER"] * 8)):
        row = {"text": text, "accent": "en-us", "variant": "m1", "seed": [1, 2, 3]}
        assert 1.0 <= len(utter(espeak, row)) / 16000 <= 6.0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_core_count(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "CHUNK", 5)
    one = mini.build(tmp_path / "one", workers=1, **TINY)
    three = mini.build(tmp_path / "three", workers=3, **TINY)
    assert contents(one) == contents(three)
    other = mini.build(tmp_path / "other", seed=5, **TINY)
    assert contents(other).keys() != contents(one).keys() or contents(other) != contents(one)


def test_it_is_built_only_when_missing_or_changed(tmp_path):
    folder = mini.build(tmp_path / "corpus", **TINY)
    stamp = folder / mini.STAMP
    made, content = stamp.stat().st_mtime_ns, contents(folder)
    mini.build(folder, **TINY)
    assert stamp.stat().st_mtime_ns == made
    first = next(folder.rglob("*.flac"))
    first.write_bytes(first.read_bytes()[:100])
    mini.build(folder, **TINY)
    assert stamp.stat().st_mtime_ns != made and contents(folder) == content
    mini.build(folder, **{**TINY, "test": 5})
    assert len(json.loads(stamp.read_text())["bytes"]) == 23


def test_an_interrupted_build_leaves_nothing_that_is_taken_for_the_corpus(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mini, "_speak", interrupted)
        with pytest.raises(KeyboardInterrupt):
            mini.build(tmp_path / "corpus", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(mini, "_speak", full)
    with pytest.raises(UserError, match="no space left for the mini corpus in"):
        mini.build(tmp_path / "corpus", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not the mini corpus, and nothing is overwritten"):
        mini.build(tmp_path, **TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(mini.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "speechbrain-summarymixing\[mini\]"'):
        mini.build(tmp_path / "corpus", **TINY)


@pytest.mark.parametrize("count", [0, -3, 1.5])
def test_wrong_counts(tmp_path, count):
    with pytest.raises(UserError, match=f"dev is {count}, but must be 1 to 100000"):
        mini.build(tmp_path / "corpus", **{**TINY, "dev": count})


def test_a_failing_synthesiser_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "ACCENTS", ("xx-klingon",))
    with pytest.raises(UserError, match="espeak-ng failed.*no voice xx-klingon"):
        mini.build(tmp_path / "corpus", **TINY)
