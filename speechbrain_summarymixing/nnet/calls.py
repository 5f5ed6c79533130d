"""What the calls of token mixers have in common: attention's signature, checked."""

import torch

from speechbrain_summarymixing.nnet.summaries import Window


def is_empty(query):
    """Whether there is no frame to mix; a graph that is compiled or exported has one or more."""
    return not torch.compiler.is_compiling() and query.numel() == 0


def check_call(mixer, query, key, value, attn_mask, key_padding_mask, window):
    """Raises ValueError unless a mixer of one sequence can be called so.

    Arguments
    ---------
    mixer : torch.nn.Module
        With ``d_model``, the width D that it takes.
    query : torch.Tensor
        (B, T, D).
    key, value : torch.Tensor or None
        None or the query.
    attn_mask : torch.Tensor or None
        (T, T) or (B, T, T).
    key_padding_mask : torch.Tensor or None
        (B, T).
    window : Window or None
        Not together with attn_mask.
    """
    if query.dim() != 3 or query.size(2) != mixer.d_model:
        raise ValueError(
            f"query has shape {tuple(query.shape)}, but must be (batch, time, {mixer.d_model})"
        )
    for name, other in (("key", key), ("value", value)):
        if other is not None and other is not query:
            raise ValueError(
                f"{name} is another tensor than query, but {type(mixer).__name__} mixes one "
                "sequence with itself: pass the same tensor or None, and keep attention where a "
                "decoder looks at its encoder"
            )
    batch, frames, _ = query.shape
    if key_padding_mask is not None and key_padding_mask.shape != (batch, frames):
        raise ValueError(
            f"key_padding_mask has shape {tuple(key_padding_mask.shape)}, but must be "
            f"(batch, time), here {(batch, frames)}"
        )
    if window is not None and attn_mask is not None:
        raise ValueError(
            f"window is {window} and attn_mask is given too, but each says alone what a frame "
            "sees: pass one of them"
        )
    if attn_mask is not None and attn_mask.shape not in (
        (frames, frames),
        (batch, frames, frames),
    ):
        raise ValueError(
            f"attn_mask has shape {tuple(attn_mask.shape)}, but must be {(frames, frames)} or "
            f"{(batch, frames, frames)}: one mask for all heads"
        )
    if window is not None and not isinstance(window, Window):
        raise ValueError(
            f"window is {window!r}, but must be a Window, as Window(chunk_frames=16), or None: "
            "pass a tensor as attn_mask"
        )


def check_streaming_window(window):
    """Raises ValueError where a stream has no window."""
    if window is None:
        raise ValueError(
            "window is None, but a stream never shows the whole: pass a Window, such as CAUSAL"
        )
