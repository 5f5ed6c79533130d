"""Waveform to encoder input, each step exact under padding."""

import torch
import torchaudio.compliance.kaldi as kaldi
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.nnet.CNN import Conv2d, get_padding_elem
from speechbrain.nnet.normalization import LayerNorm
from speechbrain.processing.features import InputNormalization

from speechbrain_summarymixing.lobes.padding import padding_mask


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

    def forward(self, wavs, lengths=None):
        """Returns the filterbanks (B, frames, F) of waveforms (B, T), zero after their end.

        ``lengths`` has no influence: an utterance alone is followed by zeros, too.
        """
        _check_waveforms(wavs)
        return self.fbank(pad_to_multiple(wavs, self.samples))[:, :-1]


class KaldiFbank(torch.nn.Module):
    """Kaldi's log-mel filterbank, batched, as kaldi-native-fbank and sherpa-onnx compute it.

    Windows of 25 ms every 10 ms, centred in their 10 ms, without mean, pre-emphasised by 0.97 and
    weighed by Kaldi's "povey" window; log of the power in triangular mel filters, floored at
    float32's epsilon. An utterance is mirrored at both ends, as with ``snip_edges=False``, so what
    follows it in a batch has no influence on its frames. There is no dither.

    Arguments
    ---------
    n_mels : int
        Number of mel filters F.
    sample_rate : int
        In Hz.
    low_freq, high_freq : float
        Bounds of the filters in Hz; below 0, from the half of the sample rate.
    stride : int
        Product of the time strides that follow: the number of frames is a whole multiple, and so
        T samples make ``stride * ceil(T / (stride * hop))`` frames. Those after the end of an
        utterance are its padding.

    Reference: feature-fbank and feature-window of Kaldi.

    Example
    -------
    >>> KaldiFbank()(torch.rand(2, 16000)).shape
    torch.Size([2, 100, 80])
    """

    def __init__(self, n_mels=80, sample_rate=16000, low_freq=20.0, high_freq=-400.0, stride=4):
        super().__init__()
        self.sample_rate, self.n_mels = sample_rate, n_mels
        self.low_freq, self.high_freq = low_freq, high_freq
        self.window_samples = sample_rate // 40  # rounded down, as Kaldi does
        self.hop_samples = sample_rate // 100
        self.fft_samples = 2 ** (self.window_samples - 1).bit_length()
        self.samples = stride * self.hop_samples
        window = torch.hann_window(self.window_samples, periodic=False, dtype=torch.float64)
        filters, _ = kaldi.get_mel_banks(
            n_mels, self.fft_samples, float(sample_rate), low_freq, high_freq, 0.0, 0.0, 1.0
        )
        self.register_buffer("window", window.pow(0.85).float(), persistent=False)
        # the highest bin, half of the sample rate, is in no filter
        filters = torch.nn.functional.pad(filters, (0, 1)).T
        self.register_buffer("filters", filters.contiguous(), persistent=False)

    def forward(self, wavs, lengths=None):
        """Returns the filterbanks of waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, T), in [-1, 1].
        lengths : torch.Tensor or None
            (B,), relative to T: each utterance ends, after zeros, with the whole multiple of
            ``stride`` frames that holds its last sample, as in training. None: at T itself.

        Returns
        -------
        torch.Tensor
            (B, frames, F), float32, or float64 for waveforms of that.

        Raises
        ------
        ValueError
            If wavs has another number of dimensions.
        """
        _check_waveforms(wavs)
        with torch.autocast(wavs.device.type, enabled=False):
            if wavs.dtype != torch.float64:
                wavs = wavs.float()
            return self.of_windows(self._signal(wavs, lengths))

    def of_windows(self, signal):
        """Returns the filterbanks (B, frames, F) of the whole windows in signals (B, S)."""
        with torch.autocast(signal.device.type, enabled=False):
            frames = signal.unfold(1, self.window_samples, self.hop_samples)
            frames = frames - frames.mean(2, keepdim=True)  # (B, frames, window)
            before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
            frames = (frames - 0.97 * before) * self.window.to(frames.dtype)
            spectrum = torch.view_as_real(torch.fft.rfft(frames, self.fft_samples))
            power = spectrum.square().sum(3)  # (B, frames, fft / 2 + 1)
            mel = power @ self.filters.to(power.dtype)
            return mel.clamp(min=torch.finfo(torch.float32).eps).log()

    def _signal(self, wavs, lengths):
        """Mirrored waveforms (B, S), of which `of_windows` takes the windows."""
        samples = wavs.size(1)
        reach = self.window_samples // 2 - self.hop_samples // 2  # before the first sample
        last = -(-samples // self.samples) * self.samples - self.hop_samples
        index = torch.arange(last + self.window_samples, device=wavs.device) - reach
        if lengths is None:
            ends = torch.full((wavs.size(0), 1), samples, device=wavs.device)
        else:
            ends = (lengths * samples).round().long().clamp(1, samples).unsqueeze(1)
            wavs = wavs.masked_fill(torch.arange(samples, device=wavs.device) >= ends, 0.0)
            wavs = pad_to_multiple(wavs, self.samples)
            ends = (ends + self.samples - 1) // self.samples * self.samples
        # …, 1, 0, 0, 1, …, N - 1, N - 1, N - 2, … with a period of 2 N
        phase = torch.remainder(index, 2 * ends)
        mirrored = torch.minimum(phase, 2 * ends - 1 - phase)
        after = index >= ends + (self.window_samples + 1) // 2  # of the last frame that Kaldi has
        return wavs.gather(1, mirrored).masked_fill(after, 0.0)


class _MirrorsFrequency(Conv2d):
    """SpeechBrain's convolution, whose padding mode is that of the frequency axis alone."""

    def _manage_padding(self, x, kernel_size, dilation, stride):
        """Pads (B, C, F, T): time with zeros, so that the end of an utterance is as padding."""
        time, frequency = (
            get_padding_elem(self.in_channels, stride[axis], kernel_size[axis], dilation[axis])
            for axis in (-1, -2)
        )
        x = torch.nn.functional.pad(x, [0, 0, *frequency], mode=self.padding_mode)
        return torch.nn.functional.pad(x, time)


def _check_waveforms(wavs):
    if wavs.dim() != 2:
        raise ValueError(
            f"wavs has shape {tuple(wavs.shape)}, but must be (batch, samples): "
            "average the channels first"
        )
    if not wavs.size(1):
        raise ValueError("wavs has no samples: leave empty audio out")


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

    What enters each block is zero beyond the end of the utterance, and the convolutions pad time
    with zeros, so an utterance has the same output alone and in a batch.

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
    frequency_padding : str
        "constant" pads the mel bands with zeros, "reflect" mirrors them, as SpeechBrain's does.

    Raises
    ------
    ValueError
        If frequency_padding is unknown.

    Example
    -------
    >>> MaskedConvolutionFrontEnd(80, (8, 4))(torch.rand(2, 100, 80)).shape
    torch.Size([2, 25, 20, 4])
    """

    def __init__(
        self, n_mels=80, channels=(64, 32), kernel_size=3, dropout=0.1, frequency_padding="constant"
    ):
        blocks = len(channels)
        if frequency_padding not in ("constant", "reflect"):
            raise ValueError(
                f"frequency_padding is {frequency_padding!r}, but must be constant or reflect"
            )
        super().__init__(
            input_shape=(None, None, n_mels, 1),
            num_blocks=blocks,
            num_layers_per_block=1,
            out_channels=list(channels),
            kernel_sizes=[kernel_size] * blocks,
            strides=[2] * blocks,
            dilations=[1] * blocks,
            residuals=[False] * blocks,
            conv_module=_MirrorsFrequency if frequency_padding == "reflect" else Conv2d,
            norm=LayerNorm,
            dropout=dropout,
        )
        self.n_mels, self.channels, self.kernel_size = n_mels, tuple(channels), kernel_size
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.padding_mode = frequency_padding  # SpeechBrain's reflects

    def forward(self, x, lengths=None):
        """Returns (B, T', F', C) of features (B, T, F) with relative lengths (B,) in 0..1."""
        return self._convolve(x, lengths, [None] * len(self))[0]

    def initial_state(self, batch):
        """Returns the state of streams at their start, for `step`: the last inputs of each block.

        Arguments
        ---------
        batch : int
            Streams B.

        Raises
        ------
        ValueError
            If the kernel looks ahead.
        """
        if self.kernel_size > 3:
            raise ValueError(
                f"kernel_size is {self.kernel_size}, with which a block looks beyond its chunk: a "
                "front-end that streams has 3"
            )
        shapes = [(self.n_mels, 1)]
        for channels in self.channels[:-1]:
            shapes.append(((shapes[-1][0] + 1) // 2, channels))
        like = next(self.parameters(), torch.empty(0))
        return [like.new_zeros(batch, 2, *shape) for _, shape in zip(self.channels, shapes)]

    def step(self, x, state, lengths=None):
        """Continues streams where the step before ended: equal to `forward` on the whole.

        Arguments
        ---------
        x : torch.Tensor
            (B, T, F), the next features, of which T is a multiple of all strides.
        state : list
            Of `initial_state` or the step before.
        lengths : torch.Tensor or None
            (B,), relative to T, below 1 at the end of a stream, which cannot go on then.

        Returns
        -------
        output : torch.Tensor
            (B, T', F', C).
        state : list
            For the next step.
        """
        return self._convolve(x, lengths, state)

    def _convolve(self, x, lengths, state):
        """The output, and the last two inputs of each block: with stride 2, one output more."""
        new = []
        if len(self) and x.dim() == 3:  # SpeechBrain infers shapes by inputs of four
            x = x.unsqueeze(3)  # (B, T, F, 1); a block's output is (B, T, F, C)
        for block, before in zip(self.values(), state):
            if lengths is not None:
                x = x.masked_fill(padding_mask(lengths, x.size(1))[:, :, None, None], 0.0)
            if before is not None:
                x = torch.cat([before.to(x.dtype), x], 1)
            new.append(x[:, -2:])
            x = block(x) if before is None else block(x)[:, 1:]
        return x, new
