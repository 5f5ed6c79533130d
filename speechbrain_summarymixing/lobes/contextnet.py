"""ContextNet (arXiv 2005.03191), exact under padding.

B is the batch, T the number of frames, C the channels of a block, D the model's width.
"""

from math import prod

import torch
from speechbrain.lobes.models.ContextNet import ContextNet, ContextNetBlock
from speechbrain.nnet.CNN import Conv1d
from speechbrain.nnet.normalization import BatchNorm1d

from speechbrain_summarymixing.nnet.summaries import masked_mean


class MaskedBatchNorm1d(BatchNorm1d):
    """SpeechBrain's batch normalisation, whose statistics in training are of valid frames only.

    Example
    -------
    >>> norm = MaskedBatchNorm1d(input_size=8)
    >>> norm(torch.rand(2, 20, 8), torch.arange(20) >= torch.tensor([[20], [5]])).shape
    torch.Size([2, 20, 8])
    """

    def forward(self, x, key_padding_mask=None):
        """Normalises ``x`` (B, T, C); ``key_padding_mask`` (B, T): True is padding."""
        if key_padding_mask is None or not self.training:
            return super().forward(x)
        norm = self.norm
        padding = key_padding_mask.reshape(1, -1)  # all utterances are one long one
        frames = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(1, -1, x.size(2))
        mean = masked_mean(frames, padding)  # (1, C)
        centred = frames - mean
        variance = masked_mean(centred.square(), padding)
        with torch.no_grad():
            count = padding.logical_not().sum()
            unbiased = variance * (count / (count - 1).clamp(min=1))
            norm.running_mean.lerp_(mean[0].to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(unbiased[0].to(norm.running_var.dtype), norm.momentum)
            norm.num_batches_tracked.add_(1)
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        return (centred * scale + norm.bias).to(x.dtype).reshape(x.shape)


class ContextNetEncoder(ContextNet):
    """SpeechBrain's ContextNet with an encoder's call, blind to padding.

    Each convolution sees zeros in place of padding and beyond the ends, and squeeze-and-excitation
    and batch normalisation take their means over valid frames, so in eval mode an utterance has
    the same output alone and in any batch. Layers and initial values are SpeechBrain's, which has
    no activation between the convolutions of a block, where the paper has Swish.

    Arguments
    ---------
    d_model : int
        Width D of input and output.
    channels : sequence of int or None
        Channels C of each block; None: 2/5 of d_model in the first blocks and 4/5 from 10/21 of
        them on, as in the paper.
    num_blocks : int
        Number of blocks between the first and the last convolution.
    num_layers : int
        Convolutions of a block.
    inner_dim : int
        Width of the squeeze-and-excitation's bottleneck.
    kernel_size : int
        Of the convolutions, in frames; odd.
    strides : sequence of int or None
        Time stride of each block's last convolution; None: three of 2, at 2/21, 6/21 and 13/21 of
        the blocks, as in the paper (few blocks multiply theirs).
    dropout : float
        Probability of zeroing an activation after a block.
    output_hidden_states : bool
        Return the hidden states too.

    Raises
    ------
    ValueError
        If channels or strides are not one for each block.

    Reference: arXiv 2005.03191; with d_model 640 α is 1.

    Example
    -------
    >>> encoder = ContextNetEncoder(40, num_blocks=3, num_layers=2)
    >>> encoder(torch.rand(2, 100, 40))[0].shape, encoder.stride
    (torch.Size([2, 13, 40]), 8)
    """

    def __init__(
        self,
        d_model=640,
        *,
        channels=None,
        num_blocks=21,
        num_layers=5,
        inner_dim=12,
        kernel_size=5,
        strides=None,
        dropout=0.1,
        output_hidden_states=False,
    ):
        if channels is None:
            narrow = 10 * num_blocks // 21
            channels = [2 * d_model // 5] * narrow + [4 * d_model // 5] * (num_blocks - narrow)
        if strides is None:
            halving = [n * num_blocks // 21 for n in (2, 6, 13)]
            strides = [2 ** halving.count(block) for block in range(num_blocks)]
        for name, values in (("channels", channels), ("strides", strides)):
            if len(values) != num_blocks:
                raise ValueError(
                    f"{name} is {list(values)}, but must have one number for each of the "
                    f"{num_blocks} blocks: give {num_blocks} numbers, or None for the paper's"
                )
        stride = prod(strides)
        super().__init__(
            input_shape=(1, stride * (kernel_size + 1), d_model),  # a few frames at every block
            out_channels=d_model,
            conv_channels=channels,
            kernel_size=kernel_size,
            strides=strides,
            num_blocks=num_blocks,
            num_layers=num_layers,
            inner_dim=inner_dim,
            dropout=dropout,
            norm=MaskedBatchNorm1d,
        )
        self.stride = stride
        self.output_hidden_states = output_hidden_states
        for module in self.modules():
            if isinstance(module, Conv1d):
                module.padding_mode = "constant"  # SpeechBrain's reflects the padding
            if isinstance(module, MaskedBatchNorm1d):
                module.norm.reset_running_stats()  # SpeechBrain infers shapes in training mode

    def get_output_shape(self):
        """Returns the shape that the layers so far give, as SpeechBrain asks while it builds."""
        with torch.no_grad():
            return super().forward(torch.zeros(self.input_shape)).shape

    def mixers(self):
        """Returns an empty list: there is no token mixer."""
        return []

    def has_own_positions(self):
        """Returns True: convolutions need no positions."""
        return True

    def forward(
        self,
        src,
        src_mask=None,
        src_key_padding_mask=None,
        pos_embs=None,
        dynchunktrain_config=None,
    ):
        """Encodes whole utterances.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, D), finite.
        src_mask, dynchunktrain_config : None
            Not possible here.
        src_key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding, which is at the end.
        pos_embs : object
            Not used.

        Returns
        -------
        output : torch.Tensor
            (B, ceil(T / stride), D); its padding is ``src_key_padding_mask[:, ::stride]``.
        weights : list
            Empty.
        hidden_states : list
            Only with ``output_hidden_states``: src and the output of each block, (B, T', C) at
            the stride reached there.

        Raises
        ------
        ValueError
            If src_mask or dynchunktrain_config is given.
        """
        for name, value in (("src_mask", src_mask), ("dynchunktrain_config", dynchunktrain_config)):
            if value is not None:
                shown = tuple(value.shape) if isinstance(value, torch.Tensor) else value
                raise ValueError(
                    f"{name} is {shown}, but must be None: ContextNet's squeeze-and-excitation "
                    "sees the whole utterance; take another encoder_module for a causal or "
                    "streaming model"
                )
        x, padding, hidden_states = src, src_key_padding_mask, [src]
        for layer in self.values():
            if isinstance(layer, ContextNetBlock):
                x, padding = _run_block(layer, x, padding)
                hidden_states.append(x)
            else:
                x, padding = _run([layer], x, padding)
        return (x, [], hidden_states) if self.output_hidden_states else (x, [])


def _run(layers, x, padding):
    """Returns x (B, T', C') and padding (B, T') after ``layers`` on (B, T, C) and (B, T)."""
    for layer in layers:
        convolution = getattr(layer, "depthwise", layer)
        if isinstance(convolution, Conv1d):
            x = layer(x if padding is None else x.masked_fill(padding.unsqueeze(-1), 0.0))
            padding = None if padding is None else padding[:, :: convolution.stride]
        elif isinstance(layer, MaskedBatchNorm1d):
            x = layer(x, padding)
        else:
            x = layer(x)
    return x, padding


def _run_block(block, x, padding):
    """As SpeechBrain's `ContextNetBlock` and `SEmodule`, with a mask."""
    shortcut, _ = _run(block.reduced_cov.values(), x, padding)
    x, padding = _run(block.Convs.values(), x, padding)
    x, _ = _run(block.SE.conv.values(), x, padding)
    x = x * block.SE.bottleneck(masked_mean(x, padding).unsqueeze(1))
    return block.drop(block.activation(x + shortcut)), padding
