"""Reading audio of any format, rate and number of channels as mono at one rate; writing flac."""

import functools
import io
import logging
import math
import os
import re
import stat
from dataclasses import dataclass
from fractions import Fraction

import soundfile
import torch
import torchaudio

from speechbrain_summarymixing.errors import UserError

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".aif", ".aiff", ".au", ".flac", ".mp3", ".ogg", ".opus", ".sph", ".wav"}
UNKNOWN_FRAMES = 2**63 - 1  # of libsndfile, for a flac that was written to a pipe
LOWEST_RATE = 4000  # Hz: at a lower one no speech is left, and resampling makes it long
MP3_PADDING = 2 * 1152  # samples that an encoder adds, which are counted and not decoded
SETTLING = {"MP3": 1.0, "OGG": 1.0}  # s that are decoded before a segment is as in the whole
LOUDEST = 10.0  # of a sample; full scale is 1, and a lossy file may pass it a little
CANCELLED = 0.1  # of the power of independent channels: what is left of them is not the speech
PAUSE = 0.3  # s, of which the quietest is looked for
# libsndfile's log tells of sizes of samples that are not the file's, of which writers to a pipe
# write the largest
WRONG_SIZE = re.compile(r"(?:data|SSND|Data Size) +: (\d+) \(should be (\d+)\)")
SIZE_OF_A_PIPE = 2**31 - 2**12
OGG_PAGE = 27 + 255 + 255 * 255  # bytes, at most
NIST_FRAMES = re.compile(rb"sample_count -i (\d+)")


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: duration in seconds, rate in Hz, number of channels."""

    seconds: float
    sample_rate: int
    channels: int


def audio_info(path, *, to_the_end=False):
    """Reads a file's header.

    Arguments
    ---------
    path : str or Path
        Audio of a format of libsndfile: wav, flac, mp3, ogg, NIST sphere, …
    to_the_end : bool
        Look for the last sample of a flac too, which one that was cut short lacks.

    Returns
    -------
    AudioInfo

    Raises
    ------
    UserError
        If the file is missing, empty, no audio or, as far as it is looked for, cut short.
    """
    with _open(path) as file:
        if to_the_end and file.format == "FLAC":
            try:
                file.seek(file.frames - 1)
            except soundfile.LibsndfileError as error:
                raise UserError(
                    f"{path}: cut short, the last of its {file.frames} samples is not there: "
                    "replace the file"
                ) from error
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)


def read_audio(source, sample_rate=16000, *, name=None, start=0.0, stop=math.inf):
    """Reads a file, or a segment of it, as mono at a rate.

    Arguments
    ---------
    source : str, Path or bytes
        Path, as in `audio_info`, or content of a file.
    sample_rate : int
        In Hz. Audio of another rate is resampled and channels are averaged; the log tells the
        first file of each kind.
    name : str or None
        What errors and the log call it; None: its path.
    start, stop : float
        Where the segment begins and ends, in seconds of the file, whose end it does not pass. What
        lies outside is not decoded.

    Returns
    -------
    torch.Tensor
        (T,), float32.

    Raises
    ------
    UserError
        If the file is missing, empty, cut short (which an mp3 need not tell), no audio, ends
        before the segment, or holds NaN, infinity or samples far beyond full scale.
    """
    path = source if name is None else name
    with _open(source, path) as file:
        samples = _mono(_segment(file, path, start, stop), path)
        return _resampled(samples, file.samplerate, sample_rate, path)


def read_part(path, sample_rate=16000, *, seconds, place):
    """Reads a part of a file, as mono at a rate.

    Arguments
    ---------
    path : str or Path
    sample_rate : int
        As for `read_audio`.
    seconds : float
        The part's duration; a shorter file is read whole.
    place : float
        Where the part lies: 0 at the begin, 1 at the end.

    Returns
    -------
    torch.Tensor
        (T,), float32.

    Raises
    ------
    UserError
        As `read_audio`.
    """
    with _open(path) as file:
        frames = min(file.frames, max(1, round(seconds * file.samplerate)))
        file.seek(int(place * (file.frames - frames)))
        samples = _mono(_read(file, path, frames), path)
        return _resampled(samples, file.samplerate, sample_rate, path)


def read_segments(path, sample_rate=16000, *, longest):
    """Reads a file in segments, which are cut in its pauses, as mono at a rate.

    No more than a segment is in memory at once.

    Arguments
    ---------
    path : str or Path
    sample_rate : int
        As for `read_audio`.
    longest : float
        A segment's duration in seconds, at most; a file as long is one segment.

    Yields
    ------
    torch.Tensor
        (T,), float32.

    Raises
    ------
    UserError
        As `read_audio`, when it comes to what is bad.
    """
    with _open(path) as file:
        rate, left = file.samplerate, file.frames
        most, least = round(min(longest * rate, left)), round(min(1.0, longest / 4) * rate)
        held = torch.empty(0)
        while held.numel() + left > most:
            held = torch.cat([held, _mono(_read(file, path, most - held.numel()), path)])
            left = file.frames - file.tell()
            if held.numel() < most:  # of an mp3, which counts its padding
                break
            # neither end is short
            latest = min(most, held.numel() + left - least)
            cut = _quietest(held[:latest], rate, after=latest // 2)
            yield _resampled(held[:cut], rate, sample_rate, path)
            held = held[cut:]
        if left > 0:
            held = torch.cat([held, _mono(_read(file, path), path)])
        if held.numel() == 0:
            raise UserError(f"{path}: holds no sample: leave it out or replace it")
        yield _resampled(held, rate, sample_rate, path)


def flac_of(waveform, sample_rate, *, bits=16):
    """Writes a waveform as the content of a flac file.

    Arguments
    ---------
    waveform : torch.Tensor or numpy.ndarray
        (T,), float, of which full scale is 1.
    sample_rate : int
        In Hz.
    bits : int
        Of a sample: 16, or 24, which keep the mean of channels and what a lossy file holds.

    Returns
    -------
    bytes
    """
    content = io.BytesIO()
    soundfile.write(content, waveform, sample_rate, format="FLAC", subtype=f"PCM_{bits}")
    return content.getvalue()


def _segment(file, path, start, stop):
    """The frames of a file from one second to another as they are, (T, C), float32."""
    rate = file.samplerate
    first = round(start * rate)
    frames = round(min(stop, file.frames / rate) * rate) - first
    before = min(first, round(SETTLING.get(file.format, 0.0) * rate))
    samples = torch.empty(0, file.channels)
    if frames > 0:
        samples = _read(file, path, before + frames, first - before)[before:]
    if len(samples) == 0:
        raise UserError(
            f"{path}: has no sample from {start:g} to {stop:g} s, but ends at "
            f"{file.frames / rate:g} s: give a segment within"
        )
    return samples


def _read(file, path, frames=-1, first=None):
    """Frames of a file as they are, (T, C), float32; -1: all that are left; None: the next."""
    here = file.tell()
    first = here if first is None else first
    wanted = file.frames - first if frames < 0 else frames
    padding = MP3_PADDING if file.format == "MP3" else 0
    try:
        if first != here:
            file.seek(first)
        samples = torch.from_numpy(file.read(frames, dtype="float32", always_2d=True))
    except MemoryError as error:
        raise UserError(
            f"{path}: no memory for its {wanted} samples of {file.channels} channels: cut it"
        ) from error
    except soundfile.LibsndfileError as error:
        raise UserError(f"{path}: cannot be decoded ({error}): replace the file") from error
    if wanted - len(samples) > padding:
        raise UserError(
            f"{path}: cut short, {first + len(samples)} of the {file.frames} samples that its "
            "header promises: replace the file"
        )
    return samples


def _mono(samples, path):
    """Samples (T, C) as one channel (T,), which is their mean, unless they cancel."""
    if not samples.isfinite().all():
        raise UserError(f"{path}: has NaN or infinite samples: replace the file")
    if samples.numel() > 0 and (peak := float(samples.abs().max())) > LOUDEST:
        raise UserError(
            f"{path}: has samples of {peak:.4g}, but full scale is 1: divide them, as by 32768 if "
            "they were whole numbers of 16 bits, and write the file again"
        )
    channels = samples.size(1)
    if channels == 1:
        return samples[:, 0]
    _say_once(f"audio of {channels} channels is averaged to one", path)
    waveform = samples.mean(dim=1)
    power = samples.square().sum(dim=0)  # (C,)
    if waveform.square().sum() < CANCELLED * power.mean() / channels:
        loudest = int(power.argmax())
        logger.warning(
            "%s: its %d channels cancel each other: channel %d alone is taken",
            path,
            channels,
            loudest + 1,
        )
        return samples[:, loudest]
    return waveform


def _resampled(waveform, rate, sample_rate, path):
    if rate == sample_rate:
        return waveform
    _say_once(f"audio at {rate} Hz is resampled to {sample_rate} Hz", path)
    return _resampler(rate, sample_rate)(waveform)


def _quietest(samples, rate, *, after):
    """The middle of the quietest pause of samples (T,) after a sample."""
    hop = max(1, rate // 100)
    power = samples[after:].square()
    power = power[: power.numel() // hop * hop].view(-1, hop).mean(1)  # (frames,)
    frames = max(1, min(round(PAUSE * 100), power.numel()))
    pauses = power.unfold(0, frames, 1).mean(1)
    return after + (int(pauses.argmin()) + frames // 2) * hop


@functools.lru_cache(maxsize=16)
def _resampler(rate, sample_rate):
    """Torchaudio's, with its kernel, for a ratio of rates that is within 0.05% of this.

    All usual rates are exact. Its kernel has a tap for each sample of a common period, which of
    44101 and 16000 Hz is 1 s.
    """
    ratio = Fraction(rate, sample_rate).limit_denominator(1000)
    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)


def _open(source, path=None):
    path = source if path is None else path
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    else:
        source = os.fsencode(source)  # a name that is not UTF-8 is one
        _check_file(source, path)
    try:
        file = soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        raise UserError(
            f"{path}: cannot be read as audio ({error.error_string}): "
            "give wav, flac, mp3, ogg or sph, or convert it"
        ) from error
    if (reason := _cut_short(file, source)) is not None:
        file.close()
        raise UserError(f"{path}: cut short, {reason}: replace the file")
    if file.frames == UNKNOWN_FRAMES:
        file.close()
        raise UserError(f"{path}: its header does not tell its length: convert it to wav or flac")
    if file.samplerate < LOWEST_RATE:
        file.close()
        raise UserError(
            f"{path}: its header says {file.samplerate} Hz, but speech has {LOWEST_RATE} Hz or "
            "more: mend the header, or replace the file"
        )
    if not file.seekable():
        file.close()
        raise UserError(
            f"{path}: its encoding, {file.subtype_info}, is read from the beginning alone: convert "
            "it to wav with 16 bits, or flac"
        )
    if file.frames == 0:
        file.close()
        raise UserError(f"{path}: holds no sample: leave it out or replace it")
    return file


def _cut_short(file, source):
    """What is missing at a file's end, as far as its header and libsndfile's log tell."""
    if file.format == "OGG" and not _ends_in_last_page(_part(source, -OGG_PAGE)):
        return "its last page is not there or not whole"
    if file.format == "NIST":
        promised = NIST_FRAMES.search(_part(source, 1024))
        if promised is not None and file.frames < int(promised[1]):
            return f"{file.frames} of the {int(promised[1])} samples that its header promises"
    for promised, there in (map(int, sizes) for sizes in WRONG_SIZE.findall(file.extra_info)):
        if there < promised < SIZE_OF_A_PIPE:
            return f"{there} of the {promised} bytes that its header promises"
    return None


def _part(source, size):
    """The first bytes of a file, or with a size below 0 the last."""
    if isinstance(source, io.BytesIO):
        content = source.getvalue()
        return content[:size] if size > 0 else content[size:]
    with open(source, "rb") as file:
        if size < 0:
            file.seek(max(0, file.seek(0, io.SEEK_END) + size))
        return file.read(abs(size))


def _ends_in_last_page(content):
    """Whether the last page of an ogg is whole and says that it is the last (RFC 3533)."""
    page = content[content.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return bool(segments) and len(page) >= 27 + len(segments) + sum(segments) and bool(page[5] & 4)


def _check_file(source, path):
    try:
        mode = os.stat(source).st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: give the path of an audio file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}): give another audio file") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or device, which has no length"
        raise UserError(f"{path}: is {what}: give the path of an audio file")


_said = set()


def _say_once(what, path):
    if what not in _said:
        _said.add(what)
        logger.info("%s; the first such file: %s", what, path)
