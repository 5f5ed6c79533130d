"""Branchformer (arXiv 2207.02971) with an injected token mixer; with SummaryMixing: Sumformer.

B is the batch, T the number of frames, D the model's width.
"""

import torch
from speechbrain.lobes.models.convolution import ConvolutionalSpatialGatingUnit
from speechbrain.lobes.models.transformer.Branchformer import (
    BranchformerEncoder,
    BranchformerEncoderLayer,
    ConvolutionBranch,
)
from torch import nn

from speechbrain_summarymixing.lobes.convolution import depthwise_convolution, no_frames
from speechbrain_summarymixing.lobes.encoder import InjectedMixers
from speechbrain_summarymixing.lobes.mixers import adds_nothing

# With this name SpeechBrain's Branchformer builds no attention and asks for no positions.
NO_ATTENTION = "RoPEMHA"


class MaskedSpatialGatingUnit(ConvolutionalSpatialGatingUnit):
    """SpeechBrain's spatial gating unit, whose convolution sees zeros in place of padding."""

    def __init__(self, *args, causal=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.causal = causal

    def no_frames(self, batch):
        """Returns what a stream's convolution has before its first frame; see `no_frames`."""
        return no_frames(self.conv.conv.weight, self.causal, batch)

    def forward(self, x, key_padding_mask=None, chunks=None):
        """Gates one half of ``x`` (B, T, 2C) by the other; see `MaskedConvolutionBranch`."""
        x1, x2 = x.chunk(2, dim=-1)
        x2 = self.norm(x2)
        if key_padding_mask is not None:
            x2 = x2.masked_fill(key_padding_mask.unsqueeze(-1), 0.0)
        x2 = depthwise_convolution(
            x2.transpose(1, 2),
            self.conv.conv.weight,
            self.conv.conv.bias,
            causal=self.causal,
            chunks=chunks,
        ).transpose(1, 2)
        if self.use_linear_after_conv:
            x2 = self.linear(x2)
        return self.dropout(self.activation(x2) * x1)


class MaskedConvolutionBranch(ConvolutionBranch):
    """SpeechBrain's convolution branch around a `MaskedSpatialGatingUnit`."""

    def __init__(
        self,
        input_size,
        linear_units=3072,
        kernel_size=31,
        activation=nn.GELU,
        gate_activation=nn.Identity,
        dropout=0.0,
        use_linear_after_conv=False,
        causal=False,
    ):
        super().__init__(input_size, linear_units, kernel_size, activation)
        self.csgu = MaskedSpatialGatingUnit(
            input_size=linear_units,
            kernel_size=kernel_size,
            dropout=dropout,
            use_linear_after_conv=use_linear_after_conv,
            activation=gate_activation,
            causal=causal,
        )

    def forward(self, x, key_padding_mask=None, chunks=None):
        """Returns (B, T, D) of ``x`` (B, T, D).

        ``key_padding_mask`` is (B, T), True on padding; ``chunks`` as in `depthwise_convolution`.
        """
        x = self.activation(self.pre_channel_proj(x))
        return self.post_channel_proj(self.csgu(x, key_padding_mask, chunks))


class MixerBranchformerLayer(BranchformerEncoderLayer):
    """Branchformer layer around any token mixer.

    Arguments
    ---------
    d_model : int
        Width D.
    token_mixer : torch.nn.Module
        Called as SpeechBrain's attention: ``(query, key, value, attn_mask=, key_padding_mask=,
        pos_embs=) -> (output, weights)``; with one that `adds_nothing` the convolution branch
        stands alone. Its ``merge_width``, where it has one, is the hidden width of an MLP that
        merges the branches.
    kernel_size : int
        Of the convolution branch, in frames.
    csgu_linear_units : int
        Hidden width of the convolution branch.
    activation, gate_activation : callable
        Return an activation module.
    dropout : float
        Probability of zeroing an activation.
    use_linear_after_conv : bool
        A linear layer after the gate's convolution.
    causal : bool
        The convolution sees no later frame.
    """

    def __init__(
        self,
        d_model,
        token_mixer,
        kernel_size=31,
        csgu_linear_units=3072,
        activation=nn.GELU,
        gate_activation=nn.Identity,
        dropout=0.0,
        use_linear_after_conv=False,
        causal=False,
    ):
        branch = dict(
            kernel_size=kernel_size,
            activation=activation,
            gate_activation=gate_activation,
            dropout=dropout,
            use_linear_after_conv=use_linear_after_conv,
        )
        super().__init__(
            d_model, 1, csgu_linear_units=csgu_linear_units, attention_type=NO_ATTENTION, **branch
        )
        self.convolution_branch = MaskedConvolutionBranch(
            d_model, linear_units=csgu_linear_units, causal=causal, **branch
        )
        self.mha_layer = token_mixer
        if adds_nothing(token_mixer):
            self.norm_mhsa = self.merge_proj = None
        elif (hidden := getattr(token_mixer, "merge_width", None)) is not None:
            # merge of the SummaryMixing paper: an MLP of [summary width, D] (arXiv 2307.07421)
            self.merge_proj = nn.Sequential(
                nn.Linear(2 * d_model, hidden),
                activation(),
                nn.Linear(hidden, d_model),
                activation(),
            )

    def no_frames(self, batch):
        """Returns what the convolution of a stream has before its first frame."""
        return self.convolution_branch.csgu.no_frames(batch)

    def forward(
        self,
        x,
        src_mask=None,
        src_key_padding_mask=None,
        pos_embs=None,
        dynchunktrain_config=None,
    ):
        """Returns ((B, T, D), weights) of ``x`` (B, T, D); masks as `SummaryMixing.forward`."""
        if self.merge_proj is None:
            local = self.convolution_branch(
                self.norm_conv(x), src_key_padding_mask, dynchunktrain_config
            )
            return x + self.dropout(local), None
        mixed = self.norm_mhsa(x)
        mixed, weights = self.mha_layer(
            mixed,
            mixed,
            mixed,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            pos_embs=pos_embs,
        )
        local = self.convolution_branch(
            self.norm_conv(x), src_key_padding_mask, dynchunktrain_config
        )
        merged = self.merge_proj(torch.cat([self.dropout(mixed), self.dropout(local)], dim=-1))
        return x + self.dropout(merged), weights


class MixerBranchformerEncoder(InjectedMixers, BranchformerEncoder):
    """Branchformer encoder whose layers each get a new token mixer; arguments of `InjectedMixers`.

    Example
    -------
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> encoder = MixerBranchformerEncoder(2, 16, lambda: SummaryMixing(16), csgu_linear_units=32)
    >>> encoder(torch.rand(3, 20, 16))[0].shape
    torch.Size([3, 20, 16])
    """

    layer_class = MixerBranchformerLayer
    base_options = {"attention_type": NO_ATTENTION}
