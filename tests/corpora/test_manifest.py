import json
import math
import os
from dataclasses import replace

import numpy
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_summarymixing.corpora import manifest
from speechbrain_summarymixing.corpora.checks import check_manifests, sensible
from speechbrain_summarymixing.corpora.manifest import (
    Utterance,
    fingerprint,
    probe,
    read_manifest,
    remade,
    write_manifest,
)
from speechbrain_summarymixing.errors import UserError

SEGMENTS = b"ID,duration,wav,wrd,start,stop\n"
CHANNELS = b"ID,duration,wav,wrd,channel\n"
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "x.wav"
    soundfile.write(path, numpy.zeros(8000), 16000)
    return str(path)


@given(
    rows=st.lists(
        st.builds(
            Utterance,
            *(TEXT, st.floats(0, 1e6), TEXT, TEXT, TEXT),
            start=st.just(0.0) | st.floats(0, 1e3),
            stop=st.just(math.inf) | st.floats(1e3, 1e6, exclude_min=True),
            channel=st.none() | st.integers(0, 9),
        ).filter(lambda u: "$" not in u.wav and all((u.ID, u.wav, u.wrd))),
        min_size=1,
        max_size=5,
    )
)
def test_what_is_written_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("m") / "x.csv"
    write_manifest(path, rows)
    assert read_manifest(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["x.csv"]


def test_columns_of_other_recipes(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("ID, wav, format, duration, wrd\na,$data_root/a.wav,wav,1.5,HELLO YOU\n")
    assert read_manifest(path, data_root="/corpus") == [
        Utterance("a", 1.5, "/corpus/a.wav", "", "HELLO YOU")
    ]
    with pytest.raises(
        UserError, match="line 2: wav has .data_root: give --data_folder or --data-"
    ):
        read_manifest(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "cannot read this manifest .No such file"),
        (b"\xff\xfe\xff", "not UTF-8"),
        (b"", "no column ID, duration, wav, wrd.*it is empty"),
        (b"ID,wav\na,b\n", "no column duration, wrd.*it is ID, wav"),
        (b"ID,duration,wav,wrd\n", "has no utterance"),
        (b"ID,duration,wav,wrd\na,1.0,x.wav\n", "line 2: no value for wrd"),
        (b"ID,duration,wav,wrd\na,1.0,x.wav,A, B\n", "line 2: more values .* in quotes"),
        (b"ID,duration,wav,wrd\na,long,x.wav,A\n", "line 2: duration is 'long'"),
        (b"ID,duration,wav,wrd\n,1.0,x.wav,A\n", "line 2: no value for ID"),
        (b"ID,duration,wav,wrd\na,,x.wav,A\n", "line 2: duration is ''"),
        (b'ID,duration,wav,wrd\na,1.0,x.wav,"' + b"A" * 200000, "is a quotation mark open"),
        (SEGMENTS + b"a,1,x.wav,A,one,2\n", "line 2: start is 'one' of a, but must be seconds"),
        (SEGMENTS + b"a,1,x.wav,A,1,2 s\n", "line 2: stop is '2 s' of a, but must be seconds"),
        (SEGMENTS + b"a,1,x.wav,A,2,2\n", "line 2: a starts at 2 and stops at 2 s, but"),
        (SEGMENTS + b"a,1,x.wav,A,-1,2\n", "line 2: a starts at -1 and stops at 2 s, but"),
        (SEGMENTS + b"a,1,x.wav,A,nan,2\n", "line 2: a starts at nan"),
        (CHANNELS + b"a,1,x.wav,A,B\n", "line 2: channel is 'B' of a, but must be a whole number"),
        (CHANNELS + b"a,1,x.wav,A,-1\n", "line 2: channel is '-1' of a"),
        (CHANNELS + b"a,1,x.wav,A,0.5\n", "line 2: channel is '0.5' of a"),
        (CHANNELS + b"a,1,x.wav,A,nan\n", "line 2: channel is 'nan' of a"),
    ],
)
def test_unreadable_manifests(tmp_path, content, message):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert str(path) in str(error.value)


def test_one_report_of_every_problem(wav, tmp_path):
    manifests = {
        "train": [
            Utterance("gone", 1.0, str(tmp_path / "gone.wav"), "s", "A"),
            Utterance("none", 0.0, wav, "s", "A"),
            Utterance("less", -1.0, wav, "s", "A"),
            Utterance("nan", math.nan, wav, "s", "A"),
            Utterance("silent", 1.0, wav, "s", "  "),
            Utterance("foreign", 1.0, wav, "s", "É"),
            Utterance("twice", 1.0, wav, "s", "A"),
            Utterance("good", 1.0, wav, "s", "A"),
        ],
        "test": [Utterance("twice", 1.0, wav, "t", "A")],
        "valid": [],
    }
    with pytest.raises(UserError) as error:
        check_manifests(manifests, spell=lambda text: "no É" if "É" in text else None)
    report = str(error.value)
    for expected in (
        "1 missing audio files:\n  train: gone",
        "3 durations that are not above 0",
        "train: less: -1 s",
        "1 empty transcripts:\n  train: silent",
        "train: foreign: no É",
        "2 IDs that occur more than once",
        "test: twice",
        "valid: no utterance",
    ):
        assert expected in report, expected
    assert "good" not in report


def test_a_long_report_is_cut_and_counted(wav):
    rows = [Utterance(str(i), 0.0, wav, "", "A") for i in range(50)]
    with pytest.raises(UserError, match="50 durations that are not above 0(.|\n)*… and 30 more"):
        check_manifests({"train": rows})


def test_audio_is_opened_and_its_duration_compared(wav, tmp_path):
    whole, cut = tmp_path / "whole.flac", tmp_path / "cut.flac"
    soundfile.write(whole, numpy.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "text.wav").write_text("no audio")
    rows = [
        Utterance("near", 0.55, wav, "", "A"),
        Utterance("absurd", 1e5, wav, "", "A"),
        Utterance("little", 0.3, wav, "", "A"),
        Utterance("cut", 1.0, str(cut), "", "A"),
        Utterance("text", 1.0, str(tmp_path / "text.wav"), "", "A"),
        Utterance("gone", 1.0, str(tmp_path / "gone.wav"), "", "A"),
        Utterance("whole", 1.0, str(whole), "", "A"),
    ]
    with pytest.raises(UserError) as error:
        check_manifests({"train": rows}, open_audio=True, progress=False)
    report = str(error.value)
    for expected in (
        "2 durations that are not the audio's:\n  train: absurd: 100000 s, but the audio has 0.5 s",
        "train: little: 0.3 s",
        "2 unreadable audio files:\n  train: cut: ",
        "cut short, the last of its 16000 samples is not there",
        "1 missing audio files:\n  train: gone",
    ):
        assert expected in report, expected
    assert "near" not in report and "whole:" not in report
    check_manifests({"train": rows[:1]}, open_audio=True, progress=False)


def test_segments_are_compared_with_their_file_which_is_opened_once(wav, tmp_path, monkeypatch):
    def row(key, duration, start, stop, file=wav):
        return Utterance(key, duration, file, "", "A", start, stop)

    opened = []
    original = manifest.audio_info
    monkeypatch.setattr(
        manifest, "audio_info", lambda path, **kw: opened.append(path) or original(path, **kw)
    )
    train = [row("head", 0.2, 0.0, 0.2), row("tail", 0.3, 0.2, math.inf)]
    test = [row("rounded", 0.45, 0.1, 0.55), row("whole", 0.5, 0.0, math.inf)]
    check_manifests({"train": train, "test": test}, open_audio=True, progress=False)
    assert opened == [wav]
    gone = str(tmp_path / "gone.wav")
    bad = [
        row("after", 0.2, 0.5, 0.7),
        row("late", 0.6, 0.1, 0.7),
        row("long", 0.5, 0.1, 0.3),
        row("gone1", 1.0, 0.0, 1.0, gone),
        row("gone2", 1.0, 1.0, 2.0, gone),
    ]
    with pytest.raises(UserError) as error:
        check_manifests({"train": train + bad}, open_audio=True, progress=False)
    report = str(error.value)
    for expected in (
        f"2 segments that are not in their audio:\n  train: after: {wav}: ends at 0.5 s, but start"
        " and stop, in seconds, are 0.5 and 0.7\n  train: late: ",
        "train: long: 0.5 s, but its start and stop are 0.1 and 0.3",
        "2 missing audio files:\n  train: gone1",
    ):
        assert expected in report, expected
    assert "head" not in report and "tail" not in report


def test_a_changed_segment_or_channel_is_another_manifest(wav):
    rows = [Utterance("a", 0.2, wav, "", "A", start, start + 0.2) for start in (0.0, 0.1)]
    rows += [replace(rows[0], channel=channel) for channel in (0, 1)]
    assert len({fingerprint({"train": [row]}) for row in rows}) == 4
    assert fingerprint({"train": rows}) == fingerprint({"train": rows[::-1]})


def test_channels_of_a_file(tmp_path):
    wav = tmp_path / "two.wav"
    soundfile.write(wav, numpy.random.default_rng(0).normal(0, 0.1, (8000, 2)), 16000)
    path = tmp_path / "x.csv"
    lines = [f"a,0.5,{wav},A,0", f"b,0.5,{wav},B,1.0", f"c,0.5,{wav},C,"]
    path.write_text("ID,duration,wav,wrd,channel\n" + "\n".join(lines))
    rows = read_manifest(path)
    assert [u.channel for u in rows] == [0, 1, None]
    assert [u.is_segment for u in rows] == [True, True, False]
    check_manifests({"train": rows}, open_audio=True, progress=False)
    wrong = f"far: {wav}: has no channel 2, but 2, which are counted from 0"
    with pytest.raises(UserError, match=f"1 segments are not in their audio:\n  {wrong}"):
        probe([("far", wav, "", "A", 0.0, math.inf, 2)], progress=False)
    rows.append(Utterance("far", 0.5, str(wav), "", "A", channel=2))
    with pytest.raises(UserError, match=f"segments that are not in their audio:\n  train: {wrong}"):
        check_manifests({"train": rows}, open_audio=True, progress=False)


def nemo(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n")
    return path


def test_json_lines_of_nemo(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    path = nemo(
        folder / "train.json",
        {"audio_filepath": "wavs/a.1.wav", "duration": 1.5, "text": "hey you", "lang": "en"},
        {"audio_filepath": "../b.flac", "duration": 2, "text": "ho", "offset": 0.25, "speaker": 0},
        {"audio_filepath": str(tmp_path / "c.flac"), "duration": 1, "text": "", "offset": None},
        {"audio_filepath": "d.wav", "duration": 1, "text": "B", "channel": 1},
        {"audio_filepath": "d.wav", "duration": 1, "text": "A", "channel": 0, "offset": 0},
    )
    assert read_manifest(path) == [
        Utterance("corpus-wavs-a-1", 1.5, str(folder / "wavs/a.1.wav"), "", "hey you"),
        Utterance("b-0_250-2_250", 2.0, str(tmp_path / "b.flac"), "0", "ho", 0.25, 2.25),
        Utterance("c", 1.0, str(tmp_path / "c.flac"), "", ""),
        Utterance("corpus-d-channel1", 1.0, str(folder / "d.wav"), "", "B", channel=1),
        Utterance(
            *("corpus-d-0_000-1_000-channel0", 1.0, str(folder / "d.wav"), "", "A", 0.0, 1.0, 0)
        ),
    ]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: '{' is no JSON object with audio_filepath, text, duration"),
        ("[1]", "is no JSON object"),
        ('{"audio_filepath": "x.wav", "duration": 1}', "line 2: .*is no JSON object with"),
        ('{"audio_filepath": "x.wav", "duration": "x", "text": ""}', "duration is 'x' of "),
        ('{"audio_filepath": "x.wav", "duration": null, "text": ""}', "duration is None of "),
        ('{"audio_filepath": "x.wav", "duration": 1, "text": null}', "is no JSON object with"),
        ('{"audio_filepath": "x.wav", "duration": 1, "text": "", "offset": -1}', "starts at -1"),
        ('{"audio_filepath": "x.wav", "duration": 0, "text": "", "offset": 1}', "stops at 1 s"),
        (
            '{"audio_filepath": "x.wav", "duration": 1, "text": "", "channel": "A"}',
            "channel is 'A'",
        ),
    ],
)
def test_json_lines_that_are_none_of_nemo(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(UserError, match=message) as error:
        read_manifest(path)
    assert f"{path}, line 2: " in str(error.value)


def test_what_is_too_short_or_too_long_to_train_on_is_left_out_and_told(wav):
    rows = [Utterance(str(seconds), seconds, wav, "", "A") for seconds in (0.05, 0.1, 30.0, 35.0)]
    kept, report = sensible(rows, min_seconds=0.1, max_seconds=30.0)
    assert [u.duration for u in kept] == [0.1, 30.0]
    assert "2 of 4 utterances (0.01 h)" in report and "35.0: 35 s" in report
    assert sensible(kept, min_seconds=0.1, max_seconds=30.0) == (kept, None)


def test_shared_speakers_are_a_warning(wav):
    def rows(split, speakers):
        return [Utterance(f"{split}{s}", 1.0, wav, s, "A") for s in speakers]

    manifests = {"train": rows("a", "xyz"), "dev": rows("b", "uv"), "test": rows("c", "zw")}
    [warning] = check_manifests(manifests)
    assert "1 speakers of test" in warning and warning.endswith(": z")
    assert check_manifests({"train": rows("a", [""]), "test": rows("c", ["_"])}) == []


def test_probe_reads_durations_and_names_every_bad_file(wav, tmp_path):
    rows = probe([("b", wav, "s", "B"), ("a", wav, "s", "A")], progress=False)
    assert [(u.ID, u.duration) for u in rows] == [("a", 0.5), ("b", 0.5)]
    bad = [(str(i), str(tmp_path / f"bad{i}.wav"), "s", "A") for i in range(2)]
    with pytest.raises(UserError) as error:
        probe([("b", wav, "s", "B"), *bad], progress=False)
    assert "2 of 3 files" in str(error.value) and "bad0" in str(error.value)
    rows = probe(
        [("a", wav, "", "A", 0.1, 0.3), ("b", wav, "", "B", 0.3, math.inf)], progress=False
    )
    assert [u.duration for u in rows] == pytest.approx([0.2, 0.2])
    with pytest.raises(UserError, match="1 segments are not in their audio:\n  c: "):
        probe([("a", wav, "", "A", 0.1, 0.3), ("c", wav, "", "B", 0.3, 9)], progress=False)
    assert "bad1" in str(error.value)


def test_a_manifest_is_made_again_only_when_its_input_changes(wav, tmp_path):
    calls = []

    def make():
        calls.append(1)
        return [Utterance("a", 0.5, wav, "s", "A")]

    path = tmp_path / "m.csv"
    for _ in range(2):
        remade(path, [wav], make)
    assert len(calls) == 1
    os.utime(wav, ns=(1, 1))
    remade(path, [wav], make)
    path.unlink()
    remade(path, [wav], make)
    assert len(calls) == 3
