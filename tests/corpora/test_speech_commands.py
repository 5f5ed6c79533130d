import logging
import os
import shutil

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import speech_commands
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError

SPEAKERS = {"train": "abcd", "valid": "ef", "test": "gh"}


@pytest.fixture
def corpus(tmp_path):
    """The ten commands and two other words, a second each, and a noise that tells its place."""
    folder, lists = tmp_path / "corpus", {"valid": [], "test": []}
    for word in (*speech_commands.COMMANDS, "bed", "wow"):
        (folder / word).mkdir(parents=True)
        for split, speakers in SPEAKERS.items():
            for speaker in speakers:
                name = f"{word}/{speaker}_nohash_0.wav"
                soundfile.write(folder / name, numpy.full(1600, 0.1), 16000)
                lists.get(split, []).append(name)
    for split, name in speech_commands.LISTS.items():
        (folder / name).write_text("\n".join(lists[split]) + "\n")
    (folder / speech_commands.NOISES).mkdir()
    ramp = numpy.linspace(0, 1, 30 * 16000, endpoint=False)
    soundfile.write(folder / speech_commands.NOISES / "ramp.wav", ramp, 16000)
    return folder


def prepared(corpus, folder, **options):
    paths = speech_commands.prepare(corpus, folder, progress=False, **options)
    return {split: read_manifest(path) for split, path in paths.items()}


def test_all_words_are_split_by_the_official_lists(corpus, tmp_path):
    rows = prepared(corpus, tmp_path / "csv")
    assert {split: len(part) for split, part in rows.items()} == {
        "train": 48,
        "valid": 24,
        "test": 24,
    }
    for split, part in rows.items():
        assert {row.spk_id for row in part} == set(SPEAKERS[split])
        assert all(row.wav.split("/")[-2] == row.wrd for row in part)


def test_some_words(corpus, tmp_path):
    rows = prepared(corpus, tmp_path / "csv", words="bed, yes")
    assert {row.wrd for row in rows["train"]} == {"bed", "yes"} and len(rows["train"]) == 8


def test_commands_have_as_many_unknown_words_and_silences_as_of_a_command(corpus, tmp_path):
    rows = prepared(corpus, tmp_path / "a", words="commands")
    for split, speakers in SPEAKERS.items():
        words = [row.wrd for row in rows[split]]
        assert {word: words.count(word) for word in words} == dict.fromkeys(
            (*speech_commands.COMMANDS, "unknown", "silence"), len(speakers)
        )
        low, high = speech_commands.PARTS[split]
        for row in rows[split]:
            if row.wrd == "silence":
                noise, rate = soundfile.read(row.wav)
                assert len(noise) == rate == 16000
                assert low - 1e-3 <= noise.min() and noise.max() <= high + 1e-3
    again = prepared(corpus, tmp_path / "b", words="commands")
    for split in rows:
        assert [row.ID for row in rows[split]] == [row.ID for row in again[split]]
    other = prepared(corpus, tmp_path / "b", words="commands", seed=1)
    assert [row.ID for row in other["train"]] != [row.ID for row in rows["train"]]


def test_it_is_made_anew_where_words_change_and_not_otherwise(corpus, tmp_path):
    path = speech_commands.prepare(corpus, tmp_path, words="yes,no", progress=False)["train"]
    made = path.stat().st_mtime_ns
    speech_commands.prepare(corpus, tmp_path, words="yes,no", progress=False)
    assert path.stat().st_mtime_ns == made
    speech_commands.prepare(corpus, tmp_path, words="no,bed", progress=False)
    assert {row.wrd for row in read_manifest(path)} == {"no", "bed"}


def test_silences_are_written_anew_where_the_folder_was_moved(corpus, tmp_path):
    prepared(corpus, tmp_path / "old", words="commands")
    shutil.move(tmp_path / "old", tmp_path / "new")
    rows = prepared(corpus, tmp_path / "new", words="commands")
    silences = [row.wav for row in rows["train"] if row.wrd == "silence"]
    assert silences and all(str(tmp_path / "new") in wav for wav in silences)
    assert all(map(os.path.isfile, silences))


def test_listed_words_without_a_folder_are_left_out(corpus, tmp_path, caplog):
    for word in ("bed", "wow"):
        shutil.rmtree(corpus / word)
    caplog.set_level(logging.INFO)
    rows = prepared(corpus, tmp_path / "csv")
    assert {row.wrd for row in rows["test"]} == set(speech_commands.COMMANDS)
    assert caplog.text.count("no folder bed, wow: 8 lines of its lists are left out") == 1


def test_noises_too_short_for_a_second_in_each_split_are_left_out(corpus, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = corpus / speech_commands.NOISES
    for name, seconds in (("long", 10), ("short", 9.99)):
        noise = numpy.arange(round(16000 * seconds)) // 10
        soundfile.write(folder / f"{name}.wav", noise.astype("int16"), 16000)
    (folder / "ramp.wav").unlink()
    rows = prepared(corpus, tmp_path / "csv", words="commands")
    places = {split: set() for split in rows}
    for split, part in rows.items():
        for row in part:
            if row.wrd == "silence":
                assert row.duration == 1.0
                places[split] |= set(soundfile.read(row.wav, dtype="int16")[0])
    assert not places["valid"] & places["test"]
    assert not places["train"] & (places["valid"] | places["test"])
    assert "1 noises are left out: shorter than 10 s" in caplog.text and "short.wav" in caplog.text
    (folder / "long.wav").unlink()
    with pytest.raises(UserError, match=r"all 1 noises are shorter than 10 s(.|\n)*wav: 10.0 s"):
        prepared(corpus, tmp_path / "csv", words="commands")
    assert len(prepared(corpus, tmp_path / "csv")["test"]) == 24


def spoil(corpus, what):
    if what == "list":
        (corpus / "testing_list.txt").unlink()
    elif what == "file":
        (corpus / "yes/g_nohash_0.wav").unlink()
    elif what == "noise":
        (corpus / speech_commands.NOISES / "ramp.wav").unlink()
    elif what == "audio":
        (corpus / "yes/a_nohash_0.wav").write_bytes(b"no audio")
    elif what == "word":
        for file in (corpus / "stop").iterdir():
            file.rename(file.with_suffix(".txt"))
        for name in speech_commands.LISTS.values():
            lines = (corpus / name).read_text().splitlines()
            (corpus / name).write_text("\n".join(x for x in lines if not x.startswith("stop")))


@pytest.mark.parametrize(
    "what, options, message",
    [
        ("list", {}, "testing_list.txt: no such file: give the folder"),
        ("file", {}, "1 files of its lists are missing(.|\n)*yes/g_nohash_0.wav"),
        ("noise", {"words": "commands"}, "no .wav, of which silence is made"),
        ("audio", {}, "yes/a_nohash_0.wav"),
        ("word", {"words": "commands"}, "has no folder stop, but bed"),
        (None, {"words": "maybe"}, "has no folder maybe"),
        (None, {"words": ""}, "--words is '', which makes classes of no word alone, but .* 2 or"),
        (None, {"words": "yes"}, "--words is 'yes', which makes classes of yes alone"),
        (None, {"words": "yes, yes,"}, "which makes classes of yes alone"),
        (None, {"splits": ["dev"]}, "no split dev: train, valid, test"),
    ],
)
def test_errors(corpus, tmp_path, what, options, message):
    spoil(corpus, what)
    with pytest.raises(UserError, match=message):
        speech_commands.prepare(corpus, tmp_path / "csv", progress=False, **options)


def test_the_words_of_real_speech(speech_data, tmp_path):
    rows = prepared(speech_data / "speech_commands", tmp_path)
    assert [len(rows[split]) for split in ("train", "valid", "test")] == [840, 140, 140]
    words = sorted("yes no up down bed cat happy".split())
    assert sorted({row.wrd for row in rows["test"]}) == words
    speakers = {split: {row.spk_id for row in part} for split, part in rows.items()}
    assert not speakers["test"] & (speakers["train"] | speakers["valid"])
