"""Reading audio of any format, rate and number of channels as mono at one rate; writing flac.

Torch is imported where a tensor is asked for, or a file resampled: it takes seconds, and a command
may do without.
"""

import functools
import io
import logging
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy
import soundfile
from numpy.lib.stride_tricks import sliding_window_view

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.opening import opened

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".aif", ".aiff", ".au", ".flac", ".mp3", ".ogg", ".opus", ".sph", ".wav"}
MP3_PADDING = 2 * 1152  # samples that an encoder adds, which are counted and not decoded
SETTLING = {"MP3": 1.0, "OGG": 1.0}  # s that are decoded before a segment is as in the whole
LOUDEST = 10.0  # of a sample; full scale is 1, and a lossy file may pass it a little
LARGEST = 2**15  # of 16-bit samples
CANCELLED = 0.1  # of the power of independent channels: what is left of them is not the speech
PAUSE = 0.3  # s, of which the quietest is looked for


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
    with opened(path) as file:
        if to_the_end and file.format == "FLAC":
            try:
                file.seek(file.frames - 1)
            except soundfile.LibsndfileError as error:
                raise UserError(
                    f"{path}: cut short, the last of its {file.frames} samples is not there: "
                    "replace the file"
                ) from error
        return AudioInfo(file.frames / file.samplerate, file.samplerate, file.channels)


def read_audio(source, sample_rate=16000, **part):
    """As `read_samples`, as a torch.Tensor."""
    import torch

    return torch.from_numpy(read_samples(source, sample_rate, **part))


def read_samples(source, sample_rate=16000, *, name=None, start=0.0, stop=math.inf, channel=None):
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
    channel : int or None
        Which one, from 0 on; None: the mean of all.

    Returns
    -------
    numpy.ndarray
        (T,), float32.

    Raises
    ------
    UserError
        If the file is missing, empty, cut short (which an mp3 need not tell), no audio, ends
        before the segment, lacks the channel, or holds NaN, infinity or samples far beyond full
        scale.
    """
    path = source if name is None else name
    with opened(source, path) as file:
        samples = _segment(file, path, start, stop)
        if channel is not None:
            if not 0 <= channel < file.channels:
                raise UserError(
                    f"{path}: has no channel {channel}, but {file.channels}, which are counted "
                    "from 0: give one of these"
                )
            samples = samples[:, channel : channel + 1]
        samples = _mono(samples, path)
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
    import torch

    with opened(path) as file:
        frames = min(file.frames, max(1, round(seconds * file.samplerate)))
        first = int(place * (file.frames - frames))
        samples = _mono(_read(file, path, frames, first), path)
        samples = _resampled(samples, file.samplerate, sample_rate, path)
        return torch.from_numpy(samples)


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
    numpy.ndarray
        (T,), float32.

    Raises
    ------
    UserError
        As `read_audio`, when it comes to what is bad.
    """
    with opened(path) as file:
        rate, left = file.samplerate, file.frames
        most, least = round(min(longest * rate, left)), round(min(1.0, longest / 4) * rate)
        held = numpy.empty(0, numpy.float32)
        while held.size + left > most:
            held = numpy.concatenate([held, _mono(_read(file, path, most - held.size), path)])
            left = file.frames - file.tell()
            if held.size < most:  # of an mp3, which counts its padding
                break
            # neither end is short
            latest = min(most, held.size + left - least)
            cut = _quietest(held[:latest], rate, after=latest // 2)
            yield _resampled(held[:cut], rate, sample_rate, path)
            held = held[cut:]
        if left > 0:
            held = numpy.concatenate([held, _mono(_read(file, path), path)])
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
    samples = numpy.empty((0, file.channels), numpy.float32)
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
        if first != here and file.seek(first) != first:
            raise UserError(
                f"{path}: cannot be decoded (its sample {first} is not found): replace the file"
            )
        samples = file.read(frames, dtype="float32", always_2d=True)
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
    if not numpy.isfinite(samples).all():
        raise UserError(f"{path}: has NaN or infinite samples: replace the file")
    if samples.size > 0 and (peak := float(numpy.abs(samples).max())) > LOUDEST:
        raise UserError(
            f"{path}: has samples of {peak:.4g}, but full scale is 1: divide them, as by 32768 if "
            "they were whole numbers of 16 bits, and write the file again"
        )
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    _say_once(f"audio of {channels} channels is averaged to one", path)
    waveform = samples.mean(1)
    power = numpy.square(samples).sum(0, dtype=numpy.float64)  # (C,)
    if numpy.square(waveform).sum() < CANCELLED * power.mean() / channels:
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
    if waveform.size == 0:  # of an mp3, which may count none but its padding
        raise UserError(f"{path}: holds no sample: leave it out or replace it")
    if rate == sample_rate:
        return waveform
    _say_once(f"audio at {rate} Hz is resampled to {sample_rate} Hz", path)
    import torch

    return _resampler(rate, sample_rate)(torch.from_numpy(waveform)).numpy()


def _quietest(samples, rate, *, after):
    """The middle of the quietest pause of samples (T,) after a sample."""
    hop = max(1, rate // 100)
    power = numpy.square(samples[after:])
    power = power[: power.size // hop * hop].reshape(-1, hop).mean(1)  # (frames,)
    frames = max(1, min(round(PAUSE * 100), power.size))
    pauses = sliding_window_view(power, frames).mean(1)
    return after + (int(pauses.argmin()) + frames // 2) * hop


@functools.lru_cache(maxsize=16)
def _resampler(rate, sample_rate):
    """Torchaudio's, with its kernel, for a ratio of rates that is within 0.05% of this.

    All usual rates are exact. Its kernel has a tap for each sample of a common period, which of
    44101 and 16000 Hz is 1 s.
    """
    import torchaudio

    ratio = Fraction(rate, sample_rate)
    most = int(1000 / math.sqrt(max(1, ratio)))  # the kernel grows with its square and the ratio
    ratio = ratio.limit_denominator(max(1, most))
    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)


_said = set()


def _say_once(what, path):
    if what not in _said:
        _said.add(what)
        logger.info("%s; the first such file: %s", what, path)


def float_samples(samples):
    """Returns a copy of samples as floats.

    Arguments
    ---------
    samples : torch.Tensor or numpy.ndarray
        (N,), floats in [-1, 1] or 16-bit integers.

    Raises
    ------
    UserError
        If they are no samples of one channel, not finite or far beyond full scale.
    """
    import torch

    # copies: their owner may use the memory again, or not let others write there
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().to("cpu", copy=True)
    else:
        samples = numpy.array(samples)
        if samples.dtype.kind not in "fiu":
            raise UserError(
                f"the samples are {samples.dtype}, but must be floats in [-1, 1] or 16-bit integers"
            )
        samples = torch.from_numpy(samples.astype(samples.dtype.newbyteorder("=")))
    if samples.dim() != 1:
        raise UserError(
            f"the samples have the shape {tuple(samples.shape)}, but must be those of one channel, "
            "(N,): average the channels first"
        )
    if samples.dtype == torch.int16:
        return samples.float() / LARGEST
    if not samples.is_floating_point():
        raise UserError(
            f"the samples are {samples.dtype}, but must be floats in [-1, 1] or 16-bit integers"
        )
    samples = samples.float()
    if not samples.isfinite().all():
        raise UserError("the samples are not finite (NaN or infinity): look at their source")
    if samples.numel() and (peak := float(samples.abs().max())) > LOUDEST:
        raise UserError(
            f"the samples reach {peak:.4g}, but full scale is 1: divide them, as by {LARGEST} if "
            "they were whole numbers of 16 bits"
        )
    return samples
