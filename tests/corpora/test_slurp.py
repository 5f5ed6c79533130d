import json
import os

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import slurp
from speechbrain_summarymixing.corpora.checks import check_manifests
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError


def line(key, files, sentence="remind me on Friday at five am", entities=((3,), (5, 6))):
    return {
        "slurp_id": key,
        "sentence": sentence.lower(),
        "intent": "calendar_set",
        "scenario": "calendar",
        "action": "set",
        "tokens": [{"surface": word, "id": i} for i, word in enumerate(sentence.split())],
        "recordings": [
            {"file": file, "wer": 0.0, "ent_wer": None, "status": "correct"} for file in files
        ],
        "entities": [
            {"span": list(span), "type": kind} for kind, span in zip(("date", "time"), entities)
        ],
    }


LINES = {
    "train": [line(1, ["audio-1.flac", "audio-1-headset.flac"]), line(2, ["audio--2.flac"])],
    "train_synthetic": [line(1, ["synth-1.flac"], entities=())],
    "devel": [line(3, ["audio-3.flac"])],
    "test": [line(4, ["audio-4.flac"])],
}


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "slurp"
    for folder in (slurp.TEXTS, slurp.AUDIO, slurp.SYNTHETIC_AUDIO):
        (root / folder).mkdir(parents=True)
    for split, lines in LINES.items():
        text = "".join(json.dumps(content) + "\n" for content in lines)
        (root / slurp.TEXTS / f"{split}.jsonl").write_text(text)
        audio = slurp.SYNTHETIC_AUDIO if split == "train_synthetic" else slurp.AUDIO
        for content in lines:
            for recording in content["recordings"]:
                soundfile.write(root / audio / recording["file"], numpy.zeros(8000), 16000)
    return root


def prepare(corpus, **options):
    options = {"progress": False, **options}
    return slurp.prepare(corpus, corpus.parent / "manifests", **options)


def break_line(corpus, change, split="devel"):
    content = json.loads(json.dumps(LINES[split][0]))
    change(content)
    path = corpus / slurp.TEXTS / f"{split}.jsonl"
    path.write_text(json.dumps(LINES[split][0]) + "\n" + json.dumps(content) + "\n")


def test_each_recording_is_an_utterance_whose_words_are_its_meaning(corpus):
    rows = {split: read_manifest(path) for split, path in prepare(corpus).items()}
    assert [u.ID for u in rows["train"]] == ["audio--2", "audio-1", "audio-1-headset"]
    assert {split: len(r) for split, r in rows.items()} == {"train": 3, "devel": 1, "test": 1}
    assert {u.wrd for r in rows.values() for u in r} == {
        '{"scenario":"calendar","action":"set","entities":'
        '[{"type":"date","filler":"friday"},{"type":"time","filler":"five am"}]}'
    }
    assert rows["test"][0].duration == 0.5 and rows["test"][0].spk_id == ""
    assert check_manifests(rows) == []


def test_the_synthetic_part_is_a_split_of_its_own(corpus):
    (row,) = read_manifest(prepare(corpus, splits=["train_synthetic"])["train_synthetic"])
    assert row.ID == "synth-1" and "slurp_synth" in row.wav
    assert parse(row.wrd).entities == ()


def test_speakers_are_those_of_the_metadata(corpus):
    path = corpus / slurp.TEXTS / slurp.METADATA
    prepare(corpus)
    recordings = {"audio-1.flac": {"usrid": "FE-488"}, "audio--2.flac": {"usrid": "MO-222"}}
    path.write_text(json.dumps({"1": {"recordings": recordings}}))
    rows = read_manifest(prepare(corpus)["train"])
    assert [u.spk_id for u in rows] == ["MO-222", "FE-488", ""]
    path.write_text("[1]")
    with pytest.raises(UserError, match="metadata.json: is not SLURP's metadata"):
        prepare(corpus)


def test_manifests_are_made_again_only_if_lines_or_audio_change(corpus):
    path = prepare(corpus)["devel"]
    made = path.stat().st_mtime_ns
    assert prepare(corpus)["devel"].stat().st_mtime_ns == made
    os.utime(corpus / slurp.AUDIO / "audio-3.flac", ns=(1, 1))
    assert prepare(corpus)["devel"].stat().st_mtime_ns != made


def test_another_folder_and_an_unknown_split(corpus):
    with pytest.raises(UserError, match=r"train.jsonl: no such file; the folder holds no .jsonl"):
        prepare(corpus / "audio")
    with pytest.raises(UserError, match=r"valid.jsonl: .*splits of these \(devel, test, train, tr"):
        prepare(corpus, splits=["valid"])


def test_missing_recordings_are_counted_and_named(corpus):
    (corpus / slurp.AUDIO / "audio-1.flac").unlink()
    with pytest.raises(UserError, match=r"1 of 3 recordings are missing:\n  .*audio-1.flac\nunp"):
        prepare(corpus)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda c: c.pop("scenario"), "is no object with scenario, action, tokens"),
        (lambda c: c["tokens"][0].pop("surface"), "is no object with scenario, action, tokens"),
        (lambda c: c.update(entities=None), "is no object with scenario, action, tokens"),
        (lambda c: c["recordings"][0].update(file=3), "is no object with scenario, action, tok"),
        (lambda c: c.update(action=""), "has action '', which is no text"),
        (lambda c: c.update(action="\ud800"), "has half a character"),
        (lambda c: c["entities"][1].update(span=[6, 7]), r"'time' of the tokens \[6, 7\].*0 to 6"),
        (lambda c: c["entities"][1].update(span=[]), r"'time' of the tokens \[\]"),
        (lambda c: c["entities"][0].update(span=[-1]), r"'date' of the tokens \[-1\]"),
        (lambda c: c["recordings"][0].update(file="../x.flac"), "no file's bare name"),
    ],
)
def test_lines_that_are_not_slurps_are_named(corpus, change, reason):
    break_line(corpus, change)
    with pytest.raises(UserError, match=f"devel.jsonl, line 2: .*{reason}"):
        prepare(corpus)


def test_blank_lines_are_passed_over_and_counted(corpus):
    expected = read_manifest(prepare(corpus)["train"])
    path = corpus / slurp.TEXTS / "train.jsonl"
    lines = path.read_text().replace("\n", "\n \n") + "\n"
    path.write_text(lines)
    assert read_manifest(prepare(corpus)["train"]) == expected
    path.write_text(lines + "{\n")
    with pytest.raises(UserError, match="train.jsonl, line 6: '{' is no JSON"):
        prepare(corpus)


def test_a_split_without_recordings_is_named(corpus):
    path = corpus / slurp.TEXTS / "norec.jsonl"
    path.write_text(json.dumps(line(5, [])) + "\n")
    with pytest.raises(UserError, match=r"norec.jsonl: none of its lines has a recording.* leave"):
        prepare(corpus, splits=["train", "norec"])


@pytest.mark.parametrize(
    "content, reason",
    [
        (b'{"slurp_id": 1,\n', "line 1: '{\"slurp_id\": 1,' is no JSON: mend the line"),
        (b"[]\n", "line 1: '\\[\\]' is no object"),
        (b"\xff\n", "it is not UTF-8 text"),
        (b"", "has no line"),
        (b"\n \n", "has no line"),
        (b"[" * 100000, r"line 1: '\[\[.* is no JSON"),
    ],
)
def test_files_that_are_not_slurps_are_named(corpus, content, reason):
    (corpus / slurp.TEXTS / "devel.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=f"devel.jsonl.*{reason}"):
        prepare(corpus)


def test_published_lines(speech_data):
    for split in ("devel", "test"):
        lines = slurp.read_lines(speech_data / "slurp" / slurp.TEXTS / f"{split}.jsonl")
        assert len(lines) == 400
        for content, meaning in lines:
            assert parse(meaning.text(), names=slurp.LABELS) == meaning
            # the annotation marks the same entities; it writes them as they are spelled there
            assert len(meaning.entities) == content["sentence_annotation"].count("[")
