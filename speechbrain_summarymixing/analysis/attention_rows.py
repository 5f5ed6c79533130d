"""Rows of attention by head: what they look like, and means in their places.

A row has the weights of all frames for one of them. H is the number of heads, T the number of
frames, E the width of a head.
"""

import math

import torch
from speechbrain.nnet.attention import RelPosMHAXL, RoPEMHA
from torch import nn

from speechbrain_summarymixing.analysis.bounds import (
    entropy,
    mean_row,
    replacement_errors,
    total_variation,
)
from speechbrain_summarymixing.analysis.diagnostic_attention import DiagnosticAttention
from speechbrain_summarymixing.analysis.probe import SOFTMAX, Part
from speechbrain_summarymixing.errors import UserError

UNIFORM, DECAYED, MEAN_ROW = MEANS = ("uniform", "decayed", "mean row")
RATES = (0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)
REACH = 100  # frames to each side of which profiles tell
ATTENTION = (RelPosMHAXL, RoPEMHA, nn.MultiheadAttention, DiagnosticAttention)


class AttentionRows(Part):
    """Softmax attention of SpeechBrain, torch, Hugging Face or this project's diagnostics."""

    changes = MEANS
    columns = ("diagonality", "entropy", "to_mean_row", "to_uniform", "decay")
    columns += tuple(f"error_{name.replace(' ', '_')}" for name in MEANS)

    def __init__(self, name, module, probe):
        super().__init__(name, module, probe)
        self.rows = self.allowed = self.values = None  # (H, T, T), (H, T, T), (H, T, E)
        self.rates = None  # (H,), of the best decayed means
        self._sums, self._utterances = {}, 0

    @staticmethod
    def matches(module):
        """Whether a module is such attention."""
        name = type(module).__name__
        hugging_face = type(module).__module__.startswith("transformers.")
        return isinstance(module, ATTENTION) or (hugging_face and name.endswith("Attention"))

    def softmax(self, scores, dtype):
        """Returns the rows, some of them changed."""
        rows = SOFTMAX(scores, -1, dtype=dtype)
        if rows.size(-1) != rows.size(-2):  # of another sequence, such as a decoder's
            return rows
        self.probe.ran(self)
        by_head = rows.view(self.probe.copies, -1, *rows.shape[-2:])
        self.heads = by_head.size(1)
        allowed = (scores > torch.finfo(scores.dtype).min / 2).view_as(by_head)
        if self.probe.is_recording:
            self.rows, self.allowed, self.values = by_head[0].clone(), allowed[0], None
        for place, heads, name in self.wanted():
            rates = None if self.rates is None else self.rates[heads]
            old = by_head[place, heads]
            by_head[place, heads] = means(name, old, allowed[place, heads], rates).to(old.dtype)
        return rows

    def see_values(self, values):
        """Is told the values, (1, H, T, E) or (H, T, E)."""
        if self.rows is not None and values.size(-2) == self.rows.size(-1):
            self.values = values.reshape(-1, *values.shape[-2:])

    def observe(self):
        """Adds what is seen of an utterance to the sums over utterances.

        Raises
        ------
        UserError
            If no values were multiplied with the rows.
        """
        if self.values is None:
            raise UserError(
                f"{self.name} is a {type(self.module).__name__}, whose softmax is multiplied with "
                "nothing by torch.matmul or torch.bmm, so its rows are not known: analyse a model "
                "with attention of SpeechBrain, torch or transformers"
            )
        rows, allowed = self.rows.float(), self.allowed
        values = self.values.float()
        uniform = means(UNIFORM, rows, allowed)
        most = allowed.sum(-1).log()  # entropy of a uniform row
        spread = torch.where(most > 0, entropy(rows) / most, math.nan)
        self._add("diagonality", diagonality(rows))
        self._add("entropy", spread.nanmean(-1))
        row = means(MEAN_ROW, rows, allowed)
        self._add("to_mean_row", total_variation(rows, row).mean(-1))
        self._add("to_uniform", total_variation(rows, uniform).mean(-1))
        self._add("power", (rows @ values).square().sum((-2, -1)))

        def errors(weights):
            return replacement_errors(rows, weights, values).square().sum(-1)  # (H,)

        self._add(UNIFORM, errors(uniform))
        self._add(MEAN_ROW, errors(row))
        for rate in RATES:
            rates = torch.full((len(rows),), rate, device=rows.device)
            self._add(rate, errors(means(DECAYED, rows, allowed, rates)))
        weights, counts = by_distance(rows)
        self._add("profile", weights)
        self._add("frames", counts)
        self._utterances += 1

    def fit(self):
        """Finds for each head the decay whose mean's output is nearest to its own."""
        errors = torch.stack([self._sums[rate] for rate in RATES])  # (rates, H)
        best, index = errors.min(0)
        self._sums[DECAYED] = best
        self.rates = torch.tensor(RATES, device=best.device)[index]

    def table(self):
        """Returns a dict of `columns` for each head."""
        sums = self._sums
        columns = {
            name: sums[name] / self._utterances
            for name in ("diagonality", "entropy", "to_mean_row", "to_uniform")
        }
        columns["decay"] = self.rates
        for name in MEANS:
            columns[f"error_{name.replace(' ', '_')}"] = (sums[name] / sums["power"]).sqrt()
        rows = zip(*(column.tolist() for column in columns.values()))
        return [{"head": head + 1, **dict(zip(columns, row))} for head, row in enumerate(rows)]

    def profile(self):
        """Mean weight (H, 2 REACH + 1) of frames from -REACH to REACH away."""
        return (self._sums["profile"] / self._sums["frames"].clamp(min=1)).cpu()

    def picture(self):
        """Rows of the utterance heard last, (H, T, T)."""
        return self.rows.float().cpu()

    def _add(self, name, value):
        value = value.double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value


def diagonality(rows):
    """How near to the diagonal attention is: 1 on it, about 1/2 for a uniform mean.

        C_i = 1 - sum_j a_ij |i - j| / max_j |i - j|,    D = mean over i of C_i

    Arguments
    ---------
    rows : torch.Tensor
        (..., T, T).

    Returns
    -------
    torch.Tensor
        (...).

    Reference: Zhang et al., arXiv 2011.04906, as used for the Branchformer, arXiv 2207.02971.

    Example
    -------
    >>> diagonality(torch.eye(5)), diagonality(torch.eye(5).flip(0))[None]
    (tensor(1.), tensor([0.3333]))
    """
    distance = _distance(rows)
    furthest = distance.amax(-1).clamp(min=1)
    return (1 - (rows * distance).sum(-1) / furthest).mean(-1)


def means(name, rows, allowed, rates=None):
    """Weights of a mean in the place of rows.

    Arguments
    ---------
    name : str
        Of `MEANS`: "uniform"; "decayed", rate^|i - j|; "mean row", the mean over all rows.
    rows : torch.Tensor
        (H, T, T).
    allowed : torch.Tensor
        (H, T, T), bool: what a frame may see. The weights of others are 0.
    rates : torch.Tensor or None
        (H,), of "decayed".

    Returns
    -------
    torch.Tensor
        (H, T, T), whose rows sum to 1.
    """
    if name == MEAN_ROW:
        weights = mean_row(rows) * allowed
    elif name == DECAYED:
        weights = rates.to(rows.dtype)[:, None, None] ** _distance(rows) * allowed
    else:
        weights = allowed.to(rows.dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def by_distance(rows):
    """Sums (H, 2 REACH + 1) of rows (H, T, T) by j - i, and how many they are of."""
    time = torch.arange(rows.size(-1), device=rows.device)
    other = time.unsqueeze(1) + torch.arange(-REACH, REACH + 1, device=rows.device)
    inside = (other >= 0) & (other < len(time))  # (T, 2 REACH + 1)
    index = other.clamp(0, len(time) - 1).expand(len(rows), -1, -1)
    return (rows.gather(-1, index) * inside).sum(1), inside.sum(0).expand(len(rows), -1)


def _distance(rows):
    """|i - j| (T, T)."""
    time = torch.arange(rows.size(-1), device=rows.device)
    return (time.unsqueeze(1) - time).abs().to(rows.dtype)
