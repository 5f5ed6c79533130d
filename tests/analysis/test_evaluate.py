"""``summarymixing evaluate`` on manifests and folders, good and bad."""

import json
import shutil
import tracemalloc

import pytest
import soundfile
from hypothesis import given
from hypothesis.strategies import lists, sampled_from
from speechbrain.utils.metric_stats import ErrorRateStats
from tiny import EXAMPLE, FILES, SAID, write_csv

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis import evaluate as module
from speechbrain_summarymixing.analysis.evaluate import measure


def evaluate(capsys, *arguments):
    command = ["evaluate", "--device=cpu", "--decoder=greedy", "--no-progress", str(EXAMPLE)]
    status = cli.main([*command, *map(str, arguments)])
    return status, *capsys.readouterr()


def rows():
    """Of a manifest: what is said in the code's clip is written with one word more."""
    said = {"bus": SAID["bus"], "code": f"{SAID['code']} AND", "reminder": SAID["reminder"]}
    return [
        {"ID": name, "duration": 2.0, "wav": wav, "spk_id": "", "wrd": said[name]}
        for name, wav in zip(said, FILES)
    ]


def test_errors_intervals_and_alignments_of_a_manifest(capsys, tmp_path):
    code = rows()[1]
    write_csv(tmp_path / "one.csv", [code])
    manifest, alignments = tmp_path / "one.csv", tmp_path / "wer.txt"
    status, out, err = evaluate(capsys, manifest, "--json", "--alignments", alignments)
    found = json.loads(out)
    words = len(code["wrd"].split())
    assert (status, err, found["not_measured"]) == (0, "", {})
    assert (found["utterances"], found["words"]) == (1, words)
    assert found["WER"] == pytest.approx(100 / words, abs=1e-3)
    assert found["WER_95"] == [found["WER"]] * 2  # one utterance does not vary
    assert found["CER"] == pytest.approx(100 * 4 / len(code["wrd"]), abs=1e-3)
    assert found["audio_seconds"] == pytest.approx(soundfile.info(FILES[1]).duration, abs=1e-3)
    assert found["real_time_factor"] > 0
    assert "AND" in alignments.read_text() and "%WER" in alignments.read_text()


def test_what_cannot_be_measured_is_named_once_and_the_others_go_on(capsys, tmp_path):
    silent = {**rows()[0], "ID": "silent", "wrd": " "}
    gone = {**rows()[0], "ID": "gone", "wav": tmp_path / "gone.wav"}
    write_csv(tmp_path / "set.csv", [silent, *rows(), gone])
    status, out, err = evaluate(capsys, tmp_path / "set.csv")
    assert status == 1 and "3 utterances" in out and "WER" in out and "real-time factor" in out
    report = [line for line in err.splitlines() if "set.csv" in line]
    assert len(report) == 1 and "2 utterances cannot be measured" in report[0]
    assert "silent: no transcript" in err and "gone: " in err and "gone.wav" in err
    write_csv(tmp_path / "bad.csv", [silent])
    status, out, err = evaluate(capsys, tmp_path / "bad.csv")
    assert (status, out) == (1, "") and "no utterance can be measured" in err
    write_csv(tmp_path / "twice.csv", rows()[:1] * 2)
    assert "IDs occur more than once" in evaluate(capsys, tmp_path / "twice.csv")[2]


def test_folders_of_audio_and_texts_and_of_kaldi_and_nemo_say_the_same(capsys, tmp_path):
    folder, kaldi, nemo = tmp_path / "audio", tmp_path / "kaldi", tmp_path / "set.jsonl"
    folder.mkdir()
    kaldi.mkdir()
    for name, wav in zip(SAID, FILES):
        shutil.copy(wav, folder)
        (folder / f"{name}.txt").write_text(SAID[name].lower() + ".\n")
    pairs = list(zip(SAID, FILES))
    (kaldi / "wav.scp").write_text("".join(f"{name} {wav}\n" for name, wav in pairs))
    (kaldi / "text").write_text("".join(f"{name} {SAID[name]}\n" for name, _ in pairs))
    entries = [{"audio_filepath": w, "duration": 2.0, "text": SAID[n]} for n, w in pairs]
    nemo.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    found = []
    for source, *options in ((folder, "--language=en"), (kaldi,), (nemo,)):
        status, out, err = evaluate(capsys, source, "--json", *options)
        assert (status, err) == (0, "")
        found.append(json.loads(out))
    keys = ("utterances", "words", "WER", "CER")
    assert len({tuple(one[key] for key in keys) for one in found}) == 1
    assert found[0]["utterances"] == 3 and 0 < found[0]["WER"] < 20
    assert json.loads(evaluate(capsys, folder, "--json")[1])["WER"] > 90  # other capitals


def test_a_text_that_is_no_utf8_is_told(capsys, tmp_path):
    shutil.copy(FILES[0], tmp_path / "bus.flac")
    (tmp_path / "bus.txt").write_bytes(b"CAF\xc9\n")
    status, _, err = evaluate(capsys, tmp_path)
    assert status == 1 and "bus.txt: cannot read this file (it is not UTF-8 text)" in err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--language", "English"], "language is 'English'"),
        (["--stream", "--chunk-ms", "0"], "chunk_ms is 0"),
        (["--stream", "--chunk-ms", "100"], "chunk_ms is 100"),
        (["--segments", "vad", "--against", "nowhere"], "nowhere"),
    ],
)
def test_options_that_cannot_be_are_told_before_anything_is_heard(
    capsys, tmp_path, monkeypatch, options, message
):
    write_csv(tmp_path / "set.csv", rows())
    monkeypatch.setattr(module, "_heard", lambda *_: pytest.fail("something was heard"))
    status, out, err = evaluate(capsys, tmp_path / "set.csv", *options)
    assert (status, out) == (1, "") and message in err


def test_alignments_that_cannot_be_written_lose_no_result(capsys, tmp_path):
    write_csv(tmp_path / "set.csv", rows()[:1])
    status, out, err = evaluate(capsys, tmp_path / "set.csv", "--alignments", tmp_path)
    assert status == 1 and "WER" in out
    assert f"--alignments is {tmp_path}, which cannot be written" in err


def test_a_transcript_without_a_word_is_none(capsys, tmp_path):
    write_csv(tmp_path / "set.csv", [*rows()[:1], {**rows()[1], "wrd": "?!"}])
    status, out, err = evaluate(capsys, tmp_path / "set.csv", "--language", "en", "--json")
    assert status == 1 and json.loads(out)["not_measured"] == {"code": "no transcript"}
    assert "nan" not in out.lower() and "Warning" not in err


def test_a_part_of_a_file_is_heard_alone(capsys, tmp_path):
    nemo, end = tmp_path / "set.jsonl", soundfile.info(FILES[0]).duration
    wav = tmp_path / "both.wav"
    samples = [soundfile.read(file)[0] for file in FILES[:2]]
    soundfile.write(wav, [*samples[0], *samples[1]], 16000)
    long = soundfile.info(FILES[1]).duration
    entry = {"audio_filepath": str(wav), "duration": long, "offset": end, "text": SAID["code"]}
    nemo.write_text(json.dumps(entry) + "\n")
    found = json.loads(evaluate(capsys, nemo, "--json")[1])
    assert found["WER"] == 0 and found["audio_seconds"] == pytest.approx(long, abs=0.01)


def test_two_models_have_a_difference_and_a_stream_its_chunks(capsys, tmp_path):
    write_csv(tmp_path / "set.csv", rows())
    status, out, _ = evaluate(capsys, tmp_path / "set.csv", "--json", "--against", EXAMPLE)
    found = json.loads(out)
    assert status == 0 and found["against"]["WER"] == found["WER"]
    assert found["difference"] == {"WER": 0, "WER_95": [0, 0], "CER": 0, "CER_95": [0, 0]}
    batches = evaluate(capsys, tmp_path / "set.csv", "--stream", "--batch-seconds=9")[2]
    assert "given with batch_seconds" in batches and "leave these out" in batches
    assert "without --stream" in evaluate(capsys, tmp_path / "set.csv", "--chunk-ms=640")[2]
    command = ["evaluate", "--device=cpu", str(EXAMPLE), str(tmp_path / "set.csv")]
    assert cli.main([*command, "--stream", "--chunk-ms=1280", "--json", "--no-progress"]) == 0
    assert json.loads(capsys.readouterr().out)["words"] == found["words"]
    assert cli.main([*command, "--stream", "--beam-size=3"]) == 1
    assert "--beam-size is 3, but --decoder greedy has no beam" in capsys.readouterr().err


WORDS = sampled_from(["A", "AB", "B", "ÄÖ"])


@given(
    lists(lists(WORDS, min_size=1, max_size=9), min_size=3, max_size=3),
    lists(lists(WORDS, max_size=9), min_size=3, max_size=3),
)
def test_edits_are_those_of_speechbrain(reference, said):
    edits, scores = measure("abc", reference, said)
    for name, split in (("WER", False), ("CER", True)):
        stats = ErrorRateStats(split_tokens=split)
        stats.append("abc", said, reference)
        expected = [{key: row[key] for key in edits[name][0]} for row in stats.scores]
        assert edits[name] == expected
    assert scores["words"] == sum(map(len, reference))


def test_an_hour_in_one_utterance_needs_no_table_of_all_words_by_all_words():
    words = [f"{number}" for number in range(9000)]
    tracemalloc.start()
    _, scores = measure(["hour"], [words], [words[:4000] + words[4001:]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scores["WER"] == pytest.approx(100 / 9000, abs=1e-4)
    assert peak < 100 * 8 * len(words)  # of Python's own; a table has 8 * 9000 * 9000 bytes
