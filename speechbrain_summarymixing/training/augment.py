"""Augmentation of waveforms that SpeechBrain does not have, or not for one waveform alone."""

import torch
from speechbrain.augment.time_domain import AddNoise


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
