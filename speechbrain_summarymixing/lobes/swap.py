"""Self-attention of an existing model replaced, in place, by token mixers.

B is the batch, T the number of frames, patches or tokens, D the model's width.
"""

from operator import attrgetter
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_summarymixing.lobes.mixers import check_mixer
from speechbrain_summarymixing.nnet.summaries import CAUSAL


class TorchSelfAttention(nn.Module):
    """A token mixer with the call of `torch.nn.MultiheadAttention`, out of torch's fast path.

    Arguments
    ---------
    mixer : torch.nn.Module
        Called as SpeechBrain's attention.
    embed_dim : int
        Width D.
    batch_first : bool
        The input is (B, T, D), and not (T, B, D).
    """

    class _NoWeight:  # torch's fast path leaves alone what overrides torch's functions
        weight = bias = __torch_function__ = None

    in_proj_bias = None  # the fast path of a layer ends here, that of an encoder at a _NoWeight
    in_proj_weight = out_proj = _NoWeight()
    _qkv_same_embed_dim = False  # asked when an encoder is built of a swapped layer

    def __init__(self, mixer, *, embed_dim, batch_first):
        super().__init__()
        self.mixer = mixer
        self.embed_dim = self.kdim = self.vdim = embed_dim
        self.batch_first = batch_first

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        """Returns (output, None), whatever is asked of the weights.

        ``query`` is (B, T, D), (T, B, D) or (T, D), and key and value are the same tensor. Masks
        are bool, True where blocked, or float, where 0 allows: ``key_padding_mask`` (B, T) or (T,),
        ``attn_mask`` (T, T). ``is_causal`` says that attn_mask is the causal one, in whose place a
        mixer that takes a window gets that.
        """
        if query.is_nested:
            raise ValueError(
                "query is a nested tensor, which torch's encoder makes where its first layer still "
                "has attention: swap the whole encoder, or set its use_nested_tensor to False"
            )
        if key is not query or value is not query:
            raise ValueError(
                "key or value is another tensor than query, but a mixer mixes one sequence with "
                "itself: keep attention in this layer, and swap the other parts of the model alone"
            )
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is True, but attn_mask is None: pass the causal mask too")
        if key_padding_mask is not None:
            key_padding_mask = torch.atleast_2d(key_padding_mask) != 0
        batch_dim = 0 if self.batch_first else 1
        x = query if query.dim() == 3 else query.unsqueeze(batch_dim)
        x = x.transpose(0, batch_dim)  # (B, T, D)
        if is_causal and _takes_window(self.mixer):
            attn_mask = CAUSAL
        output, _ = self.mixer(x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask)
        output = output.transpose(0, batch_dim)
        return (output if query.dim() == 3 else output.squeeze(batch_dim)), None


class HuggingFaceSelfAttention(nn.Module):
    """A token mixer with the call of the attention of Hugging Face's models.

    Arguments
    ---------
    mixer : torch.nn.Module
        Called as SpeechBrain's attention.
    num_outputs : int
        Values that the attention returns: 2 or 3, by the version of transformers.
    is_causal : bool
        Frames see no later ones, whatever the mask says: a decoder's, as GPT-2's.
    """

    # what stands for another sequence, or for keys and values of before, by the version
    REFUSED = {
        **dict.fromkeys(
            ("head_mask", "layer_head_mask"), "a mixer has no heads to mask: leave it at None"
        ),
        **dict.fromkeys(
            ("key_value_states", "encoder_hidden_states"),
            "a mixer mixes one sequence with itself: leave it at None",
        ),
        **dict.fromkeys(
            ("cache", "past_key_values", "past_key_value", "layer_past"),
            "a mixer has no keys and values to keep: give use_cache=False, to generate() too",
        ),
    }

    def __init__(self, mixer, *, num_outputs, is_causal=False):
        super().__init__()
        self.mixer = mixer
        self.num_outputs = num_outputs
        self.is_causal = is_causal

    def forward(self, hidden_states, attention_mask=None, **others):
        """Returns the output (B, T, D) of ``hidden_states`` and None for each other value.

        ``attention_mask`` is one of padding, as these models make it: (B, T), 0 on padding; or
        (B, 1, T or 1, T), bool, False where blocked, or float, where 0 is valid, with equal rows,
        or in a causal model causal ones. What else the models pass through to attention's kernels
        has no effect.
        """
        for name, why in self.REFUSED.items():
            if others.get(name) is not None:
                raise ValueError(f"{name} is given, but {why}")
        x, padding, window = hidden_states, None, None
        if self.is_causal:
            frames = x.size(1)
            window = CAUSAL if _takes_window(self.mixer) else CAUSAL.attn_mask(frames, x.device)
        if attention_mask is not None:
            padding = _padding(attention_mask, self.is_causal)
        output, _ = self.mixer(x, x, x, attn_mask=window, key_padding_mask=padding)
        return output, *[None] * (self.num_outputs - 1)


def _takes_window(mixer):
    return getattr(mixer, "supports_window", False)


def _padding(attention_mask, is_causal):
    """(B, T), True on padding, of a mask of a Hugging Face model."""
    shape = tuple(attention_mask.shape)
    if not torch.is_tensor(attention_mask) or not (len(shape) == 2 or shape[1:-2] == (1,)):
        raise ValueError(
            f"attention_mask is a {type(attention_mask).__name__} of shape {shape}, but must be a "
            'tensor of (B, T) or (B, 1, T, T): set attn_implementation="sdpa"'
        )
    if len(shape) == 2:
        return attention_mask == 0
    blocked = attention_mask[:, 0]
    blocked = blocked.logical_not() if blocked.dtype == torch.bool else blocked != 0
    padding = blocked[:, -1]  # the last frame sees all that are valid, in a causal model too
    if blocked.device.type in ("cpu", "cuda"):  # elsewhere the check would wait for the host
        expected = padding.unsqueeze(1)
        if is_causal and blocked.size(1) > 1:
            expected = expected | CAUSAL.attn_mask(blocked.size(2), blocked.device)
            nothing, anything = blocked.all(2), blocked.logical_not().all(2)
            free = padding & (nothing | anything)  # what stands left of the first valid frame
            expected = torch.where(free.unsqueeze(2), blocked, expected)
        torch._assert_async(
            (blocked == expected).all(),
            "attention_mask blocks other frames for some frames than for others, but a swapped "
            "Hugging Face layer takes padding only, and the past in a causal model: swap a torch "
            "or SpeechBrain encoder instead",
        )
    return padding


def _torch(mixer, attention, frame):
    options = {"embed_dim": attention.embed_dim, "batch_first": attention.batch_first}
    return TorchSelfAttention(mixer, **options)


@torch.no_grad()
def _hugging_face(mixer, attention, frame):
    outputs = len(attention.forward(frame))
    causal = getattr(attention, "is_causal", False)
    return HuggingFaceSelfAttention(mixer, num_outputs=outputs, is_causal=causal)


class Place(NamedTuple):
    """Where a layer has self-attention.

    Arguments
    ---------
    attention : str
        Its name in the layer, of parts with dots.
    norm : str or None
        The name of a norm of the layer's width; None: the attention knows it.
    adapt : callable or None
        Of a mixer, the attention and a frame makes what stands in its place; None: the mixer does.
    projection : str or None
        The name of attention's output projection, where that is no part of it.
    """

    attention: str
    norm: str | None
    adapt: object = None
    projection: str | None = None


_WAV2VEC = Place("attention", "layer_norm", _hugging_face)
_BERT = Place(
    "attention.self", "attention.output.LayerNorm", _hugging_face, "attention.output.dense"
)
# By name, so that transformers need not be there; SpeechBrain's attention has the mixers' own call.
LAYERS = {
    "speechbrain.TransformerEncoderLayer": Place("self_att", "norm1"),
    "speechbrain.ConformerEncoderLayer": Place("mha_layer", "norm1"),
    "speechbrain.BranchformerEncoderLayer": Place("mha_layer", "norm_mhsa"),
    "torch.TransformerEncoderLayer": Place("self_attn", None, _torch),
    "transformers.Wav2Vec2EncoderLayer": _WAV2VEC,
    "transformers.Wav2Vec2EncoderLayerStableLayerNorm": _WAV2VEC,
    "transformers.HubertEncoderLayer": _WAV2VEC,
    "transformers.HubertEncoderLayerStableLayerNorm": _WAV2VEC,
    "transformers.WhisperEncoderLayer": Place("self_attn", "self_attn_layer_norm", _hugging_face),
    "transformers.ViTLayer": Place("attention", "layernorm_before", _hugging_face),
    "transformers.BertLayer": _BERT,
    "transformers.RobertaLayer": _BERT,
    "transformers.GPT2Block": Place("attn", "ln_1", _hugging_face),
}


def swap_self_attention(model, make_mixer):
    """Replaces the self-attention of the layers in a model, in place, by new mixers.

    Known are SpeechBrain's Transformer, Conformer and Branchformer encoder layers,
    `torch.nn.TransformerEncoderLayer`, those of Hugging Face's Wav2Vec2, HuBERT and Whisper
    (encoder), ViT, BERT, RoBERTa and GPT-2, and their subclasses; and any other module that itself
    holds one `torch.nn.MultiheadAttention`, as torchvision's ViT has. Layers with two, as decoders
    are, keep both; masks keep their meaning, and what is causal stays so. Such a model of Hugging
    Face has no cache: its ``use_cache`` is False from now on.

    Positions that are added to the input stay; those that SpeechBrain's relative attention gets as
    ``pos_embs`` go to the mixer, and SummaryMixing ignores them: only convolutions then tell order.

    Arguments
    ---------
    model : torch.nn.Module
        Holds layers with self-attention, or is one.
    make_mixer : callable
        Returns a new token mixer at each call: a module called ``mixer(query, key, value,
        attn_mask=, key_padding_mask=, pos_embs=)`` that returns (output, None). It gets the device,
        type and mode of what it replaces.

    Returns
    -------
    int
        Number of layers swapped. Give the new parameters to an optimiser after the swap.

    Raises
    ------
    TypeError, ValueError
        If make_mixer is a module or does not return new ones, no known layer is there, a layer has
        no attention, or widths differ. The model is then unchanged, as after every error.

    Reference: arXiv 2307.07421, which replaces the self-attention of encoders.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 3)
    >>> swap_self_attention(encoder, partial(SummaryMixing, 16))
    3
    >>> encoder(torch.rand(2, 50, 16)).shape
    torch.Size([2, 50, 16])
    """
    check_mixer(make_mixer)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, but must be a torch.nn.Module")
    found = [(layer, place) for layer in model.modules() if (place := _place(layer))]
    if not found:
        raise ValueError(
            f"{type(model).__name__} holds no encoder layer that is known, which are "
            f"{', '.join(LAYERS)} and their subclasses, nor a module with one "
            "torch.nn.MultiheadAttention: pass a model with such layers, or build one around the "
            "mixer, as SummaryMixingASR does"
        )
    swaps = {}
    for layer, place in found:
        attention, norm = _part(layer, place.attention), _part(layer, place.norm)
        if attention is None or (norm is None and place.norm is not None):
            raise ValueError(
                f"{type(layer).__name__} was built without a token mixer in its {place.attention}, "
                "so there is nothing to swap: build the model with attention"
            )
        weights = (*attention.parameters(), *layer.parameters())
        like = next(weight for weight in weights if weight.is_floating_point())
        width = attention.embed_dim if norm is None else next(norm.parameters()).size(-1)
        frame = like.new_zeros(1, 1, width)  # (B, T, D)
        mixer = _new_mixer(make_mixer, frame).train(layer.training)
        adapted = place.adapt(mixer, attention, frame) if place.adapt else mixer
        swaps[mixer] = layer, place, adapted
    if len(swaps) < len(found):
        raise TypeError("make_mixer returned the same module twice: return a new one at each call")
    for layer, place, module in swaps.values():
        config = getattr(_part(layer, place.attention), "config", None)
        if config is not None and getattr(module, "is_causal", False):
            config.use_cache = False  # else every call would ask for keys and values
        layer.set_submodule(place.attention, module)
        if place.projection is not None:
            layer.set_submodule(place.projection, nn.Identity())
    return len(swaps)


def _place(layer):
    """The `Place` of self-attention in a layer, None if it has none that is known."""
    names = [f"{c.__module__.partition('.')[0]}.{c.__qualname__}" for c in type(layer).__mro__]
    known = next((LAYERS[name] for name in names if name in LAYERS), None)
    if known or any(name.startswith(("speechbrain.", "transformers.")) for name in names):
        return known
    kinds = (nn.MultiheadAttention, TorchSelfAttention)
    held = [name for name, part in layer.named_children() if isinstance(part, kinds)]
    if len(held) != 1:
        return None
    widths = {getattr(getattr(layer, held[0]), name) for name in ("embed_dim", "kdim", "vdim")}
    return Place(held[0], None, _torch) if len(widths) == 1 else None


def _part(layer, name):
    """A layer's part by a name with dots, None if it is not there."""
    try:
        return attrgetter(name)(layer) if name else None
    except AttributeError:
        return None


def _new_mixer(make_mixer, frame):
    """A mixer with the width, device and type of a frame (1, 1, D) of its layer."""
    mixer = make_mixer()
    if not isinstance(mixer, nn.Module):
        raise TypeError(f"make_mixer returned {mixer!r}, but must return a new torch.nn.Module")
    for side in ("d_model", "d_out"):
        if getattr(mixer, side, frame.size(-1)) != frame.size(-1):
            raise ValueError(
                f"{side} of the mixer is {getattr(mixer, side)}, but the layer's width is "
                f"{frame.size(-1)}: make mixers with {side}={frame.size(-1)}"
            )
    return mixer.to(device=frame.device, dtype=frame.dtype)
