"""Depthwise convolution over time that sees no frame beyond its chunk."""

from torch.nn import functional


def depthwise_convolution(x, weight, bias=None, *, causal=False, chunk_frames=None):
    """Convolves each channel over time; what a frame may not see counts as zero.

    Arguments
    ---------
    x : torch.Tensor
        (B, C, T).
    weight : torch.Tensor
        (C, 1, K), K odd unless causal.
    bias : torch.Tensor or None
        (C,).
    causal : bool
        The kernel ends at its frame, and is not centred on it.
    chunk_frames : int or None
        Frames of a chunk: a frame sees all to its left, and to its right up to the end of its
        chunk. None: no chunks.

    Returns
    -------
    torch.Tensor
        (B, C, T).

    Reference: dynamic chunk convolution, arXiv 2304.09325.

    Example
    -------
    >>> x, weight = torch.ones(1, 1, 6), torch.ones(1, 1, 3)
    >>> depthwise_convolution(x, weight, chunk_frames=3)
    tensor([[[2., 3., 2., 3., 3., 2.]]])
    """
    batch, channels, frames = x.shape
    if causal:
        x = functional.pad(x, (weight.size(2) - 1, 0))
        return functional.conv1d(x, weight, bias, groups=channels)
    side = weight.size(2) // 2
    if chunk_frames is None:
        return functional.conv1d(x, weight, bias, padding=side, groups=channels)
    x = functional.pad(x, (side, -frames % chunk_frames))
    chunks = x.unfold(2, chunk_frames + side, chunk_frames)  # (B, C, chunks, side + chunk)
    chunks = functional.pad(chunks, (0, side)).transpose(1, 2).flatten(0, 1)
    chunks = functional.conv1d(chunks, weight, bias, groups=channels)  # (B chunks, C, chunk)
    return chunks.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)[..., :frames]
