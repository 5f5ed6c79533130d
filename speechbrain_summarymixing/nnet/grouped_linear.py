"""Block-diagonal linear layer: one weight for each head."""

import math

import torch
from torch import nn
from torch.nn import functional


class GroupedLinear(nn.Module):
    """Projects each of H equal groups of features by a weight of its own.

    Works on features split by head, (H, N, features / H), so that layers chain without copies:
    `split_heads` makes that a view, `join_heads` undoes it.

    Arguments
    ---------
    in_features, out_features : int
        Widths over all heads.
    heads : int
        Number of groups H.
    parts : sequence of int or None
        Widths, over all heads, of layers that share this input: each head's output is their
        concatenation, and each is initialised as if alone. Their sum is out_features; None is a
        single part.

    Raises
    ------
    ValueError
        If heads does not divide a width.

    Reference: multi-head SummaryMixing, arXiv 2307.07421.

    Example
    -------
    >>> layer = GroupedLinear(8, 12, heads=4)
    >>> join_heads(layer(split_heads(torch.rand(5, 8), 4))).shape
    torch.Size([5, 12])
    """

    def __init__(self, in_features, out_features, heads=1, parts=None):
        super().__init__()
        self.parts = tuple(parts or (out_features,))
        for width in (in_features, *self.parts):
            if width % heads != 0:
                raise ValueError(
                    f"width {width} is not divisible by {heads} heads: every layer's width must be"
                )
        self.heads = heads
        self.weights = nn.Parameter(torch.empty(heads, in_features // heads, out_features // heads))
        self.biases = nn.Parameter(torch.zeros(heads, out_features // heads))
        self.reset_parameters()

    def reset_parameters(self):
        """Xavier-normal weights with the fans of one head, zero biases."""
        fan_in = self.weights.size(1)
        with torch.no_grad():
            widths = [width // self.heads for width in self.parts]
            for weight, fan_out in zip(self.weights.split(widths, dim=2), widths):
                weight.normal_(0.0, math.sqrt(2.0 / (fan_in + fan_out)))
            self.biases.zero_()

    def forward(self, x):
        """Returns (H, N, out_features / H) of ``x`` (H, N, in_features / H)."""
        return _by_head(_linear, x, self.weights, self.biases)

    def by_part(self, x):
        """As ``forward(x)``, but a list of its parts: contiguous, for products that follow."""
        widths = [width // self.heads for width in self.parts]
        parts = zip(self.weights.split(widths, dim=2), self.biases.split(widths, dim=1))
        return [_by_head(_linear, x, weights, biases) for weights, biases in parts]

    def of_gelu(self, x, approximate="none"):
        """As ``forward(gelu(x))``, but backward keeps x alone and computes gelu(x) again."""
        return _by_head(_LinearOfGelu.apply, x, self.weights, self.biases, approximate)


def _by_head(function, x, weights, biases, *options):
    """A function of (H, N, in), (H, in, out) and (H, 1, out), or without the H where it is 1."""
    if weights.size(0) == 1:  # a product of matrices is faster than a batch of one
        return function(x.squeeze(0), weights.squeeze(0), biases, *options).unsqueeze(0)
    return function(x, weights, biases.unsqueeze(1), *options)


def _linear(x, weights, biases):
    return (torch.addmm if x.dim() == 2 else torch.baddbmm)(biases, x, weights)


class _LinearOfGelu(torch.autograd.Function):
    generate_vmap_rule = True  # for torch.func: gradients of each utterance

    @staticmethod
    def forward(x, weights, biases, approximate):
        return _linear(functional.gelu(x, approximate=approximate), weights, biases)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weights, _, ctx.approximate = inputs
        ctx.save_for_backward(x, weights)

    @staticmethod
    def backward(ctx, grad):
        x, weights = ctx.saved_tensors
        by_weights = functional.gelu(x, approximate=ctx.approximate).mT @ grad
        by_gelu = grad @ weights.to(grad.dtype).mT  # autocast gives a product of a narrower type
        by_x = torch.ops.aten.gelu_backward(by_gelu, x, approximate=ctx.approximate)
        return by_x, by_weights, grad.sum(-2, keepdim=True), None


def split_heads(x, heads):
    """Views features (N, D) as (H, N, D / H)."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)


def join_heads(x):
    """Features (N, D) of (H, N, D / H); a copy where H > 1."""
    return x.transpose(0, 1).flatten(1)
