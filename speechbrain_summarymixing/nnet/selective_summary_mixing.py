"""SummaryMixing whose frames look at their neighbours and select among several summaries, in O(T).

B is the batch, T the number of frames, H the number of heads, D the width, E = D / H, W the
neighbours to each side, M the summaries of a head, N the number of blocks, S the frames of a block
and around it, C those of a window's chunk and K the number of chunks, 1 without a window.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from speechbrain_summarymixing.nnet.blocks import Blocks, by_head, in_chunks
from speechbrain_summarymixing.nnet.calls import check_call, check_streaming_window, is_empty
from speechbrain_summarymixing.nnet.sines import distance_sines
from speechbrain_summarymixing.nnet.streaming import Stream
from speechbrain_summarymixing.nnet.summaries import (
    Window,
    allowed_frames,
    empty_sums,
    running_sums,
)

OUTPUT_GAIN = 0.2  # at the start, of the output over that of a Xavier-uniform transform
SUMMARY_BIAS = -3.0  # at the start, added to the scores of the summaries
SCORE_LIMIT = 8.0  # of a frame's weight in a summary: e^8, so that running sums need no maximum


class SelectiveState(NamedTuple):
    """What later chunks need of the ones before; its size does not grow with time."""

    sums: torch.Tensor  # (B, 1 or left chunks, H M (2 E + 1)), float64: of the summaries
    neighbours: torch.Tensor  # (B, H, 2 blocks, 2 E): keys and values of the last frames
    seen: torch.Tensor  # (B, 2 blocks), bool, False where there was none, or padding


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

    supports_window = supports_streaming = True
    has_positions = True  # sine positions at the encoder's input would be too many

    def __init__(self, d_model, *, nhead=4, neighbours=32, summaries=4, dropout=0.1):
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
        self.summary_score = self.summary_bias = None
        if summaries:
            self.summary_score = nn.Parameter(torch.empty(nhead, summaries, width))  # s_m
            self.summary_bias = nn.Parameter(torch.empty(nhead, summaries))  # c_m
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self):
        """Begins with a small output, and summaries that weigh less than the neighbours.

        A large first output, or summaries that all frames take alike, cost a Conformer half its
        way: its residual stream has nothing that scales them down (docs/mixers).
        """
        nn.init.xavier_uniform_(self.projection.weight)
        self.position.reset_parameters()
        nn.init.xavier_uniform_(self.output.weight, gain=OUTPUT_GAIN)
        nn.init.zeros_(self.output.bias)
        for bias in (self.content_bias, self.position_bias):
            nn.init.xavier_uniform_(bias)
        if self.summaries:
            nn.init.normal_(self.summary_score, std=self.scale)
            nn.init.constant_(self.summary_bias, SUMMARY_BIAS)

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
            output, attn_mask.state = self.forward_streaming(
                query, attn_mask.window, attn_mask.state, key_padding_mask
            )
            return output, None
        if window is None and isinstance(attn_mask, Window):
            attn_mask, window = None, attn_mask
        check_call(self, query, key, value, attn_mask, key_padding_mask, window)
        return self._mix(query, attn_mask, key_padding_mask, window)[0], None

    def initial_state(self, window, batch, device=None):
        """Returns the state of a stream's start, zeros; as `SummaryMixing.initial_state`."""
        width = self.nhead * self.summaries * (2 * self.d_model // self.nhead + 1)
        before = self._blocks(1).before
        near = (batch, self.nhead, before, 2 * self.d_model // self.nhead)
        return SelectiveState(
            empty_sums(batch, width, window, device),
            torch.zeros(near, dtype=self.content_bias.dtype, device=device),
            torch.zeros(batch, before, dtype=torch.bool, device=device),
        )

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
        if state is None:
            state = self.initial_state(window, query.size(0), query.device)
        return self._mix(query, None, key_padding_mask, window, state)

    def _mix(self, query, attn_mask, padding, window, state=None):
        """The output (B, T, D), and the state of a stream."""
        if is_empty(query):
            return query, state
        batch, frames, _ = query.shape
        x = query if padding is None else query.masked_fill(padding.unsqueeze(-1), 0.0)
        projected = self.projection(x).view(batch, frames, 3, self.nhead, -1)
        queries = projected[:, :, 0].transpose(1, 2) * self.scale  # (B, H, T, E)
        keys_values = projected[:, :, 1:].permute(0, 3, 1, 2, 4).flatten(3)  # (B, H, T, 2 E)
        by_content = queries + (self.content_bias * self.scale).unsqueeze(1)
        if padding is None:
            padding = torch.zeros(batch, frames, dtype=torch.bool, device=query.device)

        blocks, near, blocked = self._neighbours(keys_values, padding, state)
        hidden = self._hidden(blocks, blocked, frames, attn_mask, window)
        positions = self._of_positions(blocks, queries)  # (B, H, N, block, S)
        keys, values = map(blocks.around, near.chunk(2, -1))  # (B, H, N, S, E)
        sums, by_chunk = None if state is None else state.sums, False
        if self.summaries:
            summed, chunk, sums = self._means(keys_values, attn_mask, padding, window, sums)
            summed = summed.to(near.dtype).chunk(2, -1)  # keys and values (B, H, K, M, E)
            by_chunk = chunk is not None or blocks.sides > 0
            if not by_chunk:  # one block of all: the summaries stand beside the neighbours
                keys, values = (torch.cat(both, 3) for both in zip((keys, values), summed))
                bias = self.summary_bias[:, None, None].to(positions.dtype)  # (H, 1, 1, M)
                positions = torch.cat([positions, bias.expand(*positions.shape[:4], -1)], -1)
                hidden = functional.pad(hidden, (0, self.summaries))
        scores = blocks.of(by_content) @ keys.transpose(3, 4) + positions
        if scores.dtype != torch.float64:
            scores = scores.float()
        # finite, so that a row that sees nothing has no NaN
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        if by_chunk:
            selected = in_chunks(by_content, chunk) @ summed[0].mT  # (B, H, K, C, M)
            selected = selected.flatten(2, 3)[:, :, :frames] + self.summary_bias.unsqueeze(1)
            scores = torch.cat([scores, blocks.of(selected).to(scores.dtype)], -1)
        weights = scores.softmax(-1)
        if attn_mask is not None and not self.summaries:  # which may block every neighbour
            weights = weights.masked_fill(hidden, 0.0)
        weights = self.dropout(weights).to(values.dtype)

        if by_chunk:
            weights, selected = weights.split([values.size(3), self.summaries], -1)
        mixed = (weights @ values).flatten(2, 3)[:, :, :frames]  # (B, H, T, E)
        if by_chunk:
            selected = in_chunks(selected.flatten(2, 3)[:, :, :frames], chunk)
            mixed = mixed + (selected @ summed[1]).flatten(2, 3)[:, :, :frames]
        output = self.output(mixed.transpose(1, 2).flatten(2))
        output = output.masked_fill(padding.unsqueeze(-1), 0.0)
        if state is None:
            return output, None
        last = slice(near.size(2) - blocks.before, None)
        kept = near[:, :, last].to(state.neighbours.dtype)  # autocast's is narrower
        return output, SelectiveState(sums, kept, blocked[:, last].logical_not())

    def _neighbours(self, keys_values, padding, state):
        """How frames are cut into blocks; keys and values from the first block's neighbours on.

        And whether they are blocked. Where there are few, all frames are one block.
        """
        frames = keys_values.size(2)
        compiling = torch.compiler.is_compiling()
        if state is None and not compiling and frames <= 3 * self.neighbours:
            return Blocks(frames, 1, 0), keys_values, padding
        blocks = self._blocks(frames)
        if compiling:  # one graph for all lengths: never one, never full
            blocks = blocks._replace(count=frames // blocks.size + 2)
        if state is None:  # no frame was there before
            near = functional.pad(keys_values, (0, 0, blocks.before, 0))
            return blocks, near, functional.pad(padding, (blocks.before, 0), value=True)
        near = torch.cat([state.neighbours.to(keys_values.dtype), keys_values], 2)
        return blocks, near, torch.cat([state.seen.logical_not(), padding], 1)

    def _blocks(self, frames):
        size = (self.neighbours + 1) // 2
        return Blocks(size, (frames + size - 1) // size, 2)

    def _of_positions(self, blocks, queries):
        """Scores (B, H, N, block, S) of the distances of the frames around each block."""
        furthest = max(self.neighbours, blocks.before)
        sines = distance_sines(furthest, self.d_model, queries.device, queries.dtype)
        by_distance = self.position(sines).unflatten(1, (self.nhead, -1)).permute(1, 2, 0)
        width = blocks.size + 2 * furthest
        by_distance = functional.pad(by_distance, (0, blocks.size))  # (H, E, width + 1)
        queries = queries + (self.position_bias * self.scale).unsqueeze(1)
        scores = by_head(blocks.of(queries), by_distance)  # (B, H, N, block, width + 1)
        # one column less in a row: what is in column 0 of row 0 is in column 1 of row 1
        scores = scores.flatten(3)[..., : blocks.size * width].unflatten(3, (blocks.size, width))
        first = furthest - blocks.before
        return scores[..., first : first + blocks.size + 2 * blocks.before]

    def _hidden(self, blocks, blocked, frames, attn_mask, window):
        """Where frames around a block are hidden from it: (B, 1, N, block, S), bool."""
        row = torch.arange(blocks.size, device=blocked.device).unsqueeze(1)
        column = torch.arange(blocks.size + 2 * blocks.before, device=blocked.device)
        column = column - blocks.before
        hidden = (row - column).abs() > self.neighbours
        hidden = hidden | blocks.around(blocked.unsqueeze(1), True).unsqueeze(3)
        start = blocks.size * torch.arange(blocks.count, device=blocked.device).view(-1, 1, 1)
        if window is not None:
            hidden = hidden | window.blocks(start + row, start + column)
        if attn_mask is not None:
            i = (start + row).clamp(max=frames - 1)
            j = (start + column).clamp(min=0, max=frames - 1)
            allowed = allowed_frames(attn_mask)[..., i, j]  # (N, block, S), or B before
            hidden = hidden | allowed.logical_not().unsqueeze(-4)
        return hidden

    def _means(self, keys_values, attn_mask, padding, window, sums):
        """Summaries (B, H, K, M, 2 E) for each chunk; its frames C; running sums of a window."""
        frames = keys_values.size(2)
        with torch.autocast(keys_values.device.type, enabled=False):
            if keys_values.dtype != torch.float64:
                keys_values = keys_values.float()
            keys = keys_values[..., : keys_values.size(3) // 2]
            score = by_head(keys, self.summary_score.to(keys.dtype).mT)  # (B, H, T, M)
            weights = (SCORE_LIMIT * torch.tanh(score / SCORE_LIMIT)).exp()
            weights = weights.masked_fill(padding[:, None, :, None], 0.0)
            chunk = None if attn_mask is None else 1
            if window is not None:
                chunk = min(window.chunk_frames, frames)
            weights = in_chunks(weights, chunk)  # (B, H, K, C, M)
            totals = weights.mT @ in_chunks(keys_values, chunk)  # (B, H, K, M, 2 E)
            mass = weights.sum(3).unsqueeze(4)
            if window is not None or attn_mask is not None:
                totals = torch.cat([totals, mass], -1)
                flat = totals.transpose(1, 2).flatten(2)  # (B, K, H M (2 E + 1))
                if window is not None:
                    flat, sums = running_sums(flat, window.left_chunks, sums)
                else:
                    flat = allowed_frames(attn_mask).to(flat.dtype) @ flat
                shape = (totals.size(1), *totals.shape[3:])
                totals = flat.to(totals.dtype).unflatten(2, shape).transpose(1, 2)
                totals, mass = totals.split([totals.size(4) - 1, 1], -1)
            return totals / mass.clamp(min=math.exp(-2 * SCORE_LIMIT)), chunk, sums
