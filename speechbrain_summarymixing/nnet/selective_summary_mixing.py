"""SummaryMixing whose frames look at their neighbours and select among several summaries, in O(T).

B is the batch, T the number of frames, H the number of heads, D the width, E = D / H, W the
neighbours to each side, M the summaries of a head, N the number of blocks of W frames, C the frames
of a window's chunk and K the number of chunks, 1 without a window.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from speechbrain_summarymixing.nnet.calls import check_call, check_streaming_window
from speechbrain_summarymixing.nnet.summaries import Stream, Window, allowed_frames, running_sums

SCORE_LIMIT = 8.0  # of a frame's weight in a summary: e^8, so that running sums need no maximum


class SelectiveState(NamedTuple):
    """What later chunks need of the ones before; its size does not grow with time."""

    sums: torch.Tensor  # (B, 1 or left chunks, H M (2 E + 1)), float64: of the summaries
    neighbours: torch.Tensor  # (B, W, H, 2 E): keys and values of the last frames
    blocked: torch.Tensor  # (B, W), bool, True where there was none, or padding


class SelectiveSummaryMixing(nn.Module):
    """Mixes a frame with its neighbours and with summaries that it selects, in O(T).

        q_t, k_t, v_t = linear transforms of x_t, for each head
        K_m, V_m = means over time of k_t, v_t, weighted by exp(8 tanh(s_m . k_t / 8))
        h_t = W softmax([q_t . k_j + (q_t + b) . r_{t-j} ; q_t . K_m + c_m]) [v_j ; V_m]

    over the neighbours |t - j| <= W and the summaries m = 1 … M; r is a linear transform of the
    sines of the distance. It is SummaryMixing whose local function sees a window by content and
    position, and whose frames each weigh M means of the utterance instead of taking one. Without
    summaries it is attention in a window.

    Arguments
    ---------
    d_model : int
        Width D.
    nhead : int
        Heads H.
    neighbours : int
        Frames W that a frame sees to each side.
    summaries : int
        Summaries M of each head.
    dropout : float
        Probability of zeroing a weight of the softmax, in training.

    Raises
    ------
    ValueError
        If a number cannot be.

    Reference: SummaryMixing, arXiv 2307.07421; relative positions of arXiv 1901.02860; means
    weighted by a learned query as in arXiv 2108.09084.

    Example
    -------
    >>> mixer = SelectiveSummaryMixing(16, nhead=4, neighbours=5)
    >>> output, weights = mixer(torch.rand(2, 50, 16))
    >>> output.shape, weights
    (torch.Size([2, 50, 16]), None)
    """

    supports_window = True

    def __init__(self, d_model, *, nhead=4, neighbours=16, summaries=4, dropout=0.1):
        super().__init__()
        if nhead < 1 or d_model % nhead != 0 or d_model % 2 != 0:
            raise ValueError(
                f"nhead is {nhead} and d_model {d_model}, but d_model must be even and a multiple "
                "of nhead"
            )
        if neighbours < 1 or summaries < 0:
            raise ValueError(
                f"neighbours is {neighbours} and summaries {summaries}, but there must be 1 or "
                "more neighbours and 0 or more summaries"
            )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}, but must be at least 0 and below 1")
        self.d_model = self.d_out = d_model
        self.nhead, self.neighbours, self.summaries = nhead, neighbours, summaries
        width = d_model // nhead
        self.scale = 1 / math.sqrt(width)
        self.projection = nn.Linear(d_model, 3 * d_model, bias=False)  # queries, keys, values
        self.position = nn.Linear(d_model, d_model, bias=False)
        self.content_bias = nn.Parameter(torch.empty(nhead, width))
        self.position_bias = nn.Parameter(torch.empty(nhead, width))
        self.summary_score = nn.Parameter(torch.empty(nhead, summaries, width))  # s_m
        self.summary_bias = nn.Parameter(torch.empty(nhead, summaries))  # c_m
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self):
        """Xavier-uniform transforms, and scores that differ from summary to summary."""
        for layer in (self.projection, self.position, self.output):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.output.bias)
        for bias in (self.content_bias, self.position_bias):
            nn.init.xavier_uniform_(bias)
        nn.init.normal_(self.summary_score, std=self.scale)
        nn.init.zeros_(self.summary_bias)

    def forward(
        self,
        query,
        key=None,
        value=None,
        attn_mask=None,
        key_padding_mask=None,
        pos_embs=None,
        window=None,
    ):
        """Mixes a sequence with itself; the call is that of SpeechBrain's attention.

        Arguments
        ---------
        query : torch.Tensor
            (B, T, D).
        key, value : torch.Tensor or None
            None or the query: the mixer has one input.
        attn_mask : torch.Tensor, Window, Stream or None
            (T, T) or (B, T, T), bool, True where frame j is blocked for frame i, or float, where 0
            allows and -inf blocks; it costs O(T²). A window, here or as ``window``, does not. A
            stream goes on where its last call ended, as `forward_streaming`.
        key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding. What stands there has no influence; its output is zero.
        pos_embs : torch.Tensor or None
            Not used: the mixer has positions of its own.
        window : Window or None
            The frames that each frame sees; None is all.

        Returns
        -------
        output : torch.Tensor
            (B, T, D).
        weights : None
            In the place of attention's weights.

        Raises
        ------
        ValueError
            If a shape does not fit, key or value is another tensor, or attn_mask and window are
            both given.
        """
        if isinstance(attn_mask, Stream):
            output, attn_mask.sums = self.forward_streaming(
                query, attn_mask.window, attn_mask.sums, key_padding_mask
            )
            return output, None
        if window is None and isinstance(attn_mask, Window):
            attn_mask, window = None, attn_mask
        check_call(self, query, key, value, attn_mask, key_padding_mask, window)
        return self._mix(query, attn_mask, key_padding_mask, window)[0], None

    def forward_streaming(self, query, window, state=None, key_padding_mask=None):
        """Continues a sequence where the call before ended: equal to `forward` on the whole.

        Arguments
        ---------
        query : torch.Tensor
            (B, T, D), the next frames: whole chunks of the window, but for the end of the sequence.
        window : Window
            The same in every call.
        state : SelectiveState or None
            Of the call before; None starts.
        key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding.

        Returns
        -------
        output : torch.Tensor
            (B, T, D).
        state : SelectiveState
            For the next call; its size does not grow with time.

        Raises
        ------
        ValueError
            If window is None or a shape does not fit.

        Example
        -------
        >>> mixer, x = SelectiveSummaryMixing(16, neighbours=5).eval(), torch.rand(2, 50, 16)
        >>> first, state = mixer.forward_streaming(x[:, :32], Window(8))
        >>> second, state = mixer.forward_streaming(x[:, 32:], Window(8), state)
        >>> whole, _ = mixer(x, window=Window(8))
        >>> torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)
        True
        """
        check_streaming_window(window)
        check_call(self, query, None, None, None, key_padding_mask, window)
        return self._mix(query, None, key_padding_mask, window, state)

    def _mix(self, query, attn_mask, padding, window, state=None):
        """The output (B, T, D), and the state of a window."""
        batch, frames, _ = query.shape
        x = query if padding is None else query.masked_fill(padding.unsqueeze(-1), 0.0)
        projected = self.projection(x).view(batch, frames, 3, self.nhead, -1)
        queries = projected[:, :, 0]  # (B, T, H, E)
        keys_values = projected[:, :, 1:].transpose(2, 3).flatten(3)  # (B, T, H, 2 E)

        if state is None:  # no frame was there before
            before = keys_values.new_zeros(batch, self.neighbours, *keys_values.shape[2:])
            blocked = torch.ones(batch, self.neighbours, dtype=torch.bool, device=query.device)
        else:
            before, blocked = state.neighbours, state.blocked
        here = padding
        if here is None:
            here = torch.zeros(batch, frames, dtype=torch.bool, device=query.device)
        neighbours = torch.cat([before.to(keys_values.dtype), keys_values], 1)
        blocked = torch.cat([blocked, here], 1)

        scores, values = self._of_neighbours(queries, neighbours, blocked, attn_mask, window)
        if self.summaries:
            sums = None if state is None else state.sums
            means, chunk, sums = self._means(keys_values, attn_mask, padding, window, sums)
            scores = torch.cat([scores, self._of_summaries(queries, means, chunk, scores)], -1)
        else:
            sums = query.new_zeros(batch, 0, 0)
        weights = scores.softmax(-1)
        if attn_mask is not None and not self.summaries:  # which may block every neighbour
            weights = weights.masked_fill(scores == torch.finfo(scores.dtype).min, 0.0)
        weights = self.dropout(weights).to(values.dtype)

        mixed = weights[..., : 3 * self.neighbours] @ values  # (B, N, H, W, E)
        mixed = mixed.transpose(2, 3).flatten(1, 2)[:, :frames]  # (B, T, H, E)
        if self.summaries:
            selected = weights[..., 3 * self.neighbours :]  # (B, N, H, W, M)
            selected = selected.transpose(2, 3).flatten(1, 2)[:, :frames]
            by_chunk = _in_chunks(selected, chunk)  # (B, K, C, H, M)
            means = means[..., means.size(-1) // 2 :].to(selected.dtype)
            picked = torch.einsum("bkchm,bkhme->bkche", by_chunk, means)
            mixed = mixed + picked.flatten(1, 2)[:, :frames]
        output = self.output(mixed.flatten(2))
        if padding is not None:
            output = output.masked_fill(padding.unsqueeze(-1), 0.0)
        last = slice(neighbours.size(1) - self.neighbours, None)
        return output, SelectiveState(sums, neighbours[:, last], blocked[:, last])

    def _of_neighbours(self, queries, neighbours, blocked, attn_mask, window):
        """Scores (B, N, H, W, 3 W) of the blocks before, of and after a frame; values.

        Of W frames more than queries (B, T, H, E) are neighbours (B, W + T, H, 2 E) and blocked.
        """
        width, frames = self.neighbours, queries.size(1)
        blocks = _in_blocks(queries, width).transpose(2, 3)  # (B, N, H, W, E)
        scores = (blocks + self.content_bias.unsqueeze(1)) * self.scale
        around = _three_blocks(neighbours, width, blocks.size(1)).transpose(2, 3)
        keys, values = around.chunk(2, dim=-1)  # (B, N, H, 3 W, E)
        scores = scores @ keys.transpose(3, 4)

        sines = _sines(width, self.d_model, queries.device).to(queries.dtype)
        by_distance = self.position(sines).unflatten(1, (self.nhead, -1))  # (2 W + 1, H, E)
        position = (blocks + self.position_bias.unsqueeze(1)) * self.scale
        position = position @ by_distance.permute(1, 2, 0)  # (B, N, H, W, 2 W + 1)
        # each row one column further than the row before: distance W is now in column 0 of row 0
        position = functional.pad(position, (0, width)).flatten(3)[..., : 3 * width * width]
        scores = scores + position.unflatten(3, (width, 3 * width))
        if scores.dtype != torch.float64:
            scores = scores.float()

        row = torch.arange(width, device=queries.device).unsqueeze(1)
        column = torch.arange(3 * width, device=queries.device) - width
        outside = (row - column).abs() > width
        blocked = _three_blocks(blocked, width, blocks.size(1), True)
        hidden = outside | blocked.unsqueeze(2)  # (B, N, W, 3 W)
        start = width * torch.arange(blocks.size(1), device=queries.device).view(-1, 1, 1)
        if window is not None:
            hidden = hidden | window.blocks(start + row, start + column)
        if attn_mask is not None:
            allowed = allowed_frames(attn_mask)
            i = (start + row).clamp(max=frames - 1)
            j = (start + column).clamp(min=0, max=frames - 1)
            hidden = hidden | allowed[..., i, j].logical_not()
        # finite, so that a row that sees nothing has no NaN
        return scores.masked_fill(hidden.unsqueeze(2), torch.finfo(scores.dtype).min), values

    def _of_summaries(self, queries, means, chunk, scores):
        """Scores (B, N, H, W, M) of means (B, K, H, M, 2 E), for each chunk."""
        width, frames = means.size(-1) // 2, queries.size(1)
        keys = means[..., :width].to(queries.dtype)
        by_chunk = _in_chunks((queries + self.content_bias) * self.scale, chunk)
        selected = torch.einsum("bkche,bkhme->bkchm", by_chunk, keys)
        selected = selected.flatten(1, 2)[:, :frames].to(scores.dtype) + self.summary_bias
        return _in_blocks(selected, self.neighbours).transpose(2, 3)

    def _means(self, keys_values, attn_mask, padding, window, sums):
        """Summaries (B, K, H, M, 2 E) for each chunk; its frames C; running sums of a window."""
        frames = keys_values.size(1)
        with torch.autocast(keys_values.device.type, enabled=False):
            if keys_values.dtype != torch.float64:
                keys_values = keys_values.float()
            keys = keys_values[..., : keys_values.size(-1) // 2]
            score = torch.einsum("bthe,hme->bthm", keys, self.summary_score.to(keys.dtype))
            weights = (SCORE_LIMIT * torch.tanh(score / SCORE_LIMIT)).exp()
            if padding is not None:
                weights = weights.masked_fill(padding[..., None, None], 0.0)
            chunk = None if attn_mask is None else 1
            if window is not None:
                chunk = min(window.chunk_frames, frames)
            keys_values = functional.pad(keys_values, (0, 1), value=1.0)  # the weights' own sum
            weights, keys_values = _in_chunks(weights, chunk), _in_chunks(keys_values, chunk)
            # (B, K, H, M, 2 E + 1)
            totals = torch.einsum("bkchm,bkche->bkhme", weights, keys_values)
            if window is not None:
                shape = totals.shape[2:]
                totals, sums = running_sums(totals.flatten(2), window.left_chunks, sums)
                totals = totals.to(weights.dtype).unflatten(2, shape)
            elif attn_mask is not None:
                allowed = allowed_frames(attn_mask).to(weights.dtype)
                totals = (allowed @ totals.flatten(2)).unflatten(2, totals.shape[2:])
            mass = totals[..., -1:]
            return totals[..., :-1] / mass.clamp(min=math.exp(-2 * SCORE_LIMIT)), chunk, sums


def _in_blocks(x, size):
    """(B, T, …), filled up with zeros, as (B, N, size, …)."""
    if torch.compiler.is_compiling():  # one graph for all lengths: never one block, never full
        return _filled(x, x.size(1) // size + 2, size)
    return _in_chunks(x, size)


def _in_chunks(x, size):
    """(B, T, …), filled up with zeros, as (B, K, size, …); None is one chunk of all."""
    return x.unsqueeze(1) if size is None else _filled(x, (x.size(1) + size - 1) // size, size)


def _filled(x, blocks, size):
    padding = (0, 0) * (x.dim() - 2) + (0, blocks * size - x.size(1))
    return functional.pad(x, padding).unflatten(1, (blocks, size))


def _three_blocks(x, width, blocks, fill=0):
    """The block before each, the block and the one after, (B, N, 3 W, …), of (B, W + T, …)."""
    missing = (blocks + 2) * width - x.size(1)
    x = functional.pad(x, (0, 0) * (x.dim() - 2) + (0, missing), value=fill)
    x = x.unflatten(1, (blocks + 2, width))
    return torch.cat([x[:, :-2], x[:, 1:-1], x[:, 2:]], 2)


def _sines(neighbours, width, device):
    """Sines and cosines (2 W + 1, D) of the distances W to -W, float64."""
    distance = torch.arange(neighbours, -neighbours - 1, -1, device=device).double()
    rate = torch.arange(0, width, 2, device=device).double() * (-math.log(10000.0) / width)
    angle = distance.unsqueeze(1) * rate.exp()
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
