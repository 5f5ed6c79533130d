"""Conformer (arXiv 2005.08100) with an injected token mixer, exact under padding.

B is the batch, T the number of frames, D the model's width.
"""

import torch
from speechbrain.lobes.models.transformer.Conformer import (
    ConformerEncoder,
    ConformerEncoderLayer,
    ConvolutionModule,
)
from speechbrain.nnet.activations import Swish

from speechbrain_summarymixing.lobes.convolution import depthwise_convolution, no_frames
from speechbrain_summarymixing.lobes.encoder import InjectedMixers
from speechbrain_summarymixing.lobes.mixers import adds_nothing

# With a name that it does not know SpeechBrain's Conformer builds no attention.
NO_ATTENTION = "injected"


class MaskedConvolutionModule(ConvolutionModule):
    """SpeechBrain's convolution module, whose convolution sees zeros in place of padding.

    Example
    -------
    >>> MaskedConvolutionModule(8, kernel_size=3)(torch.rand(2, 20, 8)).shape
    torch.Size([2, 20, 8])
    """

    def forward(self, x, mask=None, dynchunktrain_config=None):
        """Returns (B, T, D) of ``x`` (B, T, D); ``mask`` (B, T, 1): True is padding."""
        hidden = self.bottleneck(self.layer_norm(x).transpose(1, 2))  # (B, D, T)
        if mask is not None:
            hidden = hidden.masked_fill(mask.transpose(1, 2), 0.0)
        hidden = depthwise_convolution(
            hidden,
            self.conv.weight,
            self.conv.bias,
            causal=self.causal,
            chunks=dynchunktrain_config,
        )
        output = self.after_conv(hidden.transpose(1, 2))
        return output if mask is None else output.masked_fill(mask, 0.0)


class MixerConformerLayer(ConformerEncoderLayer):
    """Conformer layer around any token mixer.

    Arguments
    ---------
    d_model : int
        Width D.
    token_mixer : torch.nn.Module
        Called as SpeechBrain's attention: ``(query, key, value, attn_mask=, key_padding_mask=,
        pos_embs=) -> (output, weights)``.
    d_ffn : int
        Hidden width of the feed-forward modules.
    kernel_size : int
        Of the convolution, in frames.
    activation : callable
        Returns an activation module.
    bias : bool
        Of the convolution module.
    dropout : float
        Probability of zeroing an activation.
    causal : bool
        The convolution sees no later frame.
    """

    def __init__(
        self,
        d_model,
        token_mixer,
        d_ffn=2048,
        kernel_size=31,
        activation=Swish,
        bias=True,
        dropout=0.0,
        causal=False,
    ):
        super().__init__(
            d_model,
            d_ffn,
            1,
            activation=activation,
            bias=bias,
            dropout=dropout,
            kernel_size=kernel_size,
            attention_type=NO_ATTENTION,
        )
        self.mha_layer = token_mixer
        if adds_nothing(token_mixer):
            self.norm1 = torch.nn.Identity()
        self.convolution_module = MaskedConvolutionModule(
            d_model, kernel_size, bias, activation, dropout, causal
        )

    def no_frames(self, batch):
        """Returns what the convolution of a stream has before its first frame."""
        module = self.convolution_module
        return no_frames(module.conv.weight, module.causal, batch)


class MixerConformerEncoder(InjectedMixers, ConformerEncoder):
    """Conformer encoder whose layers each get a new token mixer; arguments of `InjectedMixers`.

    Example
    -------
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> encoder = MixerConformerEncoder(2, 16, lambda: SummaryMixing(16), d_ffn=32)
    >>> encoder(torch.rand(3, 20, 16))[0].shape
    torch.Size([3, 20, 16])
    """

    layer_class = MixerConformerLayer
    base_options = {"d_ffn": 1, "attention_type": NO_ATTENTION}
