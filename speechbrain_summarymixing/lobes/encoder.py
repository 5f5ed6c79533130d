"""The base of encoders whose layers each get a new token mixer; windows and streams of theirs."""

from dataclasses import dataclass
from functools import partial

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechbrain_summarymixing.lobes.convolution import ConvolutionStream
from speechbrain_summarymixing.lobes.mixers import has_positions, takes_relative_positions
from speechbrain_summarymixing.lobes.positions import RelativePositions
from speechbrain_summarymixing.nnet.streaming import Stream
from speechbrain_summarymixing.nnet.summaries import CAUSAL, Window, window_of_mask


def window_of_chunks(dynchunktrain_config):
    """Returns the `Window` of SpeechBrain's ``DynChunkTrainConfig``."""
    return Window(dynchunktrain_config.chunk_size, dynchunktrain_config.left_context_size)


@dataclass
class EncoderStreamingContext:
    """An encoder's place in a growing sequence, of constant size.

    Arguments
    ---------
    dynchunktrain_config : DynChunkTrainConfig
        Chunks, as they were asked for.
    window : Window or None
        Of the mixers; None is that of the chunks.
    state : list or None
        Of `InjectedMixers.initial_state`; None before the first frame.
    frames : int
        Frames seen so far.
    """

    dynchunktrain_config: DynChunkTrainConfig
    window: Window | None = None
    state: list | None = None
    frames: int = 0


class InjectedMixers:
    """A SpeechBrain encoder whose layers each get a new token mixer.

    Stands before the SpeechBrain encoder among the base classes.

    Arguments
    ---------
    num_layers : int
        Number of layers.
    d_model : int
        Width D.
    make_mixer : callable
        Returns a new token mixer at each call.
    output_hidden_states : bool
        Return the hidden states too.
    layerdrop_prob : float
        Probability of skipping a layer in training.
    **layer_options
        To ``layer_class``.
    """

    stride = 1  # frames of input for one of output
    activation_checkpointing = False  # in training, compute layers again in backward
    layer_class = None  # called with d_model and a mixer
    mixer_name = "mha_layer"  # of the mixer in a layer
    base_options = {}  # what SpeechBrain's encoder asks for to be built without a layer

    def __init__(
        self,
        num_layers,
        d_model,
        make_mixer,
        output_hidden_states=False,
        layerdrop_prob=0.0,
        **layer_options,
    ):
        super().__init__(
            num_layers=0,
            d_model=d_model,
            nhead=1,
            output_hidden_states=output_hidden_states,
            layerdrop_prob=layerdrop_prob,
            **self.base_options,
        )
        self.layers = nn.ModuleList(
            self.layer_class(d_model, make_mixer(), **layer_options) for _ in range(num_layers)
        )
        relative = [mixer for mixer in self.mixers() if takes_relative_positions(mixer)]
        signed = any(getattr(mixer, "signed", False) for mixer in relative)
        self.relative_positions = RelativePositions(d_model, signed) if relative else None

    def mixers(self):
        """Returns the token mixer of each layer."""
        return [getattr(layer, self.mixer_name) for layer in self.layers]

    def has_own_positions(self):
        """Whether a mixer brings positions, so that sine positions are left out."""
        return any(map(has_positions, self.mixers()))

    def forward(
        self,
        src,
        src_mask=None,
        src_key_padding_mask=None,
        pos_embs=None,
        dynchunktrain_config=None,
    ):
        """Encodes a sequence; the call is that of SpeechBrain's encoders.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, D).
        src_mask : Window, torch.Tensor or None
            What each frame sees. A mask (T, T), bool, True where blocked, or float, where 0 allows,
            that is a window is taken as one, except on a GPU, where to look at it would wait.
        src_key_padding_mask : torch.Tensor or None
            (B, T), True on padding.
        pos_embs : torch.Tensor or None
            Relative positions; None makes them when a mixer needs them.
        dynchunktrain_config : DynChunkTrainConfig or None
            The chunks of the convolutions, and of the mixers where src_mask is None.

        Returns
        -------
        output : torch.Tensor
            (B, T, D).
        weights : list
            Of each layer's mixer, or None.
        hidden_states : list
            One more than layers, (B, T, D), with ``output_hidden_states``.
        """
        if pos_embs is None and self.relative_positions is not None:
            pos_embs = self.relative_positions(src)
        seen = self._seen(src, src_mask, dynchunktrain_config)
        places = [(seen, dynchunktrain_config)] * len(self.layers)
        output, weights, hidden_states = self._run(src, places, src_key_padding_mask, pos_embs)
        if self.output_hidden_states:
            return output, weights, hidden_states
        return output, weights

    def make_streaming_context(self, dynchunktrain_config, window=None):
        """Starts a sequence that comes in parts.

        Arguments
        ---------
        dynchunktrain_config : DynChunkTrainConfig
            Chunks of mixers and convolutions.
        window : Window or None
            Of the mixers; None is that of the chunks.

        Returns
        -------
        EncoderStreamingContext

        Raises
        ------
        ValueError
            If a mixer cannot go on where it ended.
        """
        self._check_streams()
        return EncoderStreamingContext(dynchunktrain_config, window)

    def initial_state(self, dynchunktrain_config, batch, window=None):
        """Returns the state of streams at their start, for `step`; see `nnet.streaming`.

        Arguments
        ---------
        dynchunktrain_config, window
            As for `make_streaming_context`.
        batch : int
            Streams B.

        Raises
        ------
        ValueError
            If a mixer cannot go on where it ended.
        """
        self._check_streams()
        window = window or window_of_chunks(dynchunktrain_config)
        device = self.norm.norm.weight.device
        return [
            (mixer.initial_state(window, batch, device), layer.no_frames(batch))
            for mixer, layer in zip(self.mixers(), self.layers)
        ]

    def step(self, src, state, dynchunktrain_config, window=None, src_key_padding_mask=None):
        """Encodes the next frames of streams: with those before equal to `forward` on the whole.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, D), whole chunks.
        state : list
            Of `initial_state` or the step before.
        dynchunktrain_config, window
            As for `initial_state`.
        src_key_padding_mask : torch.Tensor or None
            (B, T), True after the end of a stream, which cannot go on then.

        Returns
        -------
        output : torch.Tensor
            (B, T, D).
        state : list
            For the next step.
        """
        window = window or window_of_chunks(dynchunktrain_config)
        chunk = dynchunktrain_config.chunk_size
        places = [(Stream(window, mixed), ConvolutionStream(chunk, left)) for mixed, left in state]
        output, _, _ = self._run(src, places, src_key_padding_mask)
        return output, [(stream.state, chunks.left) for stream, chunks in places]

    def forward_streaming(self, src, context, pos_embs=None):
        """Encodes the next frames: with those before equal to `forward` on the whole.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, D), whole chunks but for the end of the sequence.
        context : EncoderStreamingContext
            Of `make_streaming_context`; it is changed.
        pos_embs : None
            Not used.

        Returns
        -------
        output : torch.Tensor
            (B, T, D).
        weights : list
            Of None.

        Raises
        ------
        ValueError
            If the call before ended inside a chunk, which then was the end of the sequence.
        """
        chunks, window = context.dynchunktrain_config, context.window
        chunk = (window or window_of_chunks(chunks)).chunk_frames
        if context.frames % chunk:
            raise ValueError(
                f"the {context.frames} frames before end inside a chunk of {chunk}, which is the "
                "end of a sequence: pass whole chunks until the last, and begin another sequence "
                "with make_streaming_context"
            )
        context.frames += src.size(1)
        if context.state is None:
            context.state = self.initial_state(chunks, src.size(0), window)
        output, context.state = self.step(src, context.state, chunks, window)
        return output, [None] * len(self.layers)

    def _check_streams(self):
        for mixer in self.mixers():
            if not getattr(mixer, "supports_streaming", False):
                raise ValueError(
                    f"the token mixer is a {type(mixer).__name__}, which does not declare "
                    "supports_streaming and would need all frames again: build the encoder with "
                    "SummaryMixing"
                )

    def _run(self, src, places, src_key_padding_mask=None, pos_embs=None):
        """Output, weights and hidden states; ``places`` are what each layer's two parts see."""
        weights, hidden_states = [], [src]
        drop = self.training and self.layerdrop_prob > 0.0
        drawn = torch.rand(len(self.layers)).tolist() if drop else [1.0] * len(self.layers)
        for layer, (seen, chunks), number in zip(self.layers, places, drawn):
            if drop and number <= self.layerdrop_prob:
                continue
            if self.activation_checkpointing and torch.is_grad_enabled():
                layer = partial(checkpoint, layer, use_reentrant=False)
            src, layer_weights = layer(
                src,
                src_mask=seen,
                src_key_padding_mask=src_key_padding_mask,
                pos_embs=pos_embs,
                dynchunktrain_config=chunks,
            )
            weights.append(layer_weights)
            hidden_states.append(src)
        return self.norm(src), weights, hidden_states

    def _seen(self, src, src_mask, dynchunktrain_config):
        """The mask as the mixers take it: None, a window, or a tensor for those without windows."""
        if src_mask is None and dynchunktrain_config is not None:
            src_mask = window_of_chunks(dynchunktrain_config)
        if torch.is_tensor(src_mask) and not (src_mask.is_cuda or torch.compiler.is_compiling()):
            src_mask = window_of_mask(src_mask) or src_mask
        if isinstance(src_mask, Window) and not all(
            getattr(mixer, "supports_window", False) for mixer in self.mixers()
        ):
            return src_mask.attn_mask(src.size(1), src.device)
        return src_mask


def check_causal(encoder, d_model):
    """Raises ValueError, of the part that says why, if an encoder always sees later frames.

    Arguments
    ---------
    encoder : torch.nn.Module
        Of inputs (B, T, D), with `InjectedMixers`' call.
    d_model : int
        D.
    """
    with torch.no_grad():
        encoder.eval()(torch.zeros(1, 2, d_model), src_mask=CAUSAL)
    encoder.train()
