"""``summarymixing transcribe --stream``: files, standard input, a stand-in for a microphone."""

import io
import json
import signal
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
import torchaudio
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.inference import stream_commands, streaming, transcribe
from speechbrain_summarymixing.inference.decoding import stream_search
from speechbrain_summarymixing.inference.stream_commands import _tail
from speechbrain_summarymixing.inference.transcribe import load_model

CODE, _ = soundfile.read(FILES[1], dtype="int16")
SILENCE = numpy.zeros(32000, "int16")


@pytest.fixture(scope="module")
def loaded():
    return load_model(EXAMPLE, "cpu")


@pytest.fixture
def run(loaded, capsys, monkeypatch):
    """Runs the command with chunks that the model can do with; its status, output and errors."""
    monkeypatch.setattr(transcribe, "load_model", lambda *_, trust: loaded)

    def command(*arguments):
        stream = ["transcribe", "--stream", "--chunk-ms=1280", str(EXAMPLE)]
        status = cli.main([*stream, *map(str, arguments)])
        return status, *capsys.readouterr()

    return command


@pytest.fixture
def stdin(monkeypatch):
    """Gives bytes to standard input."""

    def give(content, tty=False):
        file = types.SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: tty)
        monkeypatch.setattr(sys, "stdin", file)

    return give


def write(path, samples, rate=16000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def test_a_file_has_a_line_for_each_part_and_at_last_its_whole_text(run, tmp_path):
    twice = write(tmp_path / "x.wav", numpy.concatenate([CODE, SILENCE, CODE]))
    status, out, _ = run("--no-progress", twice)
    assert status == 0
    *parts, whole = out.splitlines()
    texts = [part.split("\t")[2] for part in parts]
    assert len(parts) == 2 and texts[0] == SAID["code"]
    assert whole == " ".join(texts)
    times = [float(time) for part in parts for time in part.split("\t")[:2]]
    assert times == sorted(times) and times[2] > 4


def test_several_files_are_named_and_a_bad_one_leaves_the_others(run, tmp_path):
    nan = write(tmp_path / "nan.wav", numpy.full(16000, numpy.nan), subtype="FLOAT")
    none = tmp_path / "a\tb.wav"
    status, out, err = run(FILES[1], nan, none, FILES[1])
    assert status == 1
    first, whole, *again = [line.split("\t") for line in out.splitlines()]
    assert again == [first, whole]
    assert first[0] == whole[0] == FILES[1] and first[3:] == whole[1:] == [SAID["code"]]
    assert f"error: {nan}: has NaN" in err and f"error: {none}: no such file" in err


def test_what_was_heard_before_a_file_breaks_off_is_told(run, tmp_path, monkeypatch):
    monkeypatch.setattr(stream_commands, "READ_SECONDS", 2.0)
    whole = write(tmp_path / "whole.flac", numpy.concatenate([CODE, CODE]))
    cut = tmp_path / "cut.flac"
    cut.write_bytes(Path(whole).read_bytes()[:-9000])
    status, out, err = run("--no-progress", cut)
    assert status == 1 and f"error: {cut}: " in err
    assert out.splitlines()[-1].startswith(SAID["code"].split()[0])


def test_json_has_an_object_for_each_event_and_the_whole_text(run, tmp_path):
    status, out, _ = run("--json", FILES[1], tmp_path / "none.wav")
    *events, whole, error = map(json.loads, out.splitlines())
    assert status == 1 and error.keys() == {"file", "error"}
    assert whole == {"file": FILES[1], "text": SAID["code"], "seconds": len(CODE) / 16000}
    assert [event["final"] for event in events] == [False] * (len(events) - 1) + [True]
    for event in events:
        assert event.keys() == {"file", "final", "text", "words", "seconds"}
        assert [word["word"] for word in event["words"]] == event["text"].split()
        assert event["words"][0].keys() == {"word", "begin", "end", "confidence"}


@pytest.mark.parametrize("kind, rate, channels", [("wav", 44100, 2), ("mp3", 48000, 1)])
def test_any_format_rate_and_channels(run, tmp_path, kind, rate, channels):
    samples = torchaudio.functional.resample(torch.from_numpy(CODE / 32768), 16000, rate)
    file = write(tmp_path / f"x.{kind}", samples.repeat(channels, 1).T.numpy(), rate)
    assert run(file)[1].splitlines()[-1] == SAID["code"]


def test_silence_is_read_in_little_memory_and_has_no_words(run, tmp_path, largest_tensor):
    file = write(tmp_path / "silence.flac", numpy.zeros(16000 * 60, "int16"))
    with largest_tensor:
        status, out, err = run(file)
    assert (status, out) == (0, "\n") and f"warning: {file}: no words" in err
    assert largest_tensor.elements < 16000 * 20


def test_standard_input(run, stdin, caplog):
    stdin(CODE.tobytes())
    assert run("-")[1].splitlines()[-1] == SAID["code"]
    assert not [r for r in caplog.records if "half" in r.message]
    stdin(CODE.tobytes() + b"1")
    assert run("-")[1].splitlines()[-1] == SAID["code"]
    assert "ends with half a 16-bit sample, which is left out" in caplog.text
    for nothing in (b"", b"1"):
        stdin(nothing)
        assert run("-")[:2] == (0, "\n")
    stdin(b"", tty=True)
    status, _, err = run("-")
    assert status == 1 and "standard input is a terminal, but - is sound" in err


class HalfSamples(io.BytesIO):
    """Gives an odd number of bytes each time, and then waits until Ctrl-C is pressed."""

    def read1(self, size):
        if self.tell() == len(self.getvalue()):
            signal.raise_signal(signal.SIGINT)
        return super().read1(1001)


def test_ctrl_c_ends_standard_input(run, monkeypatch):
    file = types.SimpleNamespace(buffer=HalfSamples(CODE.tobytes()), isatty=lambda: False)
    monkeypatch.setattr(sys, "stdin", file)
    before = signal.getsignal(signal.SIGINT)  # a test before may have left its own
    status, out, _ = run("-")
    assert status == 0 and out.splitlines()[-1] == SAID["code"]
    assert signal.getsignal(signal.SIGINT) is before


class Microphone:
    """A stand-in for sounddevice, which hears what it is told to; then Ctrl-C is pressed."""

    class PortAudioError(Exception):
        pass

    def __init__(self, ends):
        self.ends, self.given = ends, None

    def RawInputStream(self, **given):
        self.given = given
        if given["device"] == "no such":
            raise ValueError("No input device matching 'no such'")
        if given["device"] == 7:
            raise self.PortAudioError("Invalid sample rate")
        return self

    def start(self):
        thread = threading.Thread(target=self._hear)
        thread.start()

    def _hear(self):
        size = self.given["blocksize"]
        for start in range(0, len(CODE), size):
            block = CODE[start : start + size]
            self.given["callback"](memoryview(block.tobytes()), len(block), None, None)
        if self.ends:  # as when it is pulled out
            self.given["finished_callback"]()
        else:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("ends", [False, True])
def test_a_microphone_is_heard_until_ctrl_c_or_its_end(run, monkeypatch, ends):
    device = Microphone(ends)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    status, out, err = run("--microphone")
    assert status == 0 and out.splitlines()[-1] == SAID["code"]
    assert "listening: Ctrl-C ends" in err
    assert device.given["device"] is None and device.given["samplerate"] == 16000
    assert run("--microphone", "3")[0] == 0 and device.given["device"] == 3


def test_another_search_may_be_chosen(loaded, run, monkeypatch):
    given = []

    def search(_, name, **options):
        given.append((name, options))
        return stream_search(loaded, name, **options)

    monkeypatch.setattr(streaming, "stream_search", search)
    status, out, _ = run("--decoder=beam", "--beam-size=3", FILES[1])
    assert status == 0 and out.splitlines()[-1] == SAID["code"]
    assert given == [("beam", {"beam_size": 3})]
    status, _, err = run("--decoder=joint", FILES[1])
    assert status == 1 and "--decoder is joint" in err and "without --stream" in err


@pytest.mark.parametrize(
    "module, arguments, message",
    [
        (None, (), 'pip install "speechbrain-summarymixing[microphone]"'),
        (Microphone(True), ("no such",), "No input device matching 'no such': give one of those"),
        (Microphone(True), ("7",), "Invalid sample rate: give one .* at 16000 Hz"),
    ],
)
def test_no_microphone_is_told(run, monkeypatch, module, arguments, message):
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    status, out, err = run("--microphone", *arguments)
    assert status == 1 and out == ""
    assert message in err or all(part in err for part in message.split(" .* "))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["x.wav", "--chunk-ms=640"], "--chunk-ms is one of streams: give --stream too"),
        (["--microphone"], "--microphone is one of streams"),
        (["-"], "- is standard input, which is heard as a stream: give --stream too"),
        (["--stream", "x.wav", "--batch-seconds=3"], "--batch-seconds is one of whole files"),
        (["--stream", "x.wav", "--segment-seconds=3"], "--segment-seconds is one of whole files"),
        (["--stream", "x.wav", "--nbest=2", "--json"], "--nbest is one of whole files"),
        (["--stream", "x.wav", "--microphone"], "--microphone is given, and so is x.wav"),
        (["--stream", "-", "x.wav"], "- is given beside other files"),
    ],
)
def test_options_that_do_not_go_together(capsys, arguments, message):
    assert cli.main(["transcribe", str(EXAMPLE), *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--stream"]])
def test_no_file_is_a_usage_error(capsys, arguments):
    with pytest.raises(SystemExit):
        cli.main(["transcribe", str(EXAMPLE), *arguments])
    assert "the following arguments are required: file" in capsys.readouterr().err


def test_closed_standard_input_is_told(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = run("-")
    assert status == 1 and "standard input is closed, but - is its sound" in err


def test_times_that_cannot_be_are_told_by_name(run):
    status, _, err = run(FILES[1], "--left-ms=100")
    assert status == 1 and "left_ms is 100, but must be a multiple of 1280 ms" in err


def test_on_a_terminal_the_words_are_rewritten_until_they_are_final(run, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    _, out, _ = run(FILES[1])
    shown, final, whole, _ = out.split("\r\x1b[K")[0], *out.split("\r\x1b[K")[1].split("\n")
    partials = [part.removesuffix("\x1b[K") for part in shown.split("\r")[1:]]
    assert partials[0] == "THE CODE IS SEVEN"
    assert len(partials) > 1 and all(len(part) < 20 for part in partials)
    assert final.endswith(SAID["code"]) and whole == SAID["code"]
    assert "\x1b" not in run("--no-progress", FILES[1])[1]


def test_the_end_of_a_text_fits_its_columns():
    assert _tail("WORDS", 5) == "WORDS"
    assert _tail("MORE WORDS", 6) == "…WORDS"
    assert _tail("日本語", 6) == "日本語" and _tail("日本語", 5) == "…本語"


def test_a_reader_that_leaves_is_no_traceback():
    command = f"{sys.executable} -m speechbrain_summarymixing.cli transcribe --stream"
    files = " ".join(FILES * 3)
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} {EXAMPLE} {files} | head -1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in run.stderr and "Exception" not in run.stderr
    assert len(run.stdout.splitlines()) == 1 and run.returncode == 128 + signal.SIGPIPE
