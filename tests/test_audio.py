import errno
import logging
import os

import numpy
import pytest
import soundfile
import torch
import torchaudio

from speechbrain_summarymixing import audio, opening
from speechbrain_summarymixing.audio import (
    AudioInfo,
    audio_info,
    read_audio,
    read_part,
    read_samples,
    read_segments,
)
from speechbrain_summarymixing.errors import UserError


def sine(rate, seconds=0.5, hertz=440.0):
    return 0.5 * numpy.sin(2 * numpy.pi * hertz * numpy.arange(int(rate * seconds)) / rate)


def write(path, samples, rate=16000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


def loudest_hertz(waveform, rate=16000):
    return abs(numpy.fft.rfft(waveform)).argmax() * rate / len(waveform)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "ogg", "sph"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_rates_and_channels(tmp_path, kind, rate, channels):
    samples = numpy.stack([sine(rate)] * channels, axis=1)
    options = {"format": "NIST", "subtype": "PCM_16"} if kind == "sph" else {}
    path = write(tmp_path / f"x.{kind}", samples, rate, **options)
    waveform = read_audio(path)
    assert waveform.dim() == 1 and waveform.dtype.is_floating_point
    assert len(waveform) == pytest.approx(8000, rel=0.25 if kind in ("mp3", "ogg") else 0.001)
    assert loudest_hertz(waveform.numpy()) == pytest.approx(440, abs=10)
    info = audio_info(path)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.seconds == pytest.approx(0.5, rel=0.25)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("wav", {}),
        ("wav", {"subtype": "IMA_ADPCM"}),
        ("flac", {}),
        ("sph", {"format": "NIST", "subtype": "ULAW"}),
        ("aiff", {}),
        ("ogg", {}),
        ("ogg", {"subtype": "OPUS"}),
        ("mp3", {"bitrate_mode": "CONSTANT"}),
        ("mp3", {"bitrate_mode": "VARIABLE"}),
    ],
)
def test_a_segment_is_that_of_the_whole(tmp_path, kind, options):
    random = numpy.random.default_rng(0)
    speaking = numpy.sin(numpy.arange(16000 * 12) / 16000) > 0  # frames of mp3 borrow from silence
    samples = random.normal(0, 0.1, 16000 * 12) * speaking
    path = write(tmp_path / f"x.{kind}", samples, **options)
    whole = read_audio(path)
    for start, stop in [(0.0, 1.0), (0.3, 0.4), (7.0, 8.5), (4.5, 100.0), (11.5, float("inf"))]:
        segment = read_audio(path, start=start, stop=stop)
        expected = whole[round(start * 16000) : round(min(stop * 16000, len(whole)))]
        assert len(segment) == len(expected)
        torch.testing.assert_close(segment, expected, rtol=0, atol=1e-6)


def test_a_segment_of_another_rate_and_channels(tmp_path):
    samples = numpy.stack([sine(44100, 3.0), numpy.zeros(3 * 44100)], axis=1)
    path = write(tmp_path / "x.wav", samples, 44100)
    segment = read_audio(path, start=1.0, stop=1.5)
    expected = read_audio(path)[16000:24000]
    assert len(segment) == 8000
    torch.testing.assert_close(segment[100:-100], expected[100:-100], rtol=0, atol=1e-3)


def test_a_channel_is_read_alone(tmp_path):
    samples = numpy.random.default_rng(0).normal(0, 0.1, (16000, 3))
    path = write(tmp_path / "x.flac", samples)
    whole, _ = soundfile.read(path, dtype="float32")
    for channel in range(3):
        part = read_audio(path, start=0.25, stop=0.5, channel=channel)
        assert part.equal(torch.from_numpy(whole[4000:8000, channel]))
    assert not read_audio(path).equal(read_audio(path, channel=0))
    for channel in (3, -1):
        with pytest.raises(UserError, match=f"x.flac: has no channel {channel}, but 3, which are"):
            read_audio(path, channel=channel)


def test_what_lies_outside_a_segment_is_not_decoded(tmp_path, monkeypatch):
    read = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda *args, **kw: read.append(args[1]) or original(*args, **kw),
    )
    for kind, most in (("flac", 1600), ("mp3", 17600)):
        path = write(tmp_path / f"x.{kind}", sine(16000, 20.0))
        read_audio(path, start=15.0, stop=15.1)
        assert read.pop() == most


def test_a_segment_outside_its_file_and_a_file_that_cannot_be_read_within(tmp_path):
    path = write(tmp_path / "x.wav", sine(16000))
    with pytest.raises(UserError, match="no sample from 0.5 to 0.7 s, but ends at 0.5 s"):
        read_audio(path, start=0.5, stop=0.7)
    write(path, sine(8000), 8000, subtype="GSM610")
    with pytest.raises(UserError, match="GSM 6.10, is read from the beginning alone: convert it"):
        read_audio(path)


def test_16_khz_mono_is_read_as_it_is(tmp_path):
    samples = sine(16000).astype("float32")
    path = write(tmp_path / "x.wav", samples, subtype="FLOAT")
    assert numpy.array_equal(read_audio(path).numpy(), samples)
    assert audio_info(path) == AudioInfo(0.5, 16000, 1)


def test_channels_are_averaged(tmp_path):
    samples = numpy.stack([sine(16000), numpy.zeros(8000)], axis=1)
    path = write(tmp_path / "x.wav", samples, subtype="FLOAT")
    numpy.testing.assert_allclose(read_audio(path).numpy(), sine(16000) / 2, atol=1e-6)


def test_conversions_are_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(audio, "_said", set())
    for name in ("a", "b"):
        write(tmp_path / f"{name}.wav", numpy.stack([sine(8000)] * 2, axis=1), 8000)
        with caplog.at_level(logging.INFO):
            read_audio(tmp_path / f"{name}.wav")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all("a.wav" in line for line in said)
    assert "2 channels" in said[0] and "8000 Hz" in said[1]


def bad_file(folder, kind):
    path = folder / f"{kind}.wav"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("this is no audio")
    elif kind == "empty":
        write(path, numpy.zeros(0))
    elif kind == "zero bytes":
        path.touch()
    elif kind == "cut short":
        path = write(folder / "x.flac", sine(16000, 2.0))
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "slow":
        write(path, sine(16000, 1.0))
        content = bytearray(path.read_bytes())
        content[24:28] = (1).to_bytes(4, "little")  # a header that lies about its rate
        path.write_bytes(content)
    elif kind == "long name":
        path = folder / ("a" * 300 + ".wav")
    elif kind.startswith("cut ogg"):
        path = write(folder / "x.ogg", numpy.random.default_rng(0).normal(0, 0.1, 80000))
        path.write_bytes(path.read_bytes()[: -int(kind.split()[2])])
    elif kind.startswith("cut "):
        container = kind.removeprefix("cut ")
        write(path, sine(16000), subtype="PCM_16", format=container)
        path.write_bytes(path.read_bytes()[:9000])
    elif kind == "whole numbers":
        write(path, 32768 * sine(16000), subtype="FLOAT")
    elif kind == "beyond all":
        write(path, 1e30 * sine(16000), subtype="FLOAT")
    elif kind == "nan":
        write(path, numpy.array([0.0, numpy.nan]), subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "no such file"),
        ("folder", "is a folder"),
        ("text", "cannot be read as audio"),
        ("zero bytes", "cannot be read as audio"),
        ("empty", "holds no sample"),
        ("cut short", "cut short|cannot be decoded"),
        ("cut WAV", "cut short, 8956 of the 16000 bytes"),
        ("cut AIFF", "cut short"),
        ("cut AU", "cut short"),
        ("cut NIST", "cut short, 3988 of the 8000 samples"),
        ("cut ogg 1", "cut short, its last page is not there"),
        ("cut ogg 500", "cut short, its last page is not there"),
        ("cut ogg 5000", "cut short, its last page is not there"),
        ("nan", "NaN or infinite"),
        ("whole numbers", "samples of 1.638e.04, but full scale is 1: divide them"),
        ("beyond all", "samples of 5e.29, but full scale is 1"),
        ("pipe", "is a pipe or device"),
        ("slow", "its header says 1 Hz, but speech has 4000 Hz or more"),
        ("long name", "cannot be read .File name too long"),
    ],
)
def test_bad_files_are_named(tmp_path, kind, message):
    path = bad_file(tmp_path, kind)
    with pytest.raises(UserError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """As root no file is such a one."""
    path = tmp_path / "mine.wav"
    soundfile.write(path, numpy.zeros(1600), 16000)

    def refused(file, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), file)

    monkeypatch.setattr(opening, "open", refused, raising=False)
    with pytest.raises(UserError, match="mine.wav: cannot be read .Permission denied.: give"):
        read_audio(path)


@pytest.mark.parametrize("rate", [15999, 44101, 22050, 8000, 383_999, 2 * 10**9, 2_080_011_111])
def test_any_rate_is_resampled_in_little_memory(tmp_path, rate):
    path = write(tmp_path / "a.wav", sine(16000, 1.0))
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    waveform = read_audio(path)
    assert waveform.numel() == pytest.approx(16000 * 16000 / rate, rel=1e-3, abs=1)
    kernel = getattr(audio._resampler(rate, 16000), "kernel", torch.empty(0))
    assert kernel.numel() < 5e6  # 2.8 GB for 44101 Hz as it is


def test_a_usual_rate_is_resampled_as_torchaudio_does(tmp_path):
    noise = numpy.random.default_rng(0).normal(0, 0.1, 44100)
    path = write(tmp_path / "a.wav", noise, 44100)
    read, _ = soundfile.read(path, dtype="float32")
    expected = torchaudio.functional.resample(torch.from_numpy(read).double(), 44100, 16000)
    torch.testing.assert_close(
        read_audio(path), expected.float(), atol=3e-5, rtol=0
    )  # a step of 16 bits


def test_a_name_that_is_no_utf8_is_read(tmp_path):
    source = write(tmp_path / "a.wav", sine(16000, 1.0))
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe4.wav")
    os.rename(source, path)
    assert read_audio(path).numel() == 16000


def test_a_flac_is_looked_at_to_its_end_and_must_tell_its_length(tmp_path):
    path = tmp_path / "x.flac"
    soundfile.write(path, numpy.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    assert audio_info(path, to_the_end=True).seconds == 1.0
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-100])
    assert audio_info(path).seconds == 1.0
    with pytest.raises(UserError, match="x.flac: cut short, the last of its 16000 samples"):
        audio_info(path, to_the_end=True)
    content[8 + 13] &= 0xF0  # the number of samples in STREAMINFO, 36 bits
    content[8 + 14 : 8 + 18] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UserError, match="x.flac: its header does not tell its length: convert"):
        audio_info(path)


def test_real_speech(speech_data):
    path = next((speech_data / "an4" / "wav").glob("*/*/*.sph"))
    assert len(read_audio(path)) == round(audio_info(path).seconds * 16000)


def test_mp3_whose_header_counts_the_encoders_padding(speech_data):
    clips = sorted(speech_data.glob("CommonVoice/fa/clips/*.mp3"))
    assert len(clips) == 260
    for clip in clips[::20]:
        assert len(read_audio(clip)) / 16000 == pytest.approx(audio_info(clip).seconds, abs=0.1)


def test_a_part_that_is_not_there(tmp_path):
    path = write(tmp_path / "x.flac", numpy.random.default_rng(0).normal(0, 0.1, 32000))
    path.write_bytes(path.read_bytes()[:30_000])
    assert len(read_part(path, seconds=0.1, place=0.0)) == 1600
    with pytest.raises(UserError, match="x.flac: c.*: replace the file"):
        read_part(path, seconds=0.1, place=1.0)
    with pytest.raises(UserError, match="x.mp3: holds no sample"):  # of an mp3, by its header
        audio._resampled(numpy.empty(0), 8000, 16000, "x.mp3")


@pytest.mark.parametrize("size", [0, 2**31 - 1 - 36, 2**32 - 1])
def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path, size):
    path = write(tmp_path / "x.wav", sine(16000), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[4:8] = (2**32 - 1).to_bytes(4, "little")
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    if size == 0:  # libsndfile believes it
        with pytest.raises(UserError, match="holds no sample"):
            read_audio(path)
    else:
        assert len(read_audio(path)) == 8000


def test_channels_that_cancel_are_not_averaged(tmp_path, caplog):
    speech = sine(16000)
    path = write(tmp_path / "x.wav", numpy.stack([0.9 * speech, -speech], 1), subtype="FLOAT")
    waveform = read_audio(path).numpy()
    numpy.testing.assert_allclose(waveform, -speech, atol=1e-6)
    assert "channels cancel each other: channel 2 alone is taken" in caplog.text
    caplog.clear()
    random = numpy.random.default_rng(0)
    for channels in (2, 3, 8):  # independent ones do not cancel
        samples = random.normal(0, 0.1, (8000, channels))
        path = write(tmp_path / "y.wav", samples, subtype="FLOAT")
        numpy.testing.assert_allclose(read_audio(path).numpy(), samples.mean(1), atol=1e-6)
    assert "cancel each other" not in caplog.text


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_segments_make_the_file_and_are_cut_in_pauses(tmp_path, rate, channels):
    random = numpy.random.default_rng(rate + channels)
    for _ in range(5):
        longest = random.uniform(4.0, 8.0)
        samples = random.normal(0, 0.1, (int(rate * random.uniform(0.1, 40.0)), channels))
        for start in range(0, len(samples), rate):  # half a second of every second is a pause
            samples[start + rate // 2 : start + rate] *= 1e-3
        path = write(tmp_path / "x.wav", samples, rate, subtype="FLOAT")
        parts = list(read_segments(path, rate, longest=longest))
        assert numpy.array_equal(numpy.concatenate(parts), read_samples(path, rate))
        assert all(len(part) <= longest * rate for part in parts)
        assert len(parts) == 1 or min(map(len, parts)) >= rate
        cuts = numpy.cumsum([len(part) for part in parts])[:-1]
        assert (cuts % rate >= rate // 2).all()
        (whole,) = read_segments(path, rate, longest=float("inf"))
        assert numpy.array_equal(whole, read_samples(path, rate))


def test_segments_of_another_rate_are_resampled(tmp_path):
    path = write(tmp_path / "x.flac", sine(44100, 10.0), 44100)
    parts = list(read_segments(path, 16000, longest=3.0))
    assert sum(map(len, parts)) == pytest.approx(160000, abs=len(parts))


def test_a_file_whose_samples_are_not_where_they_are_looked_for_is_told(tmp_path, monkeypatch):
    path = write(tmp_path / "bad.wav", sine(16000))
    # fuzz.py found an mp3 of which libmpg123 seeks a place beyond the end
    monkeypatch.setattr(soundfile.SoundFile, "seek", lambda self, place, *whence: place + 9000)
    with pytest.raises(UserError, match="bad.wav: cannot be decoded .*sample 5760"):
        read_part(path, seconds=0.05, place=0.8)
