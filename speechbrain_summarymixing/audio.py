"""Reading audio of any format, rate and number of channels as mono at one rate."""

import functools
import io
import logging
import os
import stat
from dataclasses import dataclass
from fractions import Fraction

import soundfile
import torch
import torchaudio

from speechbrain_summarymixing.errors import UserError

logger = logging.getLogger(__name__)

UNKNOWN_FRAMES = 2**63 - 1  # of libsndfile, for a flac that was written to a pipe
LOWEST_RATE = 4000  # Hz: at a lower one no speech is left, and resampling makes it long
MP3_PADDING = 2 * 1152  # samples that an encoder adds, which are counted and not decoded


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


def read_audio(source, sample_rate=16000, *, name=None):
    """Reads a file as mono at a rate.

    Arguments
    ---------
    source : str, Path or bytes
        Path, as in `audio_info`, or content of a file.
    sample_rate : int
        In Hz. Audio of another rate is resampled and channels are averaged; the log tells the
        first file of each kind.
    name : str or None
        What errors and the log call it; None: its path.

    Returns
    -------
    torch.Tensor
        (T,), float32.

    Raises
    ------
    UserError
        If the file is missing, empty, cut short (which an mp3 need not tell), no audio, or holds
        NaN or infinity.
    """
    path = source if name is None else name
    with _open(source, path) as file:
        frames, rate = file.frames, file.samplerate
        padding = MP3_PADDING if file.format == "MP3" else 0
        try:
            samples = torch.from_numpy(file.read(dtype="float32", always_2d=True))  # (T, C)
        except MemoryError as error:
            raise UserError(
                f"{path}: no memory for its {frames} samples of {file.channels} channels: cut it"
            ) from error
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: cannot be decoded ({error}): replace the file") from error
    if len(samples) < frames - padding:
        raise UserError(
            f"{path}: cut short, {len(samples)} of the {frames} samples that its header promises: "
            "replace the file"
        )
    if not samples.isfinite().all():
        raise UserError(f"{path}: has NaN or infinite samples: replace the file")
    if samples.size(1) > 1:
        _say_once(f"audio of {samples.size(1)} channels is averaged to one", path)
    waveform = samples.mean(dim=1)
    if rate != sample_rate:
        _say_once(f"audio at {rate} Hz is resampled to {sample_rate} Hz", path)
        waveform = _resampler(rate, sample_rate)(waveform)
    return waveform


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
    if file.frames == UNKNOWN_FRAMES:
        file.close()
        raise UserError(f"{path}: its header does not tell its length: convert it to wav or flac")
    if file.samplerate < LOWEST_RATE:
        file.close()
        raise UserError(
            f"{path}: its header says {file.samplerate} Hz, but speech has {LOWEST_RATE} Hz or "
            "more: mend the header, or replace the file"
        )
    if file.frames == 0:
        file.close()
        raise UserError(f"{path}: holds no sample: leave it out or replace it")
    return file


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
