import json

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import mini, slurp, slurp_voices
from speechbrain_summarymixing.corpora.checks import check_manifests
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError

SENTENCES = {
    "devel": ["wake me up at five", "what's on", "play jazz", "who is ann", "order pizza"],
    "test": ["turn the lights off", "call bob"],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of lines as published, without audio."""
    pytest.importorskip("espeakng_loader", reason="the voices need the extra [mini]")
    root = tmp_path_factory.mktemp("published")
    (root / slurp.TEXTS).mkdir(parents=True)
    for number, (split, sentences) in enumerate(SENTENCES.items()):
        lines = [
            {
                "slurp_id": 10 * number + index,
                "sentence": sentence,
                "scenario": "general",
                "action": "quirky",
                "tokens": [{"surface": word} for word in sentence.split()],
                "entities": [{"span": [1], "type": "what"}] if index else [],
                "recordings": [{"file": "audio-1.flac", "wer": 0.5, "status": "correct"}],
            }
            for index, sentence in enumerate(sentences)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / slurp.TEXTS / f"{split}.jsonl").write_text(text)
    return root


@pytest.fixture(scope="module")
def corpus(published, tmp_path_factory):
    return build(published, tmp_path_factory.mktemp("made") / "corpus")


def build(published, folder, **options):
    options = {"recordings": 2, "progress": False, **options}
    return slurp_voices.build(published, folder, **options)


def planned(published, **options):
    paths = {split: published / slurp.TEXTS / f"{split}.jsonl" for split in SENTENCES}
    lines = {split: [line for line, _ in slurp.read_lines(p)] for split, p in paths.items()}
    plan = slurp_voices.plan(lines, **options)
    return {split: [u for u in plan if u["split"] == split] for split in slurp_voices.SPLITS}


def contents(folder):
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_slurp_prepares_it(corpus, tmp_path):
    paths = slurp.prepare(corpus, tmp_path, splits=list(slurp_voices.SPLITS), progress=False)
    rows = {split: read_manifest(path) for split, path in paths.items()}
    sizes = {"train": 10, "devel": 2, "test_voices": 5, "test": 2}
    assert {split: len(r) for split, r in rows.items()} == sizes
    assert check_manifests(rows) == []  # no speaker of train elsewhere
    assert all(u.spk_id and parse(u.wrd, names=slurp.LABELS) for r in rows.values() for u in r)
    for u in rows["test"]:
        samples, rate = soundfile.read(u.wav)
        assert rate == 16000 and samples.ndim == 1 and numpy.abs(samples).max() > 0.09
        assert 1.0 <= u.duration <= 12.0


def test_its_lines_have_the_official_fields(corpus):
    lines = [line for line, _ in slurp.read_lines(corpus / slurp.TEXTS / "train.jsonl")]
    assert lines[0]["recordings"] == [
        {"file": f"audio-0-train-{take}.flac", "wer": 0.0, "ent_wer": None, "status": "correct"}
        for take in range(2)
    ]
    assert lines[1]["recordings"][0]["ent_wer"] == 0.0


@pytest.mark.parametrize("all_sentences", [False, True])
def test_which_sentences_and_voices_the_splits_share(published, all_sentences):
    plan = planned(published, recordings=3, all_sentences=all_sentences)
    said = {split: {u["text"] for u in rows} for split, rows in plan.items()}
    devel, test = map(set, SENTENCES.values())
    assert said["train"] == (devel | test if all_sentences else devel)
    assert said["test_voices"] == devel and said["test"] == test
    assert said["devel"] == {"wake me up at five", "order pizza"}
    variants = {split: {u["variant"] for u in rows} for split, rows in plan.items()}
    for a, b in (
        ("train", "devel"),
        ("train", "test"),
        ("train", "test_voices"),
        ("devel", "test"),
    ):
        assert not variants[a] & variants[b]
    for text in said["train"]:
        voices = [(u["variant"], u["accent"]) for u in plan["train"] if u["text"] == text]
        assert len(set(voices)) == len(voices) == 3
    files = [u["file"] for rows in plan.values() for u in rows]
    assert len(set(files)) == len(files)


def test_the_voices_are_dealt_out_as_those_of_the_mini_corpus(published):
    assert {u["variant"] for u in planned(published)["test"]} <= {
        u["variant"] for u in mini.plan() if u["split"] == "test"
    }


def test_the_same_seed_gives_the_same_bytes(corpus, published, tmp_path):
    assert contents(build(published, tmp_path / "again", workers=3)) == contents(corpus)
    other = contents(build(published, tmp_path / "other", seed=5))
    assert other.keys() == contents(corpus).keys() and other != contents(corpus)


def test_it_is_made_only_when_missing_or_changed(published, tmp_path):
    folder = build(published, tmp_path / "corpus", recordings=1)
    stamp = folder / slurp_voices.STAMP
    made = stamp.stat().st_mtime_ns
    build(published, folder, recordings=1)
    assert stamp.stat().st_mtime_ns == made
    next(folder.rglob("*.flac")).unlink()
    build(published, folder, recordings=1)
    assert stamp.stat().st_mtime_ns != made
    assert len(json.loads(stamp.read_text())["bytes"]) == 5 + 2 + 5 + 2
    build(published, folder, recordings=1, all_sentences=True)
    assert len(json.loads(stamp.read_text())["bytes"]) == 7 + 2 + 5 + 2


def test_a_long_sentence_lasts_longer_than_the_mini_corpus_allows(published):
    from speechbrain_summarymixing.corpora.espeak import Espeak, utter

    espeak = Espeak()
    row = {"text": "remind me to call " * 8, "accent": "en-us", "variant": "m1", "seed": [1, 2, 3]}
    assert 1.0 <= len(utter(espeak, row)) / 16000 <= 6.0
    assert 6.0 < len(utter(espeak, {**row, "longest": slurp_voices.LONGEST})) / 16000 <= 12.0


def test_wrong_settings_and_folders(published, tmp_path):
    for count in (0, 101, 1.5):
        with pytest.raises(UserError, match=f"recordings is {count}, but must be 1 to 100"):
            build(published, tmp_path / "corpus", recordings=count)
    with pytest.raises(UserError, match="devel.jsonl: no such file"):
        build(tmp_path, tmp_path / "corpus")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not SLURP's sentences, and nothing is overwritten: give"):
        build(published, tmp_path)


def test_lines_without_a_sentence(published):
    lines = {"devel": [{"slurp_id": 1, "sentence": " "}], "test": []}
    with pytest.raises(UserError, match="1 lines have no sentence or no slurp_id, such as"):
        slurp_voices.plan(lines)


def test_an_interrupted_build_leaves_nothing(published, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(mini, "_speak", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(published, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(published, tmp_path, capsys):
    folder = tmp_path / "corpus"
    assert slurp_voices.main([str(published), str(folder), "--recordings", "1"]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert (folder / slurp_voices.STAMP).is_file()
    assert slurp_voices.main([str(tmp_path / "none"), str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path}/none/dataset/slurp/devel.jsonl: no such")


def test_published_lines(speech_data):
    plan = planned(speech_data / "slurp")
    sizes = {"train": 1600, "devel": 100, "test_voices": 400, "test": 400}
    assert {split: len(rows) for split, rows in plan.items()} == sizes
    assert not {u["text"] for u in plan["train"]} & {u["text"] for u in plan["test"]}
    scenarios = {split: {u["line"]["scenario"] for u in rows} for split, rows in plan.items()}
    assert len(scenarios["train"]) == 18 and scenarios["test"] <= scenarios["train"]
