"""Transformer decoder that is shown each token once: the tokens before it are in its state.

B is the number of utterances, N = B x beams that of hypotheses, those of an utterance side by side,
T the frames of the encoder's memory, U the tokens, H the heads, D the width.
"""

from typing import NamedTuple

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
)
from speechbrain.nnet.attention import MultiheadAttention
from torch import nn

from speechbrain_summarymixing.nnet.streaming import take_rows


class ProjectedMemory(NamedTuple):
    """What cross-attention needs of the encoder's output, once for all beams of an utterance."""

    keys: torch.Tensor  # (B, H, T, D / H)
    values: torch.Tensor  # (B, H, T, D / H)
    padding: torch.Tensor | None  # (B, 1, 1, T), True on padding


class PastTokens(NamedTuple):
    """What causal attention needs of the tokens before; a step adds one."""

    keys: torch.Tensor  # (N, H, U, D / H)
    values: torch.Tensor  # (N, H, U, D / H)


class DecoderState(NamedTuple):
    """What a decoder's step needs of the tokens before."""

    tokens: int
    past: tuple  # of each layer's self-attention: PastTokens, or RunningSums (N, 1, S)
    memories: tuple[ProjectedMemory, ...]  # of each layer

    def permute(self, index):
        """Returns the state of the hypotheses at ``index`` (N,), each of its old utterance."""
        return self._replace(past=take_rows(self.past, index))


class CausalAttention(MultiheadAttention):
    """SpeechBrain's attention in a decoder, which can go on from the tokens before.

    Arguments are those of SpeechBrain's, without kdim, vdim and bias options.

    Example
    -------
    >>> attention, tokens = CausalAttention(2, 8), torch.rand(3, 2, 8)
    >>> first, past = attention(tokens[:, :1], None, None, attention.before_tokens(3, "cpu"))
    >>> second, past = attention(tokens[:, 1:], None, None, past)
    >>> whole, _ = attention(tokens, tokens, tokens, torch.tensor([[False, True], [False, False]]))
    >>> torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)
    True
    """

    def __init__(self, nhead, d_model, dropout=0.0):
        super().__init__(nhead, d_model, dropout)

    def before_tokens(self, hypotheses, device):
        """Returns the `PastTokens` before the first of them."""
        att = self.att
        none = torch.empty(
            hypotheses, att.num_heads, 0, att.head_dim, device=device, dtype=att.out_proj.bias.dtype
        )
        return PastTokens(none, none)

    def forward(
        self,
        query,
        key,
        value,
        attn_mask=None,
        key_padding_mask=None,
        return_attn_weights=True,
        pos_embs=None,
    ):
        """As SpeechBrain's, or the newest tokens (N, 1, D) after `PastTokens` as attn_mask.

        Returns
        -------
        output : torch.Tensor
            (N, 1, D).
        past : PastTokens
            With the newest.
        """
        if not isinstance(attn_mask, PastTokens):
            return super().forward(
                query, key, value, attn_mask, key_padding_mask, return_attn_weights, pos_embs
            )
        att = self.att
        projected = nn.functional.linear(query, att.in_proj_weight, att.in_proj_bias)
        queries, keys, values = projected.unflatten(2, (3, att.num_heads, -1)).permute(
            2, 0, 3, 1, 4
        )  # each (N, H, 1, D / H)
        past = PastTokens(*(torch.cat(pair, 2) for pair in zip(attn_mask, (keys, values))))
        mixed = nn.functional.scaled_dot_product_attention(queries, *past)
        return att.out_proj(mixed.transpose(1, 2).flatten(2)), past


class CrossAttention(MultiheadAttention):
    """SpeechBrain's attention, which also takes a memory that is projected already.

    Arguments are those of SpeechBrain's, without kdim, vdim and bias options.

    Example
    -------
    >>> attention, memory = CrossAttention(2, 8), torch.rand(3, 20, 8)
    >>> query = torch.rand(3, 1, 8)
    >>> output, weights = attention(query, attention.project(memory), None)
    >>> torch.allclose(output, attention(query, memory, memory)[0], atol=1e-6)
    True
    """

    def __init__(self, nhead, d_model, dropout=0.0):
        super().__init__(nhead, d_model, dropout)

    def project(self, memory, key_padding_mask=None):
        """Returns the `ProjectedMemory` of ``memory`` (B, T, D); the mask is (B, T)."""
        att = self.att
        both = nn.functional.linear(
            memory, att.in_proj_weight[att.embed_dim :], att.in_proj_bias[att.embed_dim :]
        )
        keys, values = both.unflatten(2, (2, att.num_heads, -1)).permute(2, 0, 3, 1, 4)
        padding = None if key_padding_mask is None else key_padding_mask[:, None, None]
        return ProjectedMemory(keys.contiguous(), values.contiguous(), padding)

    def forward(
        self,
        query,
        key,
        value,
        attn_mask=None,
        key_padding_mask=None,
        return_attn_weights=True,
        pos_embs=None,
    ):
        """As SpeechBrain's, or the newest tokens (N, 1, D) over a `ProjectedMemory` as key.

        Returns
        -------
        output : torch.Tensor
            (N, 1, D).
        weights : torch.Tensor
            (N, 1, T), the mean of the heads.
        """
        if not isinstance(key, ProjectedMemory):
            return super().forward(
                query, key, value, attn_mask, key_padding_mask, return_attn_weights, pos_embs
            )
        att = self.att
        queries = nn.functional.linear(
            query, att.in_proj_weight[: att.embed_dim], att.in_proj_bias[: att.embed_dim]
        )
        # an utterance's beams stand where attention has time: (B, H, beams, D / H)
        queries = queries.reshape(key.keys.size(0), -1, att.num_heads, att.head_dim).transpose(1, 2)
        scores = (queries * att.head_dim**-0.5) @ key.keys.transpose(2, 3)
        if key.padding is not None:
            scores = scores.masked_fill(key.padding, -torch.inf)
        weights = scores.softmax(-1)  # (B, H, beams, T)
        output = (weights @ key.values).transpose(1, 2).reshape(query.shape)
        return att.out_proj(output), weights.mean(1).flatten(0, 1).unsqueeze(1)


class SteppingDecoderLayer(TransformerDecoderLayer):
    """SpeechBrain's decoder layer around a `CausalAttention` and a `CrossAttention`.

    Arguments
    ---------
    d_model : int
        Width D.
    nhead : int
        Heads H.
    d_ffn : int
        Hidden width of the feed-forward layer.
    dropout : float
        Probability of zeroing an activation.
    activation : callable
        Returns the feed-forward layer's activation module.
    normalize_before : bool
        Pre-norm.
    """

    def __init__(self, d_model, nhead, d_ffn, dropout, activation, normalize_before):
        super().__init__(
            d_ffn,
            nhead,
            d_model,
            dropout=dropout,
            activation=activation,
            normalize_before=normalize_before,
        )
        self.self_attn = CausalAttention(nhead, d_model, dropout)
        self.multihead_attn = CrossAttention(nhead, d_model, dropout)
        for parameter in self.parameters():  # as SpeechBrain's models do
            # without values none is drawn, for which torch would import its compiler, a second
            if parameter.dim() > 1 and not parameter.is_meta:
                nn.init.xavier_normal_(parameter)


class SteppingDecoder(TransformerDecoder):
    """SpeechBrain's decoder, which can also decode token by token.

    ``forward`` is SpeechBrain's, and so are the names of the parameters. `start` and `step` give
    the same outputs: a step projects the newest token alone, and the encoder's output is projected
    once.

    Arguments
    ---------
    num_layers : int
        Number of layers.
    d_model : int
        Width D.
    nhead : int
        Heads H.
    d_ffn : int
        Hidden width of the feed-forward layers.
    dropout : float
        Probability of zeroing an activation.
    activation : callable
        Returns the feed-forward layers' activation module.
    normalize_before : bool
        Pre-norm layers.

    Example
    -------
    >>> decoder = SteppingDecoder(2, 16, nhead=2, d_ffn=32).eval()
    >>> tokens, memory = torch.rand(3, 5, 16), torch.rand(3, 20, 16)
    >>> whole, _, _ = decoder(tokens, memory, torch.ones(5, 5).triu(1).bool())
    >>> state, outputs = decoder.start(memory), []
    >>> for token in tokens.split(1, dim=1):
    ...     output, weights, state = decoder.step(token, state)
    ...     outputs.append(output)
    >>> torch.allclose(torch.cat(outputs, 1), whole, atol=1e-5)
    True
    """

    layer_class = SteppingDecoderLayer

    def __init__(
        self,
        num_layers,
        d_model,
        *,
        nhead=8,
        d_ffn=2048,
        dropout=0.1,
        activation=nn.GELU,
        normalize_before=True,
    ):
        super().__init__(0, nhead, d_ffn, d_model=d_model)  # its norm alone
        self.layers = nn.ModuleList(
            self.layer_class(d_model, nhead, d_ffn, dropout, activation, normalize_before)
            for _ in range(num_layers)
        )

    def start(self, memory, memory_key_padding_mask=None, beams=1):
        """Projects the encoder's output, once for each utterance.

        Arguments
        ---------
        memory : torch.Tensor
            (B, T, D).
        memory_key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding.
        beams : int
            Hypotheses of each utterance.

        Returns
        -------
        DecoderState
            Before the first token.
        """
        hypotheses = beams * memory.size(0)
        return DecoderState(
            tokens=0,
            past=tuple(
                layer.self_attn.before_tokens(hypotheses, memory.device) for layer in self.layers
            ),
            memories=tuple(
                layer.multihead_attn.project(memory, memory_key_padding_mask)
                for layer in self.layers
            ),
        )

    def step(self, token, state):
        """Decodes the newest token of each hypothesis.

        Arguments
        ---------
        token : torch.Tensor
            (N, 1, D), embedded, with the position ``state.tokens``.
        state : DecoderState
            From `start` or the step before.

        Returns
        -------
        output : torch.Tensor
            (N, 1, D).
        weights : torch.Tensor
            (N, 1, T), the last layer's over the memory, the mean of its heads.
        state : DecoderState
            For the next step.
        """
        past = []
        for layer, before, memory in zip(self.layers, state.past, state.memories):
            token, after, weights = layer(token, memory, tgt_mask=before)
            past.append(after)
        state = state._replace(tokens=state.tokens + 1, past=tuple(past))
        return self.norm(token), weights, state
