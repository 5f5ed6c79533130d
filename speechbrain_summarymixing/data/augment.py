"""Augmentation drawn for each utterance, and what SpeechBrain does not have for one alone."""

import hashlib
import random
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from speechbrain.augment.time_domain import AddNoise, pink_noise_like
from speechbrain.processing.signal_processing import reverberate

from speechbrain_summarymixing.audio import AUDIO_SUFFIXES, read_part
from speechbrain_summarymixing.errors import UserError

COLOURED = "coloured"  # in place of a folder of noise
STEEPEST = 1.0  # power of the frequency by which the amplitude of brown noise falls
LONGEST_ECHO = 4.0  # s, of which an impulse response is read


@contextmanager
def drawn_from(*parts, device="cpu"):
    """Lets random numbers depend on ``parts`` alone; then the generators go on as before.

    So that systems of other sizes, or a run that goes on, hear the same augmented speech.

    Arguments
    ---------
    *parts
        Of a key, such as a seed, an epoch and an utterance's ID.
    device : str or torch.device
        Whose generator is used, beside the CPU's and Python's.

    Example
    -------
    >>> with drawn_from(1234, 1, "utterance"):
    ...     first = torch.rand(())
    >>> with drawn_from(1234, 1, "utterance"):
    ...     assert torch.rand(()) == first
    """
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    seed, python = int.from_bytes(digest[:7], "big"), random.getstate()
    on_gpu = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)


class DrawnByUtterance:
    """An augmentation of waveforms that a seed, the epoch and the utterance's ID decide.

    Arguments
    ---------
    augment : callable
        From a waveform (1, T) to a waveform (1, T').
    seed : int
    """

    def __init__(self, augment, seed):
        self.augment, self.seed = augment, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by all workers

    def __call__(self, waveform, key):
        """Returns the augmented waveform (T',) of (T,)."""
        with drawn_from(self.seed, int(self.epoch), key):
            return self.augment(waveform.unsqueeze(0)).squeeze(0)


class RandomShift(torch.nn.Module):
    """Moves speech in time; what it leaves is zero, what leaves its ends is lost.

    Arguments
    ---------
    seconds : float
        Largest shift to either side.
    sample_rate : int
        In Hz.
    """

    def __init__(self, seconds, sample_rate=16000):
        super().__init__()
        self.samples = round(seconds * sample_rate)

    def forward(self, waveform):
        """Returns the moved waveform (1, T)."""
        shift = int(torch.randint(-self.samples, self.samples + 1, ()))
        shift = max(-waveform.size(-1), min(waveform.size(-1), shift))
        padded = torch.nn.functional.pad(waveform, (max(0, shift), max(0, -shift)))
        start = max(0, -shift)
        return padded[..., start : start + waveform.size(-1)]


class WhiteNoise(AddNoise):
    """SpeechBrain's `AddNoise` of white noise to a whole waveform.

    Arguments
    ---------
    snr_low, snr_high : float
        Of signal to noise, in decibels.
    """

    def __init__(self, snr_low, snr_high):
        super().__init__(snr_low=snr_low, snr_high=snr_high)

    def forward(self, waveform):
        """Returns the noisy waveform (1, T)."""
        return super().forward(waveform, torch.ones(1, device=waveform.device))


class Recordings:
    """The audio files of a folder, of which one is drawn; drawing is by torch's random numbers.

    SpeechBrain's `AddNoise` and `AddReverb` read theirs in turn, so that what an utterance gets
    depends on those before it, and on the worker.

    Arguments
    ---------
    folder : str or Path
        Looked through, with its folders, at `find`.
    sample_rate : int
        In Hz.
    option : str
        That names the folder.
    """

    def __init__(self, folder, sample_rate, option):
        self.folder, self.sample_rate, self.option = Path(folder), sample_rate, option
        self.files = []

    def find(self):
        """Looks for the files, once.

        Raises
        ------
        UserError
            If there are none.
        """
        if not self.files:
            found = (f for f in self.folder.rglob("*") if f.suffix.lower() in AUDIO_SUFFIXES)
            self.files = sorted(found, key=lambda f: f.relative_to(self.folder).as_posix())
        if not self.files:
            raise UserError(
                f"{self.option} is {self.folder}, where no audio file is "
                f"({', '.join(sorted(AUDIO_SUFFIXES))}): give a folder of recordings, or null"
            )
        return self.files

    def draw(self, seconds):
        """Returns a random part (T,) of a random file, of ``seconds`` or all of a shorter one."""
        files = self.find()
        file, place = files[int(torch.randint(len(files), ()))], float(torch.rand(()))
        return read_part(file, self.sample_rate, seconds=seconds, place=place)

    def like(self, waveform):
        """Returns what is drawn, repeated to the length of a waveform (1, T)."""
        drawn = self.draw(waveform.size(-1) / self.sample_rate).to(waveform.device)
        times = -(-waveform.size(-1) // drawn.numel())
        return drawn.repeat(times)[: waveform.size(-1)].unsqueeze(0)


class BackgroundNoise(AddNoise):
    """SpeechBrain's `AddNoise` of a recording, or of coloured noise, to some whole waveforms.

    Arguments
    ---------
    folder : str, Path or None
        Of recordings; "coloured": noise of a colour from white to brown; None: none is added.
    probability : float
        Of a waveform to get some.
    snr_low, snr_high : float
        Of signal to noise, in decibels.
    sample_rate : int
        In Hz.

    Raises
    ------
    UserError
        If probability is not 0 to 1, or snr_low above snr_high.
    """

    def __init__(self, folder, *, probability, snr_low, snr_high, sample_rate=16000):
        _check_probability("--noise_probability", probability)
        if snr_low > snr_high:
            raise UserError(
                f"--noise_snr_low is {snr_low}, which is above --noise_snr_high {snr_high}: give "
                "two numbers of decibels, the lower one first"
            )
        super().__init__(snr_low=snr_low, snr_high=snr_high)
        self.folder, self.probability = folder, probability
        if folder == COLOURED:
            colours = {"alpha_low": 0.0, "alpha_high": STEEPEST, "sample_rate": sample_rate}
            self.noise_funct = partial(pink_noise_like, **colours)
        elif folder is not None:
            self.recordings = Recordings(folder, sample_rate, "--noise_folder")
            self.noise_funct = self.recordings.like

    def forward(self, waveform):
        """Returns the noisy waveform (1, T)."""
        if self.folder is None or torch.rand(()) >= self.probability:
            return waveform
        return super().forward(waveform, torch.ones(1, device=waveform.device))


class Reverberation(torch.nn.Module):
    """Some waveforms as heard in a room, by SpeechBrain's `reverberate`; they begin when they did.

    Arguments
    ---------
    folder : str, Path or None
        Of impulse responses; None: there is no room.
    probability : float
        Of a waveform to be in one.
    sample_rate : int
        In Hz.

    Raises
    ------
    UserError
        If probability is not 0 to 1.
    """

    def __init__(self, folder, *, probability, sample_rate=16000):
        super().__init__()
        _check_probability("--rir_probability", probability)
        self.probability, self.recordings = probability, None
        if folder is not None:
            self.recordings = Recordings(folder, sample_rate, "--rir_folder")

    def forward(self, waveform):
        """Returns the reverberant waveform (1, T)."""
        if self.recordings is None or torch.rand(()) >= self.probability:
            return waveform
        response = self.recordings.draw(LONGEST_ECHO).to(waveform.device)
        # SpeechBrain's convolution is circular: the echo of the end would be heard at the begin
        padded = torch.nn.functional.pad(waveform, (0, response.numel()))
        return reverberate(padded, response)[:, : waveform.size(-1)]


def _check_probability(option, probability):
    if not 0 <= probability <= 1:
        raise UserError(f"{option} is {probability}, but must be 0 to 1")
