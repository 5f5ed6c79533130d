"""Transformer decoder whose self-attention is a causal SummaryMixing.

N is the number of hypotheses, U the tokens, H the heads, D the width.
"""

from speechbrain.lobes.models.transformer.Transformer import TransformerDecoderLayer
from torch import nn

from speechbrain_summarymixing.lobes.stepping_decoder import CrossAttention, SteppingDecoder
from speechbrain_summarymixing.lobes.transformer import NO_ATTENTION
from speechbrain_summarymixing.nnet.summaries import CAUSAL, RunningSums
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing


class CausalSummaryMixing(SummaryMixing):
    """`SummaryMixing` in the place of a decoder's self-attention: token u sees the tokens 0 to u.

    Arguments are those of `SummaryMixing`.

    Example
    -------
    >>> import torch
    >>> output, _ = CausalSummaryMixing(16)(torch.rand(2, 50, 16))
    >>> output.shape
    torch.Size([2, 50, 16])
    """

    supports_window = False

    def before_tokens(self, hypotheses, device):
        """Returns the `RunningSums` before the first token."""
        return self.initial_state(CAUSAL, hypotheses, device)

    def forward(
        self, query, key=None, value=None, attn_mask=None, key_padding_mask=None, pos_embs=None
    ):
        """Mixes ``query`` (B, U, D) with itself; the call is that of SpeechBrain's attention.

        Arguments
        ---------
        query, key, value, key_padding_mask, pos_embs
            As in `SummaryMixing`.
        attn_mask : torch.Tensor, RunningSums or None
            The sums of the tokens before, if query goes on from there. A look-ahead mask has no
            effect: the mean is causal without it, in O(U).

        Returns
        -------
        output : torch.Tensor
            (B, U, D).
        sums : RunningSums or None
            To go on from, if sums were given.
        """
        if isinstance(attn_mask, RunningSums):
            return self.forward_streaming(query, CAUSAL, attn_mask)
        return super().forward(query, key, value, key_padding_mask=key_padding_mask, window=CAUSAL)


class SummaryDecoderLayer(TransformerDecoderLayer):
    """SpeechBrain's decoder layer around a causal SummaryMixing and a `CrossAttention`.

    Arguments are those of `SteppingDecoderLayer`; nhead is that of the cross-attention.
    """

    def __init__(self, d_model, nhead, d_ffn, dropout, activation, normalize_before):
        super().__init__(
            d_ffn,
            nhead,
            d_model,
            dropout=dropout,
            activation=activation,
            normalize_before=normalize_before,
            attention_type=NO_ATTENTION,
        )
        self.multihead_attn = CrossAttention(nhead, d_model, dropout)
        for parameter in self.parameters():  # as SpeechBrain's models do; the cell has its own
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)
        self.self_attn = CausalSummaryMixing(d_model, dropout=dropout)


class SummaryDecoder(SteppingDecoder):
    """SpeechBrain's decoder with a causal SummaryMixing in place of self-attention.

    The cost of a step does not grow with the tokens before it. Arguments are those of
    `SteppingDecoder`; nhead is that of the cross-attention.

    Reference: the summary decoder of arXiv 2307.07421.

    Example
    -------
    >>> import torch
    >>> decoder = SummaryDecoder(2, 16, nhead=2, d_ffn=32).eval()
    >>> tokens, memory = torch.rand(3, 5, 16), torch.rand(3, 20, 16)
    >>> whole, _, _ = decoder(tokens, memory)
    >>> state, outputs = decoder.start(memory), []
    >>> for token in tokens.split(1, dim=1):
    ...     output, weights, state = decoder.step(token, state)
    ...     outputs.append(output)
    >>> torch.allclose(torch.cat(outputs, 1), whole, atol=1e-5)
    True
    """

    layer_class = SummaryDecoderLayer
