"""Sine positions without a length limit."""

import torch
from speechbrain.nnet.attention import RelPosEncXL

from speechbrain_summarymixing.nnet.sines import exact_dtype, sines


class SinePositions(torch.nn.Module):
    """Fixed sine positions of a sequence of any length.

    SpeechBrain's table ends at ``max_length`` frames. Here they are computed as they are needed, in
    float64: after an hour float32 would be off by 0.005.

    Arguments
    ---------
    d_model : int
        Feature size D, even.

    Example
    -------
    >>> SinePositions(8)(torch.zeros(2, 30, 8)).shape
    torch.Size([1, 30, 8])
    """

    def __init__(self, d_model):
        super().__init__()
        if d_model % 2:
            raise ValueError(
                f"d_model is {d_model}, but sines and cosines of a position come in pairs: take an "
                "even one"
            )
        self.d_model = d_model

    def forward(self, x, start=0):
        """Returns the positions of a sequence.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, D).
        start : int or torch.Tensor
            Of the first frame: one number, or (B,) where sequences go on from places of their own.

        Returns
        -------
        torch.Tensor
            (1, T, D), or (B, T, D).
        """
        frame = torch.arange(x.size(1), device=x.device, dtype=exact_dtype(x.device))
        if torch.is_tensor(start):
            start = start.unsqueeze(1)
        return sines((frame + start).view(-1, x.size(1)), self.d_model).to(x.dtype)


class AddSinePositions(SinePositions):
    """Adds `SinePositions` to a sequence.

    Example
    -------
    >>> AddSinePositions(8)(torch.zeros(2, 30, 8)).shape
    torch.Size([2, 30, 8])
    """

    def forward(self, x, start=0):
        """Returns ``x`` (B, T, D) plus its positions; ``start`` as in `SinePositions`."""
        return x + super().forward(x, start)


class RelativePositions(RelPosEncXL):
    """Relative positions of any length, as SpeechBrain's, or with the sign of the distance.

    SpeechBrain's are the same for a frame to the left and one as far to the right
    (speechbrain#3070); those of Transformer-XL (arXiv 1901.02860) have sines of the distance with
    its sign. Both are made so that `torch.export` follows them.

    Arguments
    ---------
    d_model : int
        Feature size D, even.
    signed : bool
        A frame to the left and one to the right have positions of their own.

    Example
    -------
    >>> RelativePositions(8)(torch.zeros(2, 30, 8)).shape
    torch.Size([1, 59, 8])
    """

    def __init__(self, d_model, signed=False):
        super().__init__(d_model)
        self.signed = signed

    def make_pe(self, seq_len):
        """Returns the positions (1, 2 T - 1, D) of the distances T - 1 to 1 - T, T ``seq_len``."""
        device = self.inv_freq.device
        distance = -torch.arange(1 - seq_len, seq_len, device=device, dtype=exact_dtype(device))
        if not self.signed:
            distance = distance.abs()
        return sines(distance, self.emb_dim).to(self.emb_dtype).unsqueeze(0)
