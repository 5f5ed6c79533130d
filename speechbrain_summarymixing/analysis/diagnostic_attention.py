"""Attention of which parts can be taken away, to see what they teach; O(T²), not for use.

B is the batch, T the number of frames, H the number of heads, D the width, E = D / H.
"""

import torch

from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.nnet.calls import check_call
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.sines import distance_sines

HALVES = ("all", "lower", "upper")


class DiagnosticAttention(SelectiveSummaryMixing):
    """Relative attention over whole utterances, with parts taken away.

        scores = q_t . k_j + (q_t + b) . r_{t-j}, over nearest <= |t - j| <= furthest

    Arguments
    ---------
    d_model : int
        Width D.
    nhead : int
        Heads H.
    content : bool
        Whether the scores have q . k; False leaves positions alone.
    positions : bool
        Whether the scores have (q + b) . r; False leaves content alone.
    nearest : int
        Frames nearer than this are hidden; a frame that sees none passes on zero.
    furthest : int or None
        Frames further than this are hidden; None: none are.
    mean_row : bool
        Every frame takes the mean of the utterance's rows in place of its own.
    frozen : bool
        The transforms of queries and keys do not learn.
    dropout : float
        Probability of zeroing a weight of the softmax, in training.

    Raises
    ------
    ValueError
        If both content and positions are taken away, or a number cannot be.

    Example
    -------
    >>> mixer = DiagnosticAttention(16, nearest=17)
    >>> mixer(torch.rand(2, 50, 16))[0].shape
    torch.Size([2, 50, 16])
    """

    supports_window = supports_streaming = False

    def __init__(
        self,
        d_model,
        *,
        nhead=4,
        content=True,
        positions=True,
        nearest=0,
        furthest=None,
        mean_row=False,
        frozen=False,
        dropout=0.1,
    ):
        if not (content or positions):
            raise ValueError("content and positions are both False, but scores need one of them")
        if nearest < 0 or (furthest is not None and furthest < nearest):
            raise ValueError(
                f"nearest is {nearest} and furthest {furthest}, but they must be 0 or more frames, "
                "and nearest the smaller"
            )
        super().__init__(d_model, nhead=nhead, summaries=0, dropout=dropout)
        self.content, self.has_positions = content, positions
        self.nearest, self.furthest = nearest, furthest
        self.mean_row, self.frozen = mean_row, frozen

    def forward(
        self, query, key=None, value=None, attn_mask=None, key_padding_mask=None, pos_embs=None
    ):
        """Mixes ``query`` (B, T, D); the call is that of SpeechBrain's attention.

        Raises
        ------
        ValueError
            If a shape does not fit, or attn_mask is given: it sees the whole utterance.
        """
        check_call(self, query, key, value, None, key_padding_mask, None)
        if attn_mask is not None:
            raise ValueError("attn_mask is given, but DiagnosticAttention sees whole utterances")
        batch, frames, _ = query.shape
        padding = key_padding_mask
        if padding is None:
            padding = torch.zeros(batch, frames, dtype=torch.bool, device=query.device)
        x = query.masked_fill(padding.unsqueeze(-1), 0.0)
        queries, keys, values = (
            part.unflatten(2, (self.nhead, -1)).transpose(1, 2)
            for part in torch.nn.functional.linear(x, self._weight()).chunk(3, -1)
        )  # (B, H, T, E)
        time = torch.arange(frames, device=query.device)
        distance = time.unsqueeze(1) - time  # (T, T)
        scores = queries.new_zeros(batch, self.nhead, frames, frames)
        if self.content:
            scores = scores + (queries + self.content_bias.unsqueeze(1)) @ keys.mT
        if self.has_positions:
            sines = distance_sines(frames - 1, self.d_model, query.device, query.dtype)
            by_distance = self.position(sines).unflatten(1, (self.nhead, -1)).permute(1, 2, 0)
            positions = (
                queries + self.position_bias.unsqueeze(1)
            ) @ by_distance  # (B, H, T, 2 T - 1)
            scores = scores + positions.gather(3, (frames - 1 - distance).expand_as(scores))
        hidden = (distance.abs() < self.nearest) | padding[:, None, None]
        if self.furthest is not None:
            hidden = hidden | (distance.abs() > self.furthest)
        scores = (
            (scores * self.scale).float() if query.dtype != torch.float64 else scores * self.scale
        )
        weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
        weights = weights.masked_fill(hidden, 0.0)  # a row that sees none
        if self.mean_row:
            spoken = padding.logical_not().to(weights.dtype)[:, None, :, None]
            frames_spoken = spoken.sum(2, keepdim=True).clamp(min=1)  # 0 in a row of padding alone
            weights = (weights * spoken).sum(2, keepdim=True) / frames_spoken
            weights = weights.expand_as(scores)
        mixed = self.dropout(weights).to(values.dtype) @ values
        output = self.output(mixed.transpose(1, 2).flatten(2))
        return output.masked_fill(padding.unsqueeze(-1), 0.0), None

    def _weight(self):
        """The transforms (3 D, D), through which queries and keys learn nothing if frozen."""
        if not self.frozen:
            return self.projection.weight
        asking, values = self.projection.weight.split([2 * self.d_model, self.d_model])
        return torch.cat([asking.detach(), values])


class HalfOfLayers:
    """Makes mixers for half of an encoder's layers, and none for the others.

    Arguments
    ---------
    make_mixer : callable
        Returns a new token mixer.
    half : str
        "lower", "upper" or "all".
    num_layers : int
        Of the encoder, which calls this once for each layer from the lowest on.

    Raises
    ------
    ValueError
        If half is another word.

    Example
    -------
    >>> make = HalfOfLayers(lambda: DiagnosticAttention(16), "upper", 4)
    >>> [type(make()).__name__ for _ in range(4)]
    ['NoMixing', 'NoMixing', 'DiagnosticAttention', 'DiagnosticAttention']
    """

    def __init__(self, make_mixer, half, num_layers):
        if half not in HALVES:
            raise ValueError(f"half is {half!r}, but must be one of {', '.join(HALVES)}")
        self.make_mixer, self.half, self.num_layers, self.made = make_mixer, half, num_layers, 0

    def __call__(self):
        """Returns the mixer of the next layer."""
        lower = self.made % self.num_layers < self.num_layers // 2
        self.made += 1
        if self.half == "all" or lower == (self.half == "lower"):
            return self.make_mixer()
        return NoMixing()
