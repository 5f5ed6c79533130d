"""Fastformer (arXiv 2108.09084), a baseline of the SummaryMixing paper: additive attention, O(T).

B is the batch, T the number of frames, H the number of heads, D the model's width.
"""

import math

import torch
from torch import nn


class Fastformer(nn.Module):
    """Additive attention: queries, then keys, are summarised by a weighted mean.

        q = sum over t of softmax(w_q . q_t / sqrt(D / H)) q_t        p_t = q * k_t
        k = sum over t of softmax(w_k . p_t / sqrt(D / H)) p_t        h_t = W(k * v_t) + q_t

    The value is the query: the paper shares their transformation.

    Arguments
    ---------
    d_model : int
        Width D.
    nhead : int
        Heads H, each with weights of its own for the means.
    dropout : float
        Probability of zeroing an activation of W(k * v_t).

    Raises
    ------
    ValueError
        If nhead does not divide d_model.

    Reference: Wu et al., arXiv 2108.09084, equations 2 to 5.

    Example
    -------
    >>> output, weights = Fastformer(16, nhead=4)(torch.rand(2, 50, 16))
    >>> output.shape, weights
    (torch.Size([2, 50, 16]), None)
    """

    def __init__(self, d_model, *, nhead=8, dropout=0.1):
        super().__init__()
        if nhead < 1 or d_model % nhead != 0:
            raise ValueError(
                f"nhead is {nhead}, but must be 1 or more and divide d_model {d_model}"
            )
        self.nhead = nhead
        self.projection = nn.Linear(d_model, 2 * d_model)  # query and key
        self.query_score = nn.Linear(d_model, nhead)
        self.key_score = nn.Linear(d_model, nhead)
        self.transform = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)
        self.scale = 1 / math.sqrt(d_model / nhead)
        for layer in (self.projection, self.query_score, self.key_score, self.transform):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query, key=None, value=None, attn_mask=None, key_padding_mask=None, pos_embs=None
    ):
        """Mixes a sequence with itself; the call is that of SpeechBrain's attention.

        Arguments
        ---------
        query : torch.Tensor
            (B, T, D); key and value are not looked at.
        attn_mask : None
            Fastformer sees the whole sequence.
        key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding.
        pos_embs : torch.Tensor or None
            Not used.

        Returns
        -------
        output : torch.Tensor
            (B, T, D).
        weights : None

        Raises
        ------
        ValueError
            If attn_mask is given.
        """
        if attn_mask is not None:
            raise ValueError(
                f"attn_mask of shape {tuple(attn_mask.shape)} is given, but Fastformer always sees "
                "the whole sequence: pass None, or take another mixer for a causal model"
            )
        padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(-1)
        x = query if padding is None else query.masked_fill(padding, 0.0)
        queries, keys = self.projection(x).chunk(2, dim=-1)
        products = self._summary(self.query_score(queries), queries, padding) * keys
        summary = self._summary(self.key_score(products), products, padding)
        output = self.dropout(self.transform(summary * queries)) + queries
        return (output if padding is None else output.masked_fill(padding, 0.0)), None

    def _summary(self, scores, values, padding):
        """Weighted mean (B, 1, D) of values (B, T, D) by the softmax of scores (B, T, H)."""
        scores = scores.float() if scores.dtype != torch.float64 else scores
        scores = scores * self.scale
        if padding is not None:  # finite, so that a row of padding alone has no NaN
            scores = scores.masked_fill(padding, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=1)
        with torch.autocast(values.device.type, enabled=False):
            heads = values.to(weights.dtype).unflatten(2, (self.nhead, -1))  # (B, T, H, D / H)
            return torch.einsum("bth,bthd->bhd", weights, heads).flatten(1)[:, None].to(values)
