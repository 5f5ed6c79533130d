"""Token mixers of a model, seen and changed while it runs on one utterance.

H is the number of heads and T the number of frames.
"""

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import nn

# torch's own, since the probe stands in their places
SOFTMAX, ATTEND = torch.softmax, nn.functional.scaled_dot_product_attention
PRODUCTS = (torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm)
PRODUCTS += (torch.Tensor.__matmul__,)


class Change(NamedTuple):
    """What is other than in the model."""

    name: str  # of a part's `changes`
    layer: int | None = None  # from 0 on; None: all that have such a change
    head: int | None = None  # from 0 on; None: all


class Part:
    """A token mixer of a model; subclasses say what is seen in it and what can be changed.

    Arguments
    ---------
    name : str
        Of the module in the model.
    module : torch.nn.Module
    probe : Probe
    """

    changes = ()  # names
    heads = 1  # known once it has run
    layer = None  # from 0 on, in the order of their running

    def __init__(self, name, module, probe):
        self.name, self.module, self.probe = name, module, probe

    @staticmethod
    def matches(module):
        """Whether a module is such a part."""
        raise NotImplementedError

    def hooks(self):
        """Yields handles of hooks, which are removed in the end."""
        return ()

    def softmax(self, scores, dtype):
        """Returns the softmax of what the module gives to it, perhaps changed."""
        return SOFTMAX(scores, -1, dtype=dtype)

    def see_values(self, values):
        """Is told what the softmax is multiplied with."""

    def wanted(self):
        """Yields (place in the batch, slice of heads, name) of each change of this part."""
        for place, change in enumerate(self.probe.changes):
            if change.layer in (None, self.layer) and change.name in self.changes:
                head = change.head
                yield place, slice(None) if head is None else slice(head, head + 1), change.name


class Probe:
    """Stands, as a context, in the place of the softmax within a model's token mixers.

    While nothing is changed the model's output is its own.

    Arguments
    ---------
    model : torch.nn.Module
        In evaluation mode.
    kinds : sequence of type
        Subclasses of `Part`, of which a module is the first that matches.

    Example
    -------
    >>> from speechbrain_summarymixing.analysis.attention_rows import AttentionRows
    >>> attention, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.rand(1, 5, 8)
    >>> with torch.no_grad(), Probe(attention, [AttentionRows]) as probe, probe.recording():
    ...     output, _ = attention(x, x, x)
    >>> probe.parts[0].rows.shape
    torch.Size([2, 5, 5])
    """

    def __init__(self, model, kinds):
        self.parts = []  # those that have run, once one utterance was heard
        for name, module in model.named_modules():
            kind = next((kind for kind in kinds if kind.matches(module)), None)
            if kind is not None:
                self.parts.append(kind(name, module, self))
        self.changes, self.copies, self.is_recording = (), 1, False
        self._inside, self._ran, self._stack = [], {}, ExitStack()

    def __enter__(self):
        with ExitStack() as stack:
            for part in self.parts:
                handles = [
                    *part.hooks(),
                    part.module.register_forward_pre_hook(partial(self._enter, part)),
                    part.module.register_forward_hook(self._leave),
                ]
                for handle in handles:
                    stack.callback(handle.remove)
            functional = nn.functional
            stack.enter_context(patch.object(functional, "softmax", self._softmax))
            stack.enter_context(patch.object(torch, "softmax", self._softmax))
            method = _method(self._softmax)
            stack.enter_context(patch.object(torch.Tensor, "softmax", method))
            stack.enter_context(
                patch.object(functional, "scaled_dot_product_attention", self._attend)
            )
            mha = torch.backends.mha  # torch's fast path calls no module
            stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
            mha.set_fastpath_enabled(False)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self._stack.close()

    @contextmanager
    def recording(self):
        """Within it, parts keep what they see of the one utterance that the model hears."""
        self.changes, self.copies, self.is_recording = (), 1, True
        self._inside.clear()
        self._ran.clear()
        try:
            yield
        finally:
            self.is_recording = False
        self.parts = list(self._ran)  # in the order of their running
        for layer, part in enumerate(self.parts):
            part.layer = layer

    @contextmanager
    def changing(self, changes):
        """Within it, of a batch of one utterance's copies each has its change."""
        self.changes, self.copies = changes, len(changes)
        self._inside.clear()
        try:
            yield
        finally:
            self.changes, self.copies = (), 1

    def ran(self, part):
        """Is told of a part that has run."""
        self._ran[part] = True

    def _enter(self, part, module, inputs):
        self._inside.append(part)

    def _leave(self, module, inputs, output):
        self._inside.pop()

    def _softmax(self, scores, dim=None, *others, dtype=None, **_):
        dtype = next((other for other in others if isinstance(other, torch.dtype)), dtype)
        if not self._inside or scores.dim() < 3 or dim not in (-1, scores.dim() - 1):
            return SOFTMAX(scores, dim, dtype=dtype)
        part = self._inside[-1]
        weights = part.softmax(scores, dtype)
        return weights.as_subclass(_seeing(part.see_values)) if self.is_recording else weights

    def _attend(
        self,
        query,
        key,
        value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ):
        """Torch's `scaled_dot_product_attention` by its equations, through the softmax above."""
        if not self._inside:
            options = {"scale": scale, "enable_gqa": enable_gqa}
            return ATTEND(query, key, value, attn_mask, dropout_p, is_causal, **options)
        if enable_gqa:
            groups = query.size(-3) // key.size(-3)
            key, value = (x.repeat_interleave(groups, -3) for x in (key, value))
        scale = query.size(-1) ** -0.5 if scale is None else scale
        scores = (query * scale) @ key.mT
        if is_causal:
            attn_mask = torch.ones_like(scores, dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(attn_mask.logical_not(), -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return self._softmax(scores, -1).to(value.dtype) @ value


def _method(function):
    """A function as a method of tensors."""

    def method(tensor, *arguments, **options):
        return function(tensor, *arguments, **options)

    return method


def _seeing(see):
    """A class of tensors that tells what they, or what is made of them, are multiplied with."""

    class Weights(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, arguments=(), options=None):
            result = super().__torch_function__(function, types, arguments, options or {})
            if function in PRODUCTS and isinstance(arguments[0], cls):
                see(arguments[1])
                return result.as_subclass(torch.Tensor)
            return result

    return Weights
