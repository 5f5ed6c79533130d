"""Depthwise convolution over time that sees no frame beyond its chunk."""

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass
class ConvolutionStream:
    """A convolution's place in a growing sequence.

    Arguments
    ---------
    chunk_size : int
        Frames of a chunk.
    left : torch.Tensor
        (B, C, frames that the kernel reaches back), the last inputs of the call before, zero at the
        start: `no_frames`. A convolution replaces it at each call.
    """

    chunk_size: int
    left: torch.Tensor


def no_frames(weight, causal, batch):
    """Returns what a stream's convolution by ``weight`` (C, 1, K) has before its first frame.

    It is zero, (B, C, frames that the kernel reaches back); see `depthwise_convolution`.
    """
    return weight.new_zeros(batch, weight.size(0), _reach(weight, causal))


def depthwise_convolution(x, weight, bias=None, *, causal=False, chunks=None):
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
    chunks : DynChunkTrainConfig, ConvolutionStream or None
        A frame sees all to its left, and to its right up to the end of its chunk of
        ``chunk_size`` frames; a causal kernel has no use for it. A stream goes on where its last
        call ended. None: no chunks.

    Returns
    -------
    torch.Tensor
        (B, C, T).

    Reference: dynamic chunk convolution, arXiv 2304.09325.

    Example
    -------
    >>> x, weight = torch.ones(1, 1, 6), torch.ones(1, 1, 3)
    >>> chunks = ConvolutionStream(3, no_frames(weight, False, batch=1))
    >>> depthwise_convolution(x, weight, chunks=chunks)
    tensor([[[2., 3., 2., 3., 3., 2.]]])
    """
    batch, _, frames = x.shape
    side = weight.size(2) // 2
    if chunks is None and not causal:
        return _convolve(x, weight, bias, side)
    reach = _reach(weight, causal)
    if isinstance(chunks, ConvolutionStream):
        x = torch.cat([chunks.left, x], 2)
        chunks.left = x[..., x.size(2) - reach :]
    else:
        x = functional.pad(x, (reach, 0))
    if causal:
        return _convolve(x, weight, bias)
    chunk = min(chunks.chunk_size, max(frames, 1))
    x = functional.pad(x, (0, -frames % chunk)).unfold(2, chunk + side, chunk)
    x = functional.pad(x, (0, side)).transpose(1, 2).flatten(0, 1)  # (B chunks, C, ...)
    x = _convolve(x, weight, bias)  # (B chunks, C, chunk)
    return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)[..., :frames]


def _reach(weight, causal):
    """Frames to the left of its own that a kernel sees."""
    return weight.size(2) - 1 if causal else weight.size(2) // 2


def _convolve(x, weight, bias, padding=0):
    """Depthwise conv1d of (B, C, T), as the conv2d that the CPU does many times faster.

    Its memory is (B, T, C), and time is the width where no gradient is needed, else the height.
    """
    channels = x.size(1)
    if x.device.type != "cpu":
        return functional.conv1d(x, weight, bias, padding=padding, groups=channels)
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    if torch.is_grad_enabled():
        x = functional.conv2d(
            x.unsqueeze(3), weight.unsqueeze(3), bias, padding=(padding, 0), groups=channels
        )
        return x.squeeze(3)
    x = functional.conv2d(
        x.unsqueeze(2), weight.unsqueeze(2), bias, padding=(0, padding), groups=channels
    )
    return x.squeeze(2)
