"""Transformer encoder (arXiv 1706.03762) with an injected token mixer."""

from speechbrain.lobes.models.transformer.Transformer import (
    TransformerEncoder,
    TransformerEncoderLayer,
)
from torch import nn

from speechbrain_summarymixing.lobes.encoder import InjectedMixers
from speechbrain_summarymixing.lobes.mixers import adds_nothing

# With a name that it does not know SpeechBrain's Transformer builds no attention.
NO_ATTENTION = "injected"


class MixerTransformerLayer(TransformerEncoderLayer):
    """Transformer encoder layer around any token mixer.

    Arguments
    ---------
    d_model : int
        Width D.
    token_mixer : torch.nn.Module
        Called as SpeechBrain's attention: ``(query, key, value, attn_mask=, key_padding_mask=,
        pos_embs=) -> (output, weights)``.
    d_ffn : int
        Hidden width of the feed-forward layer.
    activation : callable
        Returns an activation module.
    dropout : float
        Probability of zeroing an activation.
    normalize_before : bool
        Pre-norm.
    """

    def __init__(
        self,
        d_model,
        token_mixer,
        d_ffn=2048,
        activation=nn.GELU,
        dropout=0.0,
        normalize_before=True,
    ):
        super().__init__(
            d_ffn,
            1,
            d_model,
            activation=activation,
            dropout=dropout,
            normalize_before=normalize_before,
            attention_type=NO_ATTENTION,
        )
        self.self_att = token_mixer
        if adds_nothing(token_mixer) and normalize_before:
            self.norm1 = nn.Identity()

    def no_frames(self, batch):
        """Returns the nothing that a layer without a convolution keeps of a stream."""
        return ()

    def forward(
        self,
        src,
        src_mask=None,
        src_key_padding_mask=None,
        pos_embs=None,
        dynchunktrain_config=None,
    ):
        """Returns ((B, T, D), weights) of ``src`` (B, T, D); chunks are src_mask's affair."""
        return super().forward(src, src_mask, src_key_padding_mask, pos_embs)


class MixerTransformerEncoder(InjectedMixers, TransformerEncoder):
    """Transformer encoder whose layers each get a new token mixer; arguments of `InjectedMixers`.

    Example
    -------
    >>> import torch
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> encoder = MixerTransformerEncoder(2, 16, lambda: SummaryMixing(16), d_ffn=32)
    >>> encoder(torch.rand(3, 20, 16))[0].shape
    torch.Size([3, 20, 16])
    """

    layer_class = MixerTransformerLayer
    mixer_name = "self_att"
    base_options = {"d_ffn": 1}
