"""Where a batch is padding."""

import torch


def padding_mask(lengths, frames):
    """Returns (B, T), True on padding, of relative lengths (B,), with T ``frames``."""
    frame = torch.arange(frames, device=lengths.device)
    return frame + 0.5 > lengths.unsqueeze(1) * frames  # half a frame absorbs float rounding
