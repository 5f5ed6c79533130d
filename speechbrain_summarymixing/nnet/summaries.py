"""Means over time, of valid frames only, summed in float32 or better.

B is the batch, T the number of frames, S the summary's width.
"""

import torch


def masked_mean(x, key_padding_mask=None):
    """Mean over the valid frames of each utterance.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, S), finite.
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding. A row of padding alone has the mean zero.

    Returns
    -------
    torch.Tensor
        (B, S), in the type of x.

    Reference: equation of s_bar, arXiv 2307.07421.
    """
    if key_padding_mask is None:
        return (x.sum(1, dtype=_accumulator(x)) / x.size(1)).to(x.dtype)
    total = x.masked_fill(key_padding_mask.unsqueeze(-1), 0.0).sum(1, dtype=_accumulator(x))
    count = key_padding_mask.logical_not().sum(1, keepdim=True).clamp(min=1)
    return (total / count).to(x.dtype)


def windowed_mean(x, attn_mask, key_padding_mask=None):
    """Mean over the frames that a mask allows each frame, by one matrix product.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, S), finite.
    attn_mask : torch.Tensor
        (T, T) or (B, T, T): bool, True where frame j is blocked for frame i, or float, where 0
        allows and -inf blocks.
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding. A frame that may see no valid frame has the mean zero.

    Returns
    -------
    torch.Tensor
        (B, T, S), in the type of x.
    """
    allowed = attn_mask.logical_not() if attn_mask.dtype == torch.bool else attn_mask == 0
    if allowed.dim() == 2:
        allowed = allowed.unsqueeze(0)
    if key_padding_mask is not None:
        allowed = allowed & key_padding_mask.logical_not().unsqueeze(1)
    with torch.autocast(x.device.type, enabled=False):
        weights = allowed.to(_accumulator(x))
        weights = weights / weights.sum(2, keepdim=True).clamp(min=1)
        return (weights @ x.to(weights.dtype)).to(x.dtype)


def _accumulator(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32
