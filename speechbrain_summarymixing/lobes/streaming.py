"""Speech that comes in parts: from samples to the encoder's output, with a state of constant size.

B is the number of streams, C the encoder's frames of a chunk, D the encoder's width.
"""

import torch
from torch import nn

from speechbrain_summarymixing.lobes.frontend import KaldiFbank
from speechbrain_summarymixing.lobes.positions import AddSinePositions
from speechbrain_summarymixing.nnet.summaries import CAUSAL


class EncodesStreams:
    """What `SummaryMixingASR` has for speech that comes in parts.

    Needs ``encoder``, ``causal`` and ``custom_src_module`` beside it.
    """

    def make_streaming_context(self, dynchunktrain_config, encoder_kwargs=None):
        """Starts speech that comes in parts, for ``encode_streaming``.

        Arguments
        ---------
        dynchunktrain_config : DynChunkTrainConfig
            Chunks; of a causal encoder, frames that it gets at once, and not looked at.
        encoder_kwargs : dict or None
            Passed to the encoder.

        Returns
        -------
        TransformerASRStreamingContext

        Raises
        ------
        ValueError
            If a mixer, or the encoder, cannot go on where it ended.
        """
        self._check_encoder()
        options = {"window": self._window(), **(encoder_kwargs or {})}
        return super().make_streaming_context(dynchunktrain_config, options)

    def encode_streaming(self, src, context):
        """Encodes the next frames: with those before equal to ``encode`` with the same chunks.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F', C), whole chunks but for the end of the speech.
        context : TransformerASRStreamingContext
            Of ``make_streaming_context``; it is changed.

        Returns
        -------
        torch.Tensor
            (B, T, D).

        Reference: streaming SummaryMixing, arXiv 2409.07165.
        """
        context = context.encoder_context
        return self.encoder.forward_streaming(self._source(src, context.frames), context)[0]

    def initial_state(self, dynchunktrain_config, batch):
        """Returns the state of ``batch`` streams at their start, zeros, for `step`.

        Raises
        ------
        ValueError
            If a mixer, or the encoder, cannot go on where it ended.
        """
        self._check_encoder()
        state = self.encoder.initial_state(dynchunktrain_config, batch, self._window())
        device = self.encoder.norm.norm.weight.device
        return torch.zeros(batch, dtype=torch.long, device=device), state

    def step(self, src, state, dynchunktrain_config, key_padding_mask=None):
        """As `InjectedMixers.step`, of the front-end's output (B, T, F) or (B, T, F', C)."""
        frames, layers = state
        encoded, layers = self.encoder.step(
            self._source(src, frames),
            layers,
            dynchunktrain_config,
            self._window(),
            key_padding_mask,
        )
        return encoded, (frames + src.size(1), layers)

    def _check_encoder(self):
        if not hasattr(self.encoder, "initial_state"):
            raise ValueError(
                f"the encoder is a {type(self.encoder).__name__}, which needs the whole utterance: "
                "train another encoder_module, such as branchformer"
            )

    def _window(self):
        return CAUSAL if self.causal else None

    def _source(self, src, start):
        """The encoder's input (B, T, D), whose first frame is ``start``."""
        if src.dim() == 4:
            src = src.flatten(2)
        for module in self.custom_src_module.layers:
            options = {"start": start} if isinstance(module, AddSinePositions) else {}
            src = module(src, **options)
        return src


class SpeechEncoder(nn.Module):
    """Features, normalisation, front-end and encoder of speech, whole or as it comes.

    Arguments
    ---------
    features : KaldiFbank
        Looks 7.5 ms beyond the end of its frames, the front-end not at all.
    normalize : torch.nn.Module
        Global normalisation.
    front_end : MaskedConvolutionFrontEnd
    transformer : SummaryMixingASR
    dynchunktrain_config : DynChunkTrainConfig
        Chunks C that a frame sees whole, and those to the left.

    Raises
    ------
    ValueError
        If a part needs the whole utterance.

    Reference: streaming SummaryMixing, arXiv 2409.07165.
    """

    def __init__(self, features, normalize, front_end, transformer, dynchunktrain_config):
        super().__init__()
        if not isinstance(features, KaldiFbank):
            raise ValueError(
                f"compute_features is a {type(features).__name__}, which needs the whole "
                "utterance: train with KaldiFbank, the default of hparams/parts/features.yaml"
            )
        if normalize.norm_type != "global":
            raise ValueError(
                f"norm_type is {normalize.norm_type!r}, which needs the whole utterance: train "
                "with global"
            )
        self.features, self.normalize = features, normalize
        self.front_end, self.transformer = front_end, transformer
        self.config = dynchunktrain_config
        self.chunk_frames = dynchunktrain_config.chunk_size
        self.frame_samples = features.samples

    def windows(self):
        """Returns the `SampleWindows` of a new stream."""
        return SampleWindows(self.features, self.chunk_frames)

    def forward(self, wavs, lengths=None):
        """Encodes whole utterances; a frame sees what it sees in a stream.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, samples), in [-1, 1].
        lengths : torch.Tensor or None
            (B,), relative lengths.

        Returns
        -------
        torch.Tensor
            (B, T, D).
        """
        if lengths is None:
            lengths = torch.ones(wavs.size(0), device=wavs.device)
        x = self.normalize(self.features(wavs, lengths), lengths)
        x = self.front_end(x, lengths)
        config = None if self.transformer.causal else self.config
        return self.transformer.encode(x, lengths, dynchunktrain_config=config)

    def initial_state(self, batch):
        """Returns the state of ``batch`` streams at their start; see `nnet.streaming`."""
        return (
            self.front_end.initial_state(batch),
            self.transformer.initial_state(self.config, batch),
        )

    def step(self, windows, frames, state):
        """Encodes the next chunk of each stream: with those before equal to `forward`.

        Arguments
        ---------
        windows : torch.Tensor
            (B, samples) of `SampleWindows`.
        frames : torch.Tensor
            (B,), frames of the chunk that are there: C, or less at the end of a stream.
        state : tuple
            Of `initial_state` or the step before.

        Returns
        -------
        encoded : torch.Tensor
            (B, C, D); without meaning after ``frames``.
        state : tuple
            For the next step.
        """
        convolved, encoder = state
        lengths = frames.to(windows.dtype) / self.chunk_frames
        x = self.normalize(self.features.of_windows(windows), lengths)
        x, convolved = self.front_end.step(x, convolved, lengths)
        padding = torch.arange(self.chunk_frames, device=frames.device) >= frames.unsqueeze(1)
        encoded, encoder = self.transformer.step(x, encoder, self.config, padding)
        return encoded, (convolved, encoder)


class SampleWindows:
    """The samples of one stream, cut into what each chunk's filterbank sees.

    A window holds a chunk and the samples around it that its frames reach. At both ends the signal
    is mirrored, and it ends with a whole frame, as `KaldiFbank` has it for whole utterances.

    Arguments
    ---------
    features : KaldiFbank
    chunk_frames : int
        The encoder's frames C of a chunk.

    Example
    -------
    >>> windows = SampleWindows(KaldiFbank(), 2)
    >>> windows.accept(torch.rand(2000))
    >>> [(window.numel(), frames) for window, frames in windows.ready()]
    [(1520, 2)]
    >>> [(window.numel(), frames) for window, frames in windows.finish()]
    [(1520, 2)]
    """

    def __init__(self, features, chunk_frames):
        self.frame_samples, self.chunk_frames = features.samples, chunk_frames
        self.before = features.window_samples // 2 - features.hop_samples // 2
        self.after = features.window_samples - features.hop_samples - self.before
        self._begin()

    def accept(self, samples):
        """Takes the next samples (N,), of any number."""
        self._put(samples)
        self.samples += samples.numel()
        if not self._mirrored and self.samples >= self.before:
            self._mirror_start()

    def ready(self):
        """Yields the whole chunks that are there: a window (samples,) and its frames C."""
        chunk = self.chunk_frames * self.frame_samples
        while self._mirrored and self._kept >= self.before + chunk + self.after:
            kept = torch.cat(self._pieces) if len(self._pieces) > 1 else self._pieces[0]
            self._pieces, self._kept = [kept[chunk:]], self._kept - chunk
            # a copy, which holds no more than itself in memory
            yield kept[: self.before + chunk + self.after].clone(), self.chunk_frames

    def finish(self):
        """Yields what is left, as `ready`: the last chunk may have fewer frames. It begins anew."""
        if self.samples:
            self._put(self._pieces[0].new_zeros(-self.samples % self.frame_samples))
            if not self._mirrored:
                self._mirror_start()
            kept = torch.cat(self._pieces)
            self._put(kept[len(kept) - self.after :].flip(0))
            yield from self.ready()
            frames = (self._kept - self.before - self.after) // self.frame_samples
            if frames:
                missing = (self.chunk_frames - frames) * self.frame_samples
                self._put(kept.new_zeros(missing))
                yield torch.cat(self._pieces), frames
        self._begin()

    def _begin(self):
        self._pieces, self._kept, self._mirrored = [], 0, False
        self.samples = 0  # so far, of the stream

    def _put(self, samples):
        self._pieces.append(samples)
        self._kept += samples.numel()

    def _mirror_start(self):
        kept = torch.cat(self._pieces)
        self._pieces = [kept[: self.before].flip(0), kept]
        self._kept += self.before
        self._mirrored = True
