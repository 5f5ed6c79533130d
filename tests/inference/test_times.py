"""Times of words: of the synthesiser's, of segments, and as subtitles."""

import errno
import json
import re
from difflib import SequenceMatcher
from statistics import median
from types import SimpleNamespace

import numpy
import pytest
import soundfile
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora import mini
from speechbrain_summarymixing.inference import commands
from speechbrain_summarymixing.inference.confidence import Word
from speechbrain_summarymixing.inference.subtitles import cues, srt, tsv, vtt
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.inference.transcripts import Transcript


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


def begins(model, folder, utterances):
    """(found, spoken) begin of each word that the synthesiser tells, of what is recognised."""
    from speechbrain_summarymixing.corpora.espeak import SAMPLE_RATE, Espeak, utter

    espeak, spoken, files = Espeak(), [], []
    for index, utterance in enumerate(utterances):
        files.append(str(folder / f"{index}.flac"))
        soundfile.write(files[-1], utter(espeak, utterance), SAMPLE_RATE)
        spoken.append(espeak.begins)
    pairs, right = [], 0
    found = transcribe(model, files, decoder="greedy")
    for utterance, told, transcript in zip(utterances, spoken, found):
        if transcript.text == utterance["text"]:
            right += 1
            places = [match.start() for match in re.finditer(r"\S+", utterance["text"])]
            pairs += [(w.begin, told[p]) for w, p in zip(transcript.words, places) if p in told]
    assert right > 0.5 * len(utterances) and len(pairs) > 3 * right
    return pairs


def test_words_begin_where_the_synthesiser_says(model, tmp_path):
    pytest.importorskip("espeakng_loader", reason="the mini corpus needs the extra [mini]")
    plan = mini.plan(train=1, dev=25, test=40, test_large=1)
    of = {split: [u for u in plan if u["split"] == split] for split in ("dev", "test")}
    found = {}
    for split, utterances in of.items():
        (tmp_path / split).mkdir()
        found[split] = begins(model, tmp_path / split, utterances)
    offset = median(a - b for a, b in found["dev"])
    errors = [abs(a - b - offset) for a, b in found["test"]]
    print(f"offset {offset:.3f} s, median error {median(errors):.3f} s of {len(errors)}")
    assert median(errors) <= 0.06


def test_times_go_on_across_the_segments_of_a_long_file(model, tmp_path):
    utterances = [soundfile.read(file, dtype="float32")[0] for file in FILES]
    pause = 1e-4 * numpy.random.default_rng(0).normal(size=9600).astype("float32")
    parts, starts, samples = [], [], 0
    for utterance in (*utterances, utterances[0]):
        starts.append(samples / 16000)
        parts += [utterance, pause]
        samples += len(utterance) + len(pause)
    path = tmp_path / "long.wav"
    soundfile.write(path, numpy.concatenate(parts), 16000)
    (whole,) = transcribe(model, [path], segment_seconds=4.0, decoder="greedy")
    alone = list(transcribe(model, [*FILES, FILES[0]], decoder="greedy"))
    expected = [(w.word, s + w.begin) for s, one in zip(starts, alone) for w in one.words]
    found = [(word.word, word.begin) for word in whole.words]
    # a segment is not cut where an utterance begins: frames lie otherwise, and a word may be lost
    same = SequenceMatcher(None, *([word for word, _ in said] for said in (found, expected)))
    blocks = [
        (found[a + i][1], expected[b + i][1])
        for a, b, n in same.get_matching_blocks()
        for i in range(n)
    ]
    errors = sorted(abs(a - b) for a, b in blocks)
    assert len(errors) > 0.8 * len(expected)
    assert median(errors) <= 0.04 and errors[int(0.8 * len(errors))] < 0.1
    assert all(w.begin < w.end <= whole.seconds + 0.04 for w in whole.words)
    assert all(a.end <= b.begin + 1e-6 for a, b in zip(whole.words, whole.words[1:]))


def words(*texts_and_times):
    return [Word(text, begin, end, 0.5, True) for text, begin, end in texts_and_times]


def test_cues_part_at_pauses_and_keep_to_a_line_and_seven_seconds():
    said = words(("A", 0.0, 0.2), ("B", 0.3, 0.5), ("C", 1.1, 1.2), ("D", 1.25, 1.3))
    assert cues(said) == [(0.0, 1.0, "A B"), (1.1, 2.1, "C D")]
    random = numpy.random.default_rng(0)
    for _ in range(20):
        ends = numpy.cumsum(random.uniform(0.04, 1.2, size=60))
        sizes = random.integers(1, 30, size=60)
        said = words(*(("x" * n, end - 0.04, end) for n, end in zip(sizes, ends)))
        found = cues(said)
        assert " ".join(text for *_, text in found).split() == [word.word for word in said]
        assert all(len(text) <= 42 and 0 < end - begin <= 7 for begin, end, text in found)
        assert all(a[1] <= b[0] for a, b in zip(found, found[1:]))
    again = words(("A", 0.0, 8.0), ("B", 7.5, 9.0))  # whose first word is too long
    assert cues(again) == [(0.0, 7.5, "A"), (7.5, 9.0, "B")]
    assert cues(words(("y" * 50, 0.0, 0.1))) == [(0.0, 1.0, "y" * 50)] and cues([]) == []


def test_subtitles_and_tables_are_written_as_their_formats_have_it():
    said = words(("A&B", 0.0, 0.2), ("<i>", 3725.5, 3725.9996))
    assert srt(said) == (
        "1\n00:00:00,000 --> 00:00:01,000\nA&B\n\n2\n01:02:05,500 --> 01:02:06,500\n<i>\n"
    )
    assert vtt(said) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nA&amp;B\n\n"
        "01:02:05.500 --> 01:02:06.500\n&lt;i&gt;\n"
    )
    assert tsv(said[:1]) == "begin\tend\tconfidence\tword\n0.000\t0.200\t0.5000\tA&B\n"
    assert srt([]) == "" and vtt([]) == "WEBVTT\n"


def run(capsys, *arguments):
    command = ["transcribe", "--device=cpu", "--decoder=greedy", str(EXAMPLE)]
    status = cli.main([*command, *map(str, arguments)])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("kind", ["text", "json", "srt", "vtt", "tsv"])
def test_a_file_for_each_audio_file(kind, capsys, tmp_path):
    folder, ending = tmp_path / "out", {"text": "txt"}.get(kind, kind)
    files = [FILES[1], "missing.wav"]
    status, out, err = run(capsys, *files, "--format", kind, "--output", folder)
    assert (status, out) == (1, "") and "missing.wav" in err
    assert [path.name for path in folder.iterdir()] == [f"code.{ending}"]
    assert run(capsys, files[0], "--format", kind)[1] == (folder / f"code.{ending}").read_text()
    found = (folder / f"code.{ending}").read_text()
    assert all(word in found for word in SAID["code"].split())
    if kind == "json":
        assert all(word["begin"] < word["end"] for word in json.loads(found)["words"])


def test_a_file_that_cannot_be_written_is_told_and_the_others_are(capsys, tmp_path, monkeypatch):
    def answers(files, **options):
        return (Transcript(file, 1.0, text="A", words=words(("A", 0.0, 0.2))) for file in files)

    monkeypatch.setattr(cli, "_answers", lambda arguments, options: answers)
    long, longer = ("l" * size + ".wav" for size in (250, 251))
    for files in ([longer, long, "short.wav"], [long, "short.wav", longer]):
        status, out, err = run(capsys, *files, "--json", "--output", tmp_path)
        assert (status, out) == (1, "")
        assert f"{'l' * 251}.json: cannot be written (File name too long)" in err
        assert {path.name for path in tmp_path.iterdir()} == {f"{'l' * 250}.json", "short.json"}
        for path in tmp_path.iterdir():
            path.unlink()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(commands, "write_atomically", full)
    arguments = SimpleNamespace(format="text", output=tmp_path, files=[long])
    with pytest.raises(OSError, match="No space left"):  # nor is there for the others
        commands.write_answer(Transcript(long, 1.0, text="A"), arguments)


def test_formats_that_do_not_go_together_are_refused(capsys, tmp_path):
    file, other = FILES[0], tmp_path / "bus.wav"
    for arguments, told in (
        ([file, FILES[1], "--format", "srt"], "give --output FOLDER"),
        ([file, "--format", "srt", "--json"], "--json is given too"),
        ([file, "--nbest", "2"], "give --format json"),
        ([file, other, "--output", tmp_path], "2 files are called bus"),
        ([file, "--output", file], "is no folder"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (1, "") and told in err, arguments
