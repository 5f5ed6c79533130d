"""Self-attention of an existing encoder replaced, in place, by token mixers.

B is the batch, T the number of frames, D the model's width.
"""

import torch
from torch import nn

from speechbrain_summarymixing.lobes.mixers import check_mixer


class TorchSelfAttention(nn.Module):
    """A token mixer with the call of `torch.nn.MultiheadAttention`, out of torch's fast path.

    Arguments
    ---------
    mixer : torch.nn.Module
        Called as SpeechBrain's attention.
    batch_first : bool
        The input is (B, T, D), and not (T, B, D).
    """

    class _NoWeight:  # torch's fast path leaves alone what overrides torch's functions
        weight = bias = __torch_function__ = None

    in_proj_bias = None  # the fast path of a layer ends here, that of an encoder at a _NoWeight
    in_proj_weight = out_proj = _NoWeight()
    _qkv_same_embed_dim = False  # asked when an encoder is built of a swapped layer

    def __init__(self, mixer, *, batch_first):
        super().__init__()
        self.mixer = mixer
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
        ``attn_mask`` (T, T). ``is_causal`` only says what attn_mask is.
        """
        if query.is_nested:
            raise ValueError(
                "query is a nested tensor, which torch's encoder makes where its first layer still "
                "has attention: swap the whole encoder, or set its use_nested_tensor to False"
            )
        if key is not query or value is not query:
            raise ValueError(
                "key or value is another tensor than query, but a mixer mixes one sequence with "
                "itself: keep attention in this layer"
            )
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is True, but attn_mask is None: pass the causal mask too")
        if key_padding_mask is not None:
            key_padding_mask = torch.atleast_2d(key_padding_mask) != 0
        batch_dim = 0 if self.batch_first else 1
        x = query if query.dim() == 3 else query.unsqueeze(batch_dim)
        x = x.transpose(0, batch_dim)  # (B, T, D)
        output, _ = self.mixer(x, x, x, attn_mask=attn_mask, key_padding_mask=key_padding_mask)
        output = output.transpose(0, batch_dim)
        return (output if query.dim() == 3 else output.squeeze(batch_dim)), None


class HuggingFaceSelfAttention(nn.Module):
    """A token mixer with the call of the attention of Hugging Face's speech encoders.

    Arguments
    ---------
    mixer : torch.nn.Module
        Called as SpeechBrain's attention.
    num_outputs : int
        Values that the attention returns: 2 or 3, by the version of transformers.
    """

    def __init__(self, mixer, *, num_outputs):
        super().__init__()
        self.mixer = mixer
        self.num_outputs = num_outputs

    def forward(
        self,
        hidden_states,
        *,
        attention_mask=None,
        layer_head_mask=None,
        key_value_states=None,
        **_,
    ):
        """Returns the output (B, T, D) of ``hidden_states`` and None for each other value.

        ``attention_mask`` is one of padding, as these encoders make it: (B, T), 0 on padding; or
        (B, 1, T or 1, T) with equal rows, bool, False on padding, or float, where 0 is valid.
        What else the encoders pass through to attention's kernels has no effect.
        """
        if layer_head_mask is not None or key_value_states is not None:
            raise ValueError(
                "layer_head_mask or key_value_states is given, but a mixer has no heads to mask "
                "and mixes one sequence with itself: leave both at None"
            )
        x = hidden_states
        padding = None if attention_mask is None else _padding(attention_mask)
        return self.mixer(x, x, x, key_padding_mask=padding)[0], *[None] * (self.num_outputs - 1)


def _padding(attention_mask):
    """(B, T), True on padding, of a mask of a Hugging Face encoder."""
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
    padding = blocked[:, 0]
    if blocked.device.type in ("cpu", "cuda"):  # elsewhere the check would wait for the host
        torch._assert_async(
            (blocked == padding.unsqueeze(1)).all(),
            "attention_mask blocks other frames for some frames than for others, but a swapped "
            "Hugging Face layer takes padding only: swap a torch or SpeechBrain encoder instead",
        )
    return padding


def _torch(mixer, attention, frame):
    return TorchSelfAttention(mixer, batch_first=attention.batch_first)


@torch.no_grad()
def _hugging_face(mixer, attention, frame):
    return HuggingFaceSelfAttention(mixer, num_outputs=len(attention.forward(frame)))


# Of each layer, by name so that transformers need not be there: its attention's name, that of a
# norm (for the width) and the adapter; SpeechBrain's attention has the mixers' own call.
LAYERS = {
    "speechbrain.TransformerEncoderLayer": ("self_att", "norm1", None),
    "speechbrain.ConformerEncoderLayer": ("mha_layer", "norm1", None),
    "speechbrain.BranchformerEncoderLayer": ("mha_layer", "norm_mhsa", None),
    "torch.TransformerEncoderLayer": ("self_attn", "norm1", _torch),
    "transformers.Wav2Vec2EncoderLayer": ("attention", "layer_norm", _hugging_face),
    "transformers.Wav2Vec2EncoderLayerStableLayerNorm": ("attention", "layer_norm", _hugging_face),
    "transformers.HubertEncoderLayer": ("attention", "layer_norm", _hugging_face),
    "transformers.HubertEncoderLayerStableLayerNorm": ("attention", "layer_norm", _hugging_face),
    "transformers.WhisperEncoderLayer": ("self_attn", "self_attn_layer_norm", _hugging_face),
}


def swap_self_attention(model, make_mixer):
    """Replaces the self-attention of the encoder layers in a model, in place, by new mixers.

    Known are SpeechBrain's Transformer, Conformer and Branchformer encoder layers,
    `torch.nn.TransformerEncoderLayer`, those of Hugging Face's Wav2Vec2, HuBERT and Whisper, and
    their subclasses. Decoder layers keep their attention; masks keep their meaning. Positions that
    are added to the encoder's input stay; those that SpeechBrain's relative attention gets as
    ``pos_embs`` go to the mixer, and SummaryMixing ignores them: only convolutions then tell order.

    Arguments
    ---------
    model : torch.nn.Module
        Holds encoder layers, or is one.
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
    found = [(layer, *known) for layer in model.modules() if (known := _known(layer))]
    if not found:
        raise ValueError(
            f"{type(model).__name__} holds no encoder layer that is known, which are "
            f"{', '.join(LAYERS)} and their subclasses: pass a model with such layers, or build "
            "one around the mixer, as SummaryMixingASR does"
        )
    swaps = {}
    for layer, name, norm, adapt in found:
        attention = getattr(layer, name, None)
        if attention is None or getattr(layer, norm, None) is None:
            raise ValueError(
                f"{type(layer).__name__} was built without a token mixer in its {name}, so there "
                "is nothing to swap: build the model with attention"
            )
        weights = (*attention.parameters(), *layer.parameters())
        like = next(weight for weight in weights if weight.is_floating_point())
        frame = like.new_zeros(1, 1, next(getattr(layer, norm).parameters()).size(-1))  # (B, T, D)
        mixer = _new_mixer(make_mixer, frame).train(layer.training)
        swaps[mixer] = layer, name, adapt(mixer, attention, frame) if adapt else mixer
    if len(swaps) < len(found):
        raise TypeError("make_mixer returned the same module twice: return a new one at each call")
    for layer, name, module in swaps.values():
        setattr(layer, name, module)
    return len(swaps)


def _known(layer):
    names = (f"{c.__module__.partition('.')[0]}.{c.__qualname__}" for c in type(layer).__mro__)
    return next((LAYERS[name] for name in names if name in LAYERS), None)


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
