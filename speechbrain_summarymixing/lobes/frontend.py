"""Waveform to encoder input, each step exact under padding."""

import torch
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.nnet.CNN import Conv2d
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.processing.features import InputNormalization, make_padding_mask


def pad_to_multiple(wavs, samples):
    """Zero-pads waveforms (..., T) at their end to a multiple of ``samples``."""
    return torch.nn.functional.pad(wavs, (0, -wavs.size(-1) % samples))


class WholeFrameFbank(torch.nn.Module):
    """Log-mel filterbanks whose number of frames is a whole multiple of the front-end's stride.

    The waveform is zero-padded to the next multiple of ``stride`` hops, and the frame centred on
    its end is dropped. So T samples make ``stride * ceil(T / (stride * hop))`` frames, and when
    the waveforms of a batch are multiples themselves (`pad_to_multiple`), relative lengths
    give the same whole number of frames at each later step as the utterance alone has.

    Arguments
    ---------
    n_mels : int
        Number of mel filters F.
    sample_rate : int
        In Hz.
    n_fft : int
        Size of the Fourier transform in samples.
    win_length, hop_length : float
        In milliseconds.
    stride : int
        Product of the time strides that follow.

    Example
    -------
    >>> WholeFrameFbank(n_mels=80)(torch.rand(2, 16000)).shape
    torch.Size([2, 100, 80])
    """

    def __init__(
        self, n_mels=80, sample_rate=16000, n_fft=512, win_length=25, hop_length=10, stride=4
    ):
        super().__init__()
        self.samples = stride * round(sample_rate * hop_length / 1000)
        self.fbank = Fbank(
            n_mels=n_mels,
            sample_rate=sample_rate,
            n_fft=n_fft,
            win_length=win_length,
            hop_length=hop_length,
        )

    def forward(self, wavs):
        """Returns the filterbanks (B, frames, F) of waveforms (B, T)."""
        if wavs.dim() != 2:
            raise ValueError(
                f"wavs has shape {tuple(wavs.shape)}, but must be (batch, samples): "
                "average the channels first"
            )
        return self.fbank(pad_to_multiple(wavs, self.samples))[:, :-1]


class Normalization(InputNormalization):
    """SpeechBrain's normalisation, whose statistics follow the features to their device.

    They are no buffers, so a container's ``.to("cuda")`` leaves SpeechBrain's behind.
    """

    def forward(self, x, lengths=None, epoch=None):
        """Normalises features (B, T, F) with relative lengths (B,); see SpeechBrain."""
        self.glob_mean = self.glob_mean.to(x.device)
        self.glob_std = self.glob_std.to(x.device)
        return super().forward(x, lengths, epoch)


class MaskedConvolutionFrontEnd(ConvolutionFrontEnd):
    """SpeechBrain's convolutional front-end, blind to padding.

    What enters each block is zero beyond the end of the utterance, and the convolutions pad with
    zeros, so an utterance has the same output alone and in a batch.

    Arguments
    ---------
    n_mels : int
        Input features F.
    channels : sequence of int
        Output channels of each block; each halves time and frequency. Without blocks the features
        pass unchanged.
    kernel_size : int
        In frames and mel bands.
    dropout : float
        Probability of zeroing an activation.

    Example
    -------
    >>> MaskedConvolutionFrontEnd(80, (8, 4))(torch.rand(2, 100, 80)).shape
    torch.Size([2, 25, 20, 4])
    """

    def __init__(self, n_mels=80, channels=(64, 32), kernel_size=3, dropout=0.1):
        blocks = len(channels)
        super().__init__(
            input_shape=(None, None, n_mels),
            num_blocks=blocks,
            num_layers_per_block=1,
            out_channels=list(channels),
            kernel_sizes=[kernel_size] * blocks,
            strides=[2] * blocks,
            dilations=[1] * blocks,
            residuals=[False] * blocks,
            norm=LayerNorm,
            dropout=dropout,
        )
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.padding_mode = "constant"  # SpeechBrain's reflects the padding

    def forward(self, x, lengths=None):
        """Returns (B, T', F', C) of features (B, T, F) with relative lengths (B,) in 0..1."""
        for block in self.values():
            if lengths is not None:
                # x is (B, T, F), then (B, T, F, C); half a frame absorbs float rounding
                half_frame = 0.5 / x.size(1)
                x = x.masked_fill(~make_padding_mask(x, lengths - half_frame), 0.0)
            x = block(x)
        return x
