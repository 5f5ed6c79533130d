"""The trained model in examples/ on speech that it has not heard, and the command that uses it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import soundfile
import torch
import torchaudio
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.utils.metric_stats import ErrorRateStats
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora import mini
from speechbrain_summarymixing.corpora.manifest import Utterance, read_manifest, write_manifest
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


@pytest.fixture(scope="module")
def unheard(tmp_path_factory):
    """The mini corpus's test set: voices and sentences that are not in its training part."""
    pytest.importorskip("espeakng_loader", reason="the mini corpus needs the extra [mini]")
    folder = tmp_path_factory.mktemp("mini")
    paths = mini.prepare(
        folder / "corpus",
        folder / "csv",
        splits=["test"],
        train=1,
        dev=1,
        test_large=1,
        progress=False,
    )
    return read_manifest(paths["test"])


def texts(model, utterances, **options):
    return [t.text for t in transcribe(model, [u.wav for u in utterances], **options)]


def test_word_error_rate_and_confidence_on_unheard_voices_and_sentences(model, unheard):
    stats, found = ErrorRateStats(), list(transcribe(model, [u.wav for u in unheard]))
    words = [transcript.text.split() for transcript in found]
    stats.append([u.ID for u in unheard], words, [u.wrd.split() for u in unheard])
    assert len(unheard) == 200
    assert stats.summarize("WER") < 1.5  # 0.51% when it was trained
    right = [
        word
        for transcript, utterance in zip(found, unheard)
        if transcript.text == utterance.wrd
        for word in transcript.words
    ]
    assert len(right) > 1000 and sum(not word.sure for word in right) <= 0.01 * len(right)


def test_the_batch_does_not_change_the_words(model, unheard):
    some = unheard[::8]
    assert texts(model, some, batch_files=1) == texts(model, some, batch_files=16)


def test_speechbrain_transcribes_a_file_by_itself():
    model = EncoderDecoderASR.from_hparams(source=str(EXAMPLE), run_opts={"device": "cpu"})
    for file, text in zip(FILES, SAID.values()):
        assert model.transcribe_file(file) == text


def run(capsys, *arguments):
    status = cli.main(["transcribe", "--device=cpu", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_one_file_prints_its_text_alone(capsys):
    assert run(capsys, EXAMPLE, FILES[0])[:2] == (0, SAID["bus"] + "\n")


def test_many_files_print_a_line_each_in_order(capsys):
    status, out, _ = run(capsys, EXAMPLE, *reversed(FILES), FILES[0])
    expected = [*reversed(list(zip(FILES, SAID.values()))), (FILES[0], SAID["bus"])]
    assert status == 0
    assert out.splitlines() == [f"{file}\t{text}" for file, text in expected]


def test_json_is_an_object_for_each_file(capsys):
    _, out, _ = run(capsys, "--json", EXAMPLE, *FILES)
    for line, file, text in zip(out.splitlines(), FILES, SAID.values(), strict=True):
        seconds = soundfile.info(file).duration
        found = json.loads(line)
        words = found.pop("words")
        assert found == {"file": file, "seconds": seconds, "text": text}
        assert [word["word"] for word in words] == text.split()
        assert all(word["sure"] and 0.05 < word["confidence"] <= 1 for word in words)


@pytest.mark.parametrize("kind", ["wav", "mp3"])
@pytest.mark.parametrize("rate", [16000, 22050, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_other_formats_rates_and_channels_say_the_same(capsys, tmp_path, kind, rate, channels):
    samples = torch.from_numpy(soundfile.read(FILES[0], dtype="float32")[0])
    samples = torchaudio.functional.resample(samples, 16000, rate)
    path = tmp_path / f"bus.{kind}"
    soundfile.write(path, samples.repeat(channels, 1).T.numpy(), rate)
    assert run(capsys, EXAMPLE, path)[:2] == (0, SAID["bus"] + "\n")


def test_a_bad_file_gets_its_error_and_the_others_their_text(capsys, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio")
    status, out, err = run(capsys, EXAMPLE, FILES[0], bad, tmp_path / "none.wav", FILES[1])
    assert status == 1
    assert out.splitlines() == [f"{FILES[0]}\t{SAID['bus']}", f"{FILES[1]}\t{SAID['code']}"]
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "bad.wav" in errors[0] and "none.wav" in errors[1]


def test_words_beside_the_audio_are_not_written_over(capsys, tmp_path):
    audio, words = shutil.copy(FILES[1], tmp_path / "code.flac"), tmp_path / "code.txt"
    words.write_text("as it is")
    command = ["transcribe", "--device=cpu", str(EXAMPLE), str(audio), "--output", str(tmp_path)]
    assert cli.main(command) == 1
    assert "which has code.txt beside the audio" in capsys.readouterr().err
    assert words.read_text() == "as it is"
    assert cli.main([*command, "--format", "srt"]) == 0 and (tmp_path / "code.srt").is_file()


def test_names_that_are_no_utf8_or_hold_tabs_and_newlines_get_a_line_each(capsys, tmp_path):
    wav = Path(FILES[0])
    strange = [os.fsdecode(os.fsencode(tmp_path) + b"/\xff.flac"), str(tmp_path / "a\tb\nc.flac")]
    for name in strange:
        shutil.copy(wav, name)
    command = [sys.executable, "-m", "speechbrain_summarymixing.cli", "transcribe", "--no-progress"]
    for options in ([], ["--json"]):
        run = subprocess.run(
            [*command, *options, EXAMPLE, *strange], capture_output=True, check=True
        )
        lines = run.stdout.decode().splitlines()
        assert len(lines) == 2
        if options:
            assert [json.loads(line)["file"] for line in lines] == strange
            assert all(json.loads(line)["text"] == SAID["bus"] for line in lines)
        else:
            assert [line.split("\t") for line in lines] == [
                [f"{tmp_path}/\\udcff.flac", SAID["bus"]],
                [f"{tmp_path}/a\\tb\\nc.flac", SAID["bus"]],
            ]


@pytest.mark.parametrize("where", ["| head -1", "> /dev/full"])
def test_a_reader_that_leaves_and_a_full_disk_are_no_traceback(where):
    command = f"{sys.executable} -m speechbrain_summarymixing.cli transcribe --no-progress"
    files = " ".join(FILES * 2)
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} --batch-seconds 3 {EXAMPLE} {files} {where}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in run.stderr and "Exception" not in run.stderr
    if "full" in where:
        assert run.returncode == 1 and "no space left to write the output" in run.stderr
    else:
        assert SAID["bus"] in run.stdout and len(run.stdout.splitlines()) == 1


def test_what_is_too_much_for_the_memory_is_one_files_error(model, monkeypatch):
    original = model.encode_batch

    held = []  # by what was made before there was no memory left

    def small_memory(wavs, lengths):
        assert not any(one() for one in held)
        if wavs.numel() > 3 * 16000:
            half_made = torch.zeros(1)
            held.append(weakref.ref(half_made))
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            )
        return original(wavs, lengths)

    monkeypatch.setattr(model, "encode_batch", small_memory)
    seconds = [soundfile.info(file).duration for file in FILES]
    assert min(seconds) < 3 < max(seconds)
    for answer, long, said in zip(
        transcribe(model, FILES), (s > 3 for s in seconds), SAID.values()
    ):
        if long:
            assert "no memory for" in answer.error and answer.text is None
        else:
            assert answer.error is None and answer.text == said


def test_a_clip_of_50_ms_says_the_same_alone_and_beside_others(model, tmp_path):
    clips = []
    for index, file in enumerate(FILES * 3):
        samples, rate = soundfile.read(file, dtype="float32")
        start = 4000 + 2500 * index
        clips.append(str(tmp_path / f"{index}.wav"))
        soundfile.write(clips[-1], samples[start : start + rate // 20], rate)
    alone = [t.text for t in transcribe(model, clips, batch_files=1)]
    for index, clip in enumerate(clips):
        beside = [t.text for t in transcribe(model, [clip, *FILES])]
        assert beside == [alone[index], *SAID.values()]


@pytest.mark.parametrize("seconds", [0.001, 0.1, 10.0])
def test_audio_of_any_length_has_a_text(capsys, tmp_path, seconds):
    path = tmp_path / "noise.wav"
    noise = 0.01 * torch.randn(int(16000 * seconds), generator=torch.Generator().manual_seed(0))
    soundfile.write(path, noise.numpy(), 16000)
    status, out, err = run(capsys, EXAMPLE, path)
    assert status == 0 and "error" not in err and out.endswith("\n")


@pytest.fixture
def long_audio(monkeypatch):
    """The module of examples/long_audio.py."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    return importlib.import_module("long_audio")


def test_long_audio_measures_each_length_once_and_draws_it(tmp_path, capsys, long_audio):
    seconds = [soundfile.info(file).duration for file in FILES]
    rows = [Utterance(*row[:3], "", row[3]) for row in zip(SAID, seconds, FILES, SAID.values())]
    write_manifest(tmp_path / "said.csv", rows)
    command = [str(tmp_path / "said.csv"), str(tmp_path / "out"), "--models", f"mine={EXAMPLE}"]
    long_audio.main([*command, "--seconds", "0.1", "30"])
    table = (tmp_path / "out/wer.csv").read_text().splitlines()
    alone, joined = (dict(zip(long_audio.COLUMNS, line.split(","))) for line in table[1:])
    assert (alone["model"], alone["seconds"], joined["seconds"]) == ("mine", "0.1", "30")
    assert float(alone["WER"]) < 15 and alone["words"] == joined["words"] == "27"
    assert len(list((tmp_path / "out/30s/audio").iterdir())) == 1
    assert (tmp_path / "out/wer.png").stat().st_size > 10_000
    capsys.readouterr()
    long_audio.main([*command, "--seconds", "0.1"])
    assert capsys.readouterr().out == ""  # measured already
    assert (tmp_path / "out/wer.csv").read_text().splitlines() == table


@pytest.fixture
def fast_long_audio(long_audio, tmp_path, monkeypatch):
    """A function that runs it on a manifest and models, none of which it hears."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(long_audio, "join", lambda manifest, folder, seconds: folder.mkdir())
    monkeypatch.setattr(long_audio, "measure", lambda model, manifest: [2.0, 1.0, 3.0, 9, 0.1])
    for folder in ("a/pretrained", "b/pretrained", "lr=0.1/pretrained"):
        (tmp_path / folder).mkdir(parents=True)

    def run(manifest, *models):
        long_audio.main([manifest, "out", "--models", *models, "--seconds", "2"])
        return [row.split(",")[0] for row in Path("out/wer.csv").read_text().splitlines()[1:]]

    return run


def test_long_audio_takes_a_name_only_for_what_it_is(fast_long_audio):
    models = ["lr=0.1/pretrained", "b=b/pretrained", "hub=owner/name=1"]
    assert fast_long_audio("one/test.csv", *models) == ["pretrained", "b", "hub"]
    for manifest, others, told in (
        ("one/test.csv", ["x/pretrained", "y/pretrained"], "--models has pretrained twice"),
        ("one/test.csv", ["a/pretrained"], "lr=0.1/pretrained, but it is .*a/pretrained now"),
        ("two/test.csv", ["new=a/pretrained"], "one/test.csv, but MANIFEST is .*two/test.csv"),
    ):
        with pytest.raises(UserError, match=told):
            fast_long_audio(manifest, *others)


def test_long_audio_goes_on_with_a_table_of_before_that_tells_no_files(fast_long_audio):
    header = "model,seconds,WER,low,high,words,real_time_factor\n"
    Path("out").mkdir()
    twice = "old,2,2.0,1.0,3.0,9,0.1\nold,2,2.1,1.0,3.0,9,0.1\n"  # two models of one name
    Path("out/wer.csv").write_text(header + twice)
    for _ in range(2):
        assert fast_long_audio("test.csv", "old=a/pretrained", "b=b/pretrained")[-2:] == [
            "old",
            "b",
        ]
    assert Path("out/wer.png").is_file()
