"""Augmentation drawn for each utterance, and what SpeechBrain does not have for one alone."""

import hashlib
import random
from contextlib import contextmanager

import torch
from speechbrain.augment.time_domain import AddNoise


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
