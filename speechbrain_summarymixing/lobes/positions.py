"""Sine positions without a length limit."""

import torch
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding


class SinePositions(torch.nn.Module):
    """Fixed sine positions of a sequence of any length.

    SpeechBrain's table ends at ``max_length`` frames; this one doubles when a longer input comes.
    It is rebuilt from its equation, so it is no part of the state dict.

    Arguments
    ---------
    d_model : int
        Feature size D, even.
    initial_frames : int
        Length of the first table, in frames.

    Example
    -------
    >>> SinePositions(8, initial_frames=4)(torch.zeros(2, 30, 8)).shape
    torch.Size([1, 30, 8])
    """

    def __init__(self, d_model, initial_frames=2500):
        super().__init__()
        table = PositionalEncoding(d_model, initial_frames).pe
        self.register_buffer("table", table, persistent=False)

    def forward(self, x, start=0):
        """Returns the positions (1, T, D) of ``x`` (B, T, D), whose first is ``start``."""
        frames = start + x.size(1)
        if frames > self.table.size(1):
            longer = max(frames, 2 * self.table.size(1))
            with torch.device(self.table.device):
                self.table = PositionalEncoding(x.size(2), longer).pe.to(self.table.dtype)
        return self.table[:, start:frames]


class AddSinePositions(SinePositions):
    """Adds `SinePositions` to a sequence.

    Example
    -------
    >>> AddSinePositions(8, initial_frames=4)(torch.zeros(2, 30, 8)).shape
    torch.Size([2, 30, 8])
    """

    def forward(self, x, start=0):
        """Returns ``x`` (B, T, D) plus its positions, of which the first is ``start``."""
        return x + super().forward(x, start)
