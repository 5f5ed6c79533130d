"""Token mixers that SpeechBrain brings, made ready to be injected, and the absence of one."""

from dataclasses import dataclass
from functools import partial

import torch
from speechbrain.nnet.attention import RelPosEncXL, RelPosMHAXL, RoPEMHA
from speechbrain.nnet.hypermixing import HyperMixing
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn
from torch.utils.checkpoint import checkpoint

from speechbrain_summarymixing.lobes.convolution import ConvolutionStream
from speechbrain_summarymixing.lobes.positions import SinePositions
from speechbrain_summarymixing.nnet.summaries import Stream, Window, window_of_mask


def check_mixer(token_mixer):
    """Raises TypeError unless ``token_mixer`` is a callable, and no module, that makes mixers."""
    if isinstance(token_mixer, nn.Module):
        raise TypeError(
            f"token_mixer is a {type(token_mixer).__name__} module, which all layers would share: "
            "pass a callable that returns a new one (!name: in place of !new: in YAML)"
        )
    if not callable(token_mixer):
        raise TypeError(
            f"token_mixer is {token_mixer!r}, but must be a callable that returns a new module, "
            "such as functools.partial(SummaryMixing, d_model)"
        )


def mixer_name(make_mixer):
    """Returns the name of what makes mixers: of a class, a function or an object's class."""
    maker = getattr(make_mixer, "func", make_mixer)  # functools.partial's
    return getattr(maker, "__qualname__", type(maker).__qualname__)


class LinearHyperMixing(HyperMixing):
    """SpeechBrain's multi-head HyperMixing, for any length and without a T x T tensor.

    SpeechBrain's returns zeros (B, T, T) in the place of attention's weights, and its positions
    end at max_length.

    Arguments
    ---------
    d_model : int
        Width D.
    hypernet_size : int
        Hidden width of the token-mixing MLP, over all heads.
    nhead : int
        Number of heads.
    tied : bool
        One generated matrix for both layers of the token-mixing MLP.

    Reference: HyperMixer, arXiv 2203.03691; in speech, arXiv 2305.18281.

    Example
    -------
    >>> import torch
    >>> output, weights = LinearHyperMixing(16, 32, nhead=4)(torch.rand(2, 50, 16))
    >>> output.shape, weights
    (torch.Size([2, 50, 16]), None)
    """

    def __init__(self, d_model, hypernet_size, *, nhead=8, tied=False):
        super().__init__(d_model, hypernet_size, tied=tied, num_heads=nhead, max_length=1)
        self.positional_encoding = SinePositions(d_model)

    def forward(
        self,
        query,
        key=None,
        value=None,
        attn_mask=None,
        key_padding_mask=None,
        pos_embs=None,
    ):
        """Mixes ``query`` (B, T, D); the call is that of SpeechBrain's attention.

        Raises
        ------
        ValueError
            If attn_mask is given: HyperMixing sees the whole sequence.
        """
        if attn_mask is not None:
            raise ValueError(
                f"attn_mask of shape {tuple(attn_mask.shape)} is given, but HyperMixing always "
                "sees the whole sequence: pass None, or take another mixer for a causal model"
            )
        # SpeechBrain's forward, less its zeros (B, T, T)
        padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(-1)  # (B, T, 1)
        x = query if padding is None else query.masked_fill(padding, 0.0)
        first, second = self.hyper(x + self.positional_encoding(x))  # (B, H, T, K / H)
        if padding is not None:
            first = first.masked_fill(padding.unsqueeze(1), 0.0)
            second = second.masked_fill(padding.unsqueeze(1), 0.0)
        heads = x.unflatten(2, (self.num_heads, -1)).permute(0, 2, 3, 1)  # (B, H, D / H, T)
        mixed = self.activation(heads @ first) @ second.transpose(2, 3)  # (B, H, D / H, T)
        return self.layer_norm(mixed.flatten(1, 2).transpose(1, 2)), None


class NoMixing(nn.Module):
    """No token mixer: a Branchformer keeps its convolution branch alone, a Conformer its module.

    Reference: "Branchformer, CNN only" of arXiv 2307.07421.
    """

    supports_window = True

    def forward(
        self, query, key=None, value=None, attn_mask=None, key_padding_mask=None, pos_embs=None
    ):
        """Returns a zero of no dimension, which adds nothing, and no weights."""
        return query.new_zeros(()), None


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
    layers : list of (Stream, ConvolutionStream)
        Places of each layer's mixer and convolution.
    frames : int
        Frames seen so far.
    """

    dynchunktrain_config: DynChunkTrainConfig
    layers: list
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
        relative = any(isinstance(mixer, RelPosMHAXL) for mixer in self.mixers())
        self.relative_positions = RelPosEncXL(d_model) if relative else None

    def mixers(self):
        """Returns the token mixer of each layer."""
        return [getattr(layer, self.mixer_name) for layer in self.layers]

    def has_own_positions(self):
        """Whether a mixer brings positions, so that sine positions are left out."""
        return any(
            isinstance(mixer, (RelPosMHAXL, RoPEMHA)) or getattr(mixer, "has_positions", False)
            for mixer in self.mixers()
        )

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
        for mixer in self.mixers():
            if not isinstance(mixer, NoMixing) and not hasattr(mixer, "forward_streaming"):
                raise ValueError(
                    f"the token mixer is a {type(mixer).__name__}, which has no forward_streaming "
                    "and would need all frames again: build the encoder with SummaryMixing"
                )
        window = window or window_of_chunks(dynchunktrain_config)
        places = [
            (Stream(window), ConvolutionStream(dynchunktrain_config.chunk_size))
            for _ in self.layers
        ]
        return EncoderStreamingContext(dynchunktrain_config, places)

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
        """
        context.frames += src.size(1)
        return self._run(src, context.layers)[:2]

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
