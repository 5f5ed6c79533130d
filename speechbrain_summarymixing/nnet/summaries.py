"""Means over time, of valid frames only, summed in float32 or better.

B is the batch, T the number of frames, S the summary's width, C the frames of a chunk, K the number
of chunks, the last of which may be shorter.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from speechbrain_summarymixing.nnet.sines import exact_dtype

BLOCK = 64  # frames summed at once by a scan; what passes from block to block is a carry


@dataclass(frozen=True)
class Window:
    """The frames that each frame sees: its own chunk, whole, and chunks to the left of it.

    Arguments
    ---------
    chunk_frames : int
        Frames C of a chunk. With chunks of one frame, the default, the window is causal: frame t
        sees the frames 0 to t.
    left_chunks : int or None
        Chunks seen to the left of a frame's own; None is all.

    Raises
    ------
    ValueError
        If a number is no integer or too small.

    Example
    -------
    >>> Window(chunk_frames=2, left_chunks=1).attn_mask(6).logical_not().int()
    tensor([[1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [0, 0, 1, 1, 1, 1],
            [0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    """

    chunk_frames: int = 1
    left_chunks: int | None = None

    def __post_init__(self):
        if not isinstance(self.chunk_frames, int) or self.chunk_frames < 1:
            raise ValueError(
                f"chunk_frames is {self.chunk_frames}, but must be an integer of 1 or more: "
                "1 is a causal window"
            )
        if self.left_chunks is not None and (
            not isinstance(self.left_chunks, int) or self.left_chunks < 0
        ):
            raise ValueError(
                f"left_chunks is {self.left_chunks}, but must be an integer of 0 or more, or None: "
                "None sees everything to the left"
            )

    def attn_mask(self, frames, device=None):
        """Returns the same window as a mask (T, T), bool, True where a frame is blocked."""
        frame = torch.arange(frames, device=device)
        return self.blocks(frame[:, None], frame)

    def blocks(self, i, j):
        """Whether frames i may not see frames j, tensors of their indices, by broadcasting."""
        behind = i // self.chunk_frames - j // self.chunk_frames
        blocked = behind < 0
        return blocked if self.left_chunks is None else blocked | (behind > self.left_chunks)


CAUSAL = Window()


def window_of_mask(attn_mask):
    """Recognises a causal or chunked mask; it reads the mask on the host: keep it out of forward.

    Arguments
    ---------
    attn_mask : torch.Tensor
        (T, T): bool, True where frame j is blocked for frame i, or float, where 0 allows and -inf
        blocks.

    Returns
    -------
    Window or None
        None where no window is equal to the mask.

    Example
    -------
    >>> window_of_mask(torch.ones(5, 5).triu(1).bool())
    Window(chunk_frames=1, left_chunks=None)
    """
    if attn_mask.dim() != 2 or attn_mask.size(0) != attn_mask.size(1) or not attn_mask.numel():
        return None
    blocked = allowed_frames(attn_mask).logical_not()
    if attn_mask.dtype != torch.bool and not torch.equal(blocked, attn_mask == -torch.inf):
        return None  # a bias, such as ALiBi's
    frames = blocked.size(0)
    chunk_frames = frames - int(blocked[0].sum())
    if chunk_frames == 0:
        return None
    first_seen = int(blocked[-1].long().argmin())  # by the last frame
    left_chunks = (frames - 1) // chunk_frames - first_seen // chunk_frames
    window = Window(chunk_frames, left_chunks if first_seen > 0 else None)
    return window if torch.equal(window.attn_mask(frames, blocked.device), blocked) else None


def masked_mean(x, key_padding_mask=None):
    """Mean over the valid frames of each utterance.

    Arguments
    ---------
    x : torch.Tensor
        (..., B, T, S), finite.
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding. A row of padding alone has the mean zero.

    Returns
    -------
    torch.Tensor
        (..., B, S), in the type of x.

    Reference: equation of s_bar, arXiv 2307.07421.
    """
    if key_padding_mask is None:
        return (x.sum(-2, dtype=_accumulator(x)) / x.size(-2)).to(x.dtype)
    total = x.masked_fill(key_padding_mask.unsqueeze(-1), 0.0).sum(-2, dtype=_accumulator(x))
    count = key_padding_mask.logical_not().sum(1, keepdim=True).clamp(min=1)
    return (total / count).to(x.dtype)


def attn_mask_mean(x, attn_mask, key_padding_mask=None):
    """Mean over the frames that a mask allows each frame, by one matrix product in O(T²).

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
    allowed = allowed_frames(attn_mask)
    if allowed.dim() == 2:
        allowed = allowed.unsqueeze(0)
    if key_padding_mask is not None:
        allowed = allowed & key_padding_mask.logical_not().unsqueeze(1)
    with torch.autocast(x.device.type, enabled=False):
        weights = allowed.to(_accumulator(x))
        weights = weights / weights.sum(2, keepdim=True).clamp(min=1)
        return (weights @ x.to(weights.dtype)).to(x.dtype)


def windowed_mean(x, window, key_padding_mask=None):
    """Mean over each frame's window, in O(T).

    Arguments
    ---------
    x : torch.Tensor
        (B, T, S), finite.
    window : Window
        The frames that each frame sees.
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding. A frame that sees no valid frame has the mean zero.

    Returns
    -------
    torch.Tensor
        (B, T, S), in the type of x.
    """
    return to_frames(chunk_means(x, window, key_padding_mask), window, x.size(1))


def chunk_means(x, window, key_padding_mask=None):
    """As `windowed_mean`, but (B, K, S): once for each chunk, whose frames all see the same."""
    return running_chunk_means(x, window, None, key_padding_mask)[0]


def to_frames(means, window, frames):
    """Repeats (B, K, S), one vector for each chunk, over the frames of the chunks: (B, T, S)."""
    if window.chunk_frames == 1:
        return means
    means = means.unsqueeze(2).expand(-1, -1, min(window.chunk_frames, frames), -1)
    return means.flatten(1, 2)[:, :frames]


class RunningSums(NamedTuple):
    """What later chunks need of the ones before, in float64; its size does not grow with time.

    With all to the left seen, H is 1: the sum of everything so far. Otherwise the sums of the last
    ``left_chunks`` chunks.
    """

    total: torch.Tensor  # (B, H, S)
    count: torch.Tensor  # (B, H, 1)


def empty_sums(batch, width, window, device=None):
    """Returns `running_sums`' history (B, H, S) of a stream's start, with ``width`` S: zeros."""
    kept = 1 if window.left_chunks is None else window.left_chunks
    dtype = exact_dtype(device or torch.get_default_device())
    return torch.zeros(batch, kept, width, dtype=dtype, device=device)


def running_chunk_means(x, window, state=None, key_padding_mask=None):
    """Continues `chunk_means` where an earlier call ended: equal to one call on the whole.

    Arguments
    ---------
    x : torch.Tensor
        (B, T, S), the next frames, finite: whole chunks, but for the end of the stream.
    window : Window
        The same in every call.
    state : RunningSums or None
        Of the call before; None starts.
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding.

    Returns
    -------
    means : torch.Tensor
        (B, K, S), in the type of x; `to_frames` repeats them over the frames.
    state : RunningSums
        For the next call.

    Example
    -------
    >>> x = torch.rand(1, 6, 3)
    >>> first, state = running_chunk_means(x[:, :4], Window(2))
    >>> second, state = running_chunk_means(x[:, 4:], Window(2), state)
    >>> torch.allclose(torch.cat([first, second], 1), chunk_means(x, Window(2)))
    True
    """
    accumulator = _accumulator(x)
    if key_padding_mask is None:
        valid = torch.ones(*x.shape[:2], 1, dtype=accumulator, device=x.device)
    else:
        valid = key_padding_mask.logical_not().unsqueeze(-1).to(accumulator)
        x = x.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
    history_of_total, history_of_count = (None, None) if state is None else state
    total, history_of_total = _window_sums(x, window, history_of_total)
    count, history_of_count = _window_sums(valid, window, history_of_count)
    means = total.to(accumulator) / count.clamp(min=1).to(accumulator)
    return means.to(x.dtype), RunningSums(history_of_total, history_of_count)


def _window_sums(x, window, history):
    """Sums of (B, T, S) over each chunk's window, (B, K, S), and the history to go on from."""
    if window.chunk_frames > 1:
        chunk = min(window.chunk_frames, x.size(1))
        x = _in_blocks(x, chunk).sum(2, dtype=_accumulator(x))
    return running_sums(x, window.left_chunks, history)


def running_sums(x, left, history=None):
    """Sums over each vector and those to the left of it, in O(T).

    Arguments
    ---------
    x : torch.Tensor
        (B, T, S).
    left : int or None
        How many to the left; None is all.
    history : torch.Tensor or None
        Of the call before; None starts.

    Returns
    -------
    sums : torch.Tensor
        (B, T, S).
    history : torch.Tensor
        For the next call, float64: (B, 1, S), the sum of all, or the last ``left`` vectors.

    Example
    -------
    >>> running_sums(torch.ones(1, 4, 1), 1)[0].flatten()
    tensor([1., 2., 2., 2.])
    """
    frames = x.size(1)
    if history is not None:
        x = torch.cat([history, x], 1)
    if left is None:
        sums = _prefix_sums(x)
        return sums[:, -frames:], sums[:, -1:].to(exact_dtype(x.device))
    sums = _sliding_sums(x, min(left + 1, x.size(1)))
    return sums[:, -frames:], x[:, max(0, x.size(1) - left) :].to(exact_dtype(x.device))


def _sliding_sums(x, width):
    """Sums (B, T, S) of the last ``width`` frames, or of all so far.

    In blocks of the width they are a block's first frames and the last ones of the block before,
    each summed from its own end: no sum holds what it is not of, so float32 stays exact.
    """
    blocks = _in_blocks(x, width)
    flat = blocks.flatten(0, 1)
    first = _prefix_sums(flat).unflatten(0, blocks.shape[:2])
    last = _prefix_sums(flat.flip(1)).flip(1)[:, 1:]  # what comes after a frame in its block
    last = functional.pad(last, (0, 0, 0, 1)).unflatten(0, blocks.shape[:2])
    sums = torch.cat([first[:, :1], first[:, 1:] + last[:, :-1]], 1)
    return sums.flatten(1, 2)[:, : x.size(1)]


def _prefix_sums(x):
    """Sums (B, T, S) of the frames 0 to t; what passes from block to block is float64."""
    blocks = _in_blocks(x, min(BLOCK, x.size(1))).cumsum(2, dtype=_accumulator(x))
    carry = blocks[:, :, -1].cumsum(1, dtype=exact_dtype(x.device))
    carry = functional.pad(carry, (0, 0, 1, -1)).unsqueeze(2)  # of the blocks before
    return blocks.add_(carry.to(blocks.dtype)).flatten(1, 2)[:, : x.size(1)]


def decayed_mean(x, decay, key_padding_mask=None):
    """Mean with the weights decay^|i-j|, which sum to one over the valid frames j, in O(T).

    Arguments
    ---------
    x : torch.Tensor
        (B, T, S), finite.
    decay : float
        Between 0 and 1.
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding. A row of padding alone has means of zero.

    Returns
    -------
    torch.Tensor
        (B, T, S), in the type of x; without meaning on padding.

    Reference: decay of SummaryMixing, arXiv 2307.07421.
    """
    accumulator = _accumulator(x)
    if key_padding_mask is None:
        valid = torch.ones(1, x.size(1), 1, dtype=accumulator, device=x.device)
    else:
        valid = key_padding_mask.logical_not().unsqueeze(-1).to(accumulator)
        x = x.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
    with torch.autocast(x.device.type, enabled=False):
        total = _decayed_sums(x.to(accumulator), decay)
        weight = _decayed_sums(valid, decay).clamp(min=1)  # a valid frame's own weight is 1
        return (total / weight).to(x.dtype)


def _decayed_sums(x, decay):
    """Sums over j of decay^|i-j| x_j, of (B, T, S).

    Inside of a block by a matrix. A block tells those to the right its sum as seen from its last
    frame, and those to the left as seen from its first; between the blocks these two decay by
    decay^BLOCK, again by a matrix, which is smaller than x up to T = BLOCK² S.
    """
    # one more than it takes: a compiled graph for all lengths has never a dimension of 1
    blocks = _in_blocks(x, more=1)  # (B, T / BLOCK + 1, BLOCK, S)
    frame = torch.arange(BLOCK, device=x.device)
    block = torch.arange(blocks.size(1), device=x.device)

    def weights(distance):  # float64: decay may be near to 1, and its powers near to 0
        return (decay ** distance.to(exact_dtype(x.device))).to(x.dtype)

    to_right, to_left = frame.flip(0), frame
    inside = weights((frame[:, None] - frame).abs())
    sums = torch.cat([inside, weights(torch.stack([to_right, to_left]))]) @ blocks
    sums, from_last, from_first = sums.split([BLOCK, 1, 1], dim=2)
    between = weights(BLOCK * (block[:, None] - block - 1).clamp(min=0)).tril(-1)
    carry = torch.stack([between @ from_last.squeeze(2), between.T @ from_first.squeeze(2)], 2)
    outside = weights(torch.stack([to_left, to_right], 1) + 1)
    sums, carry = sums.flatten(0, 1), carry.flatten(0, 1)
    sums = torch.baddbmm(sums, outside.expand(carry.size(0), -1, -1), carry)
    return sums.unflatten(0, blocks.shape[:2]).flatten(1, 2)[:, : x.size(1)]


def _in_blocks(x, size=BLOCK, more=0):
    """(B, T, S), filled up with zeros, as (B, ceil(T / size) + more, size, S)."""
    blocks = (x.size(1) + size - 1) // size + more
    return functional.pad(x, (0, 0, 0, blocks * size - x.size(1))).unflatten(1, (blocks, size))


def allowed_frames(attn_mask):
    """Where a mask (T, T) or (B, T, T), bool or float, lets a frame see another: bool."""
    return attn_mask.logical_not() if attn_mask.dtype == torch.bool else attn_mask == 0


def _accumulator(x):
    return torch.float64 if x.dtype == torch.float64 else torch.float32
