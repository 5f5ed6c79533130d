"""SummaryMixing (arXiv 2307.07421): self-attention replaced by a mean.

B is the batch, T the number of frames, N = B T, H the number of heads, D the input's width, L and S
the widths of the last layers of f (local) and s (summary).
"""

import torch
from torch import nn

from speechbrain_summarymixing.nnet.calls import check_call, check_streaming_window, is_empty
from speechbrain_summarymixing.nnet.grouped_linear import GroupedLinear, join_heads, split_heads
from speechbrain_summarymixing.nnet.published import load_published_state_dict
from speechbrain_summarymixing.nnet.streaming import Stream
from speechbrain_summarymixing.nnet.summaries import (
    RunningSums,
    Window,
    attn_mask_mean,
    decayed_mean,
    empty_sums,
    masked_mean,
    running_chunk_means,
    to_frames,
)

__all__ = ["SummaryMixing", "load_published_state_dict"]


class SummaryMixing(nn.Module):
    """Mixes frames through the mean of their transforms, in O(T).

        s_bar = mean over valid frames of s(x_t)
        h_t = c([f(x_t) ; s_bar])

    Every layer of f, s and c is linear, then the activation. c's product splits in
    W_f f(x_t) + (W_s s_bar + b), whose second term is one vector for each utterance: nothing is
    repeated over time or concatenated. Where the activation is GELU, inference activates in place,
    and training keeps what enters an activation, not what leaves it.

    Arguments
    ---------
    d_model : int
        Width D of the input.
    nhead : int
        Heads H: f and s are block-diagonal with H blocks, c stays dense.
    local_dims, summary_dims : sequence of int or None
        Widths of the layers of f and of s; None is (D, D), or (D,) with shared_projection.
    d_out : int or None
        Width of the output; None is D.
    activation : callable
        Returns the activation module.
    dropout : float
        Probability of zeroing, in training, an input of c, or without f an output.
    layer_norm : bool
        LayerNorm on f(x_t) and on s_bar before c.
    local_branch : bool
        False: no f and no c, h_t = s_bar ("lite"); needs summary_dims[-1] == d_out.
    shared_projection : bool
        f and s are the two halves of one layer ("fast"); one head.
    decay : float or None
        Between 0 and 1, typically 0.995: s_bar is a mean for each frame i, with the weights
        decay^|i-j| for frame j. None: all weights are equal.

    Raises
    ------
    ValueError
        If a width, the dropout or a combination of options cannot be.

    Reference: Parcollet et al., arXiv 2307.07421, sections 2 and 3.

    Example
    -------
    >>> mixer = SummaryMixing(16, nhead=4)
    >>> output, weights = mixer(torch.rand(2, 50, 16))
    >>> output.shape, weights
    (torch.Size([2, 50, 16]), None)
    """

    supports_window = supports_streaming = True

    def __init__(
        self,
        d_model,
        *,
        nhead=1,
        local_dims=None,
        summary_dims=None,
        d_out=None,
        activation=nn.GELU,
        dropout=0.1,
        layer_norm=True,
        local_branch=True,
        shared_projection=False,
        decay=None,
    ):
        super().__init__()
        if decay is not None and not 0.0 < decay < 1.0:
            raise ValueError(
                f"decay is {decay}, but must be above 0 and below 1: None is the uniform mean"
            )
        default = (d_model,) if shared_projection else (d_model, d_model)
        self.d_model = d_model
        self.d_out = d_model if d_out is None else d_out
        self.nhead = nhead
        self.decay = decay
        self.supports_window = self.supports_streaming = decay is None
        self.local_dims = _widths("local_dims", local_dims, default) if local_branch else ()
        self.summary_dims = _widths("summary_dims", summary_dims, default)
        self.merge_width = self.summary_dims[-1]  # of a Branchformer's merge, an MLP in the paper
        self._check(local_dims, local_branch, shared_projection, dropout)

        parts = [dims[0] for dims in (self.local_dims, self.summary_dims) if dims]
        self.first = GroupedLinear(d_model, sum(parts), nhead, parts)
        self.local_layers = _later_layers(self.local_dims, nhead)
        self.summary_layers = _later_layers(self.summary_dims, nhead)
        self.activation = activation()
        self._is_gelu = type(self.activation) is nn.GELU
        width = self.summary_dims[-1]
        self.summary_norm = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        if local_branch:
            self.local_norm = nn.LayerNorm(self.local_dims[-1]) if layer_norm else nn.Identity()
            self.combiner = nn.Linear(self.local_dims[-1] + width, self.d_out)
            nn.init.xavier_normal_(self.combiner.weight)
            nn.init.zeros_(self.combiner.bias)

    def _check(self, local_dims, local_branch, shared_projection, dropout):
        if self.nhead < 1:
            raise ValueError(f"nhead is {self.nhead}, but must be 1 or more")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout is {dropout}, but must be at least 0 and below 1")
        if not local_branch:
            if local_dims is not None or shared_projection:
                raise ValueError(
                    "local_branch is False, so there is no f: leave local_dims at None and "
                    "shared_projection at False"
                )
            if self.summary_dims[-1] != self.d_out:
                raise ValueError(
                    f"without a local branch the output is the summary, but summary_dims[-1] is "
                    f"{self.summary_dims[-1]} and d_out is {self.d_out}: make them equal"
                )
        if shared_projection and (
            self.nhead != 1 or len(self.local_dims) != 1 or self.local_dims != self.summary_dims
        ):
            raise ValueError(
                f"shared_projection takes one head and one layer of equal width for f and s, but "
                f"nhead is {self.nhead}, local_dims {self.local_dims} and summary_dims "
                f"{self.summary_dims}: set both to the same (width,)"
            )

    def forward(
        self,
        query,
        key=None,
        value=None,
        attn_mask=None,
        key_padding_mask=None,
        pos_embs=None,
        window=None,
    ):
        """Mixes a sequence with itself; the call is that of SpeechBrain's attention.

        Arguments
        ---------
        query : torch.Tensor
            (B, T, D).
        key, value : torch.Tensor or None
            None or the query: the mixer has one input.
        attn_mask : torch.Tensor, Window, Stream or None
            (T, T) or (B, T, T): bool, True where frame j is blocked for frame i, or float, where 0
            allows and -inf blocks. It costs O(T²), as in attention; a window, here or as
            ``window``, does not. A stream goes on where its last call ended, as
            `forward_streaming`.
        key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding. What stands there has no influence; its output is zero.
        pos_embs : torch.Tensor or None
            Not used: attention's relative positions have no meaning for a mean.
        window : Window or None
            The frames that each frame sees; None is all.

        Returns
        -------
        output : torch.Tensor
            (B, T, d_out).
        weights : None
            In the place of attention's weights.

        Raises
        ------
        ValueError
            If a shape does not fit, key or value is another tensor, or more than one of attn_mask,
            window and decay is given.
        """
        if isinstance(attn_mask, Stream):
            output, attn_mask.state = self.forward_streaming(
                query, attn_mask.window, attn_mask.state, key_padding_mask
            )
            return output, None
        if window is None and isinstance(attn_mask, Window):
            attn_mask, window = None, attn_mask
        self._check_input(query, key, value, attn_mask, key_padding_mask, window)
        return self._mix(query, attn_mask, key_padding_mask, window)[0], None

    def initial_state(self, window, batch, device=None):
        """Returns the state of a stream's start, zeros, for `forward_streaming`; see `streaming`.

        Arguments
        ---------
        window : Window
            Of the stream.
        batch : int
            Streams B.
        device : torch.device or None
        """
        widths = (self.summary_dims[-1], 1)
        return RunningSums(*(empty_sums(batch, width, window, device) for width in widths))

    def forward_streaming(self, query, window, state=None, key_padding_mask=None):
        """Continues a sequence where the call before ended: equal to `forward` on the whole.

        Arguments
        ---------
        query : torch.Tensor
            (B, T, D), the next frames: whole chunks of the window, but for the end of the sequence.
        window : Window
            The same in every call.
        state : RunningSums or None
            Of the call before; None starts.
        key_padding_mask : torch.Tensor or None
            (B, T), bool, True on padding.

        Returns
        -------
        output : torch.Tensor
            (B, T, d_out).
        state : RunningSums
            For the next call; its size does not grow with time.

        Raises
        ------
        ValueError
            If window is None, a shape does not fit, or the mixer decays.

        Reference: streaming SummaryMixing, arXiv 2409.07165.

        Example
        -------
        >>> mixer = SummaryMixing(16).double().eval()
        >>> x = torch.rand(2, 50, 16, dtype=torch.float64)
        >>> first, state = mixer.forward_streaming(x[:, :32], Window(8))
        >>> second, state = mixer.forward_streaming(x[:, 32:], Window(8), state)
        >>> whole, _ = mixer(x, window=Window(8))
        >>> torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)
        True
        """
        check_streaming_window(window)
        self._check_input(query, None, None, None, key_padding_mask, window)
        if state is None:
            state = self.initial_state(window, query.size(0), query.device)
        return self._mix(query, None, key_padding_mask, window, state)

    def _mix(self, query, attn_mask, key_padding_mask, window, state=None):
        """The output (B, T, d_out), and the running sums of a window."""
        if is_empty(query):
            return query[..., :1].expand(-1, -1, self.d_out), state
        batch, frames, _ = query.shape
        padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(-1)
        x = query if padding is None else query.masked_fill(padding, 0.0)

        x = split_heads(x.reshape(batch * frames, self.d_model), self.nhead)
        *local, summary = self.first.by_part(x)
        summary = self._activate(self._products(summary, self.summary_layers))
        summary = summary.unflatten(1, (batch, frames))
        means, state = self._means(summary, attn_mask, key_padding_mask, window, state)
        summary = self.summary_norm(means)

        if self.local_dims:
            local = self._activate(join_heads(self._products(*local, self.local_layers)))
            local = self.local_norm(local).unflatten(0, (batch, frames))
            output = self._combine(local, summary, window)
        else:
            output = summary if window is None else to_frames(summary, window, frames)
            output = self.dropout(output.expand(batch, frames, self.d_out))
        return (output if padding is None else output.masked_fill(padding, 0.0)), state

    def _products(self, x, layers):
        """The last layer's product from the first one's, (H, N, width), which it may overwrite."""
        for layer in layers:
            if self._is_gelu and torch.is_grad_enabled() and not torch.compiler.is_compiling():
                x = layer.of_gelu(x, self.activation.approximate)
            else:
                x = layer(self._activate(x))
        return x

    def _activate(self, product):
        """The activation, in the memory of a product that no gradient needs."""
        if self._is_gelu and not torch.is_grad_enabled():
            return torch.ops.aten.gelu_(product, approximate=self.activation.approximate)
        return self.activation(product)

    def _means(self, summary, attn_mask, key_padding_mask, window, state):
        """s_bar (B, M, S) of s(x_t) (H, B, T, S / H), and the running sums of a window.

        M is 1, the frames T or the chunks of the window.
        """
        if window is None and attn_mask is None and self.decay is None:
            return join_heads(masked_mean(summary, key_padding_mask)).unsqueeze(1), None
        summary = join_heads(summary.flatten(1, 2)).unflatten(0, summary.shape[1:3])
        if window is not None:
            return running_chunk_means(summary, window, state, key_padding_mask)
        if attn_mask is not None:
            return attn_mask_mean(summary, attn_mask, key_padding_mask), None
        return decayed_mean(summary, self.decay, key_padding_mask), None

    def _combine(self, local, summary, window):
        """c([local ; summary]) of (B, T, L) and (B, M, S), without the concatenation."""
        if type(self.combiner) is not nn.Linear:  # an adapter or a quantised layer in its place
            if window is not None:
                summary = to_frames(summary, window, local.size(1))
            both = torch.cat([local, summary.expand(-1, local.size(1), -1)], 2)
            return self._activate(self.combiner(self.dropout(both)))
        weight_local, weight_summary = self.combiner.weight.split(
            [self.local_dims[-1], self.summary_dims[-1]], dim=1
        )
        shared = nn.functional.linear(self.dropout(summary), weight_summary, self.combiner.bias)
        if window is not None:
            shared = to_frames(shared, window, local.size(1))
        return self._activate(nn.functional.linear(self.dropout(local), weight_local).add_(shared))

    def _check_input(self, query, key, value, attn_mask, key_padding_mask, window):
        check_call(self, query, key, value, attn_mask, key_padding_mask, window)
        if self.decay is not None and (window is not None or attn_mask is not None):
            what = "attn_mask" if window is None else f"window {window}"
            raise ValueError(
                f"{what} is given, but decay is {self.decay}, and a decayed mean always sees the "
                "whole utterance: pass None, or build the mixer with decay=None"
            )


def _widths(name, dims, default):
    dims = tuple(default if dims is None else dims)
    if not dims or any(width < 1 for width in dims):
        raise ValueError(f"{name} is {dims}, but must be one or more widths of at least 1")
    return dims


def _later_layers(dims, nhead):
    return nn.ModuleList(
        GroupedLinear(width, following, nhead) for width, following in zip(dims, dims[1:])
    )
