"""States of growing sequences: what a module keeps from one call to the next.

A state is a tensor (B, …), or a tuple or list of states. Each row belongs to one stream, its size
does not depend on how much has been seen, and at the start of a stream all of it is zero. So
streams of a batch begin and end apart, and a graph can take states in and hand them out. Of beam
search alone it grows, with tokens that are not final, by zeros at the end of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves, tree_map

from speechbrain_summarymixing.nnet.summaries import Window


@dataclass
class Stream:
    """A window and what is kept of the frames before: a mixer's place in a growing sequence.

    Arguments
    ---------
    window : Window
        The frames that each frame sees.
    state : tensors or None
        Of the frames before; None at the start. A mixer replaces it at each call.
    """

    window: Window
    state: Any = None


def reset_rows(state, rows):
    """Returns a state in which some streams begin anew.

    Arguments
    ---------
    state : tensors (B, …)
    rows : torch.Tensor
        (B,), bool, True where a stream begins anew.

    Example
    -------
    >>> import torch
    >>> reset_rows((torch.ones(2, 3),), torch.tensor([True, False]))
    (tensor([[0., 0., 0.],
            [1., 1., 1.]]),)
    """
    return tree_map(lambda x: x.masked_fill(rows.view(-1, *[1] * (x.dim() - 1)), 0), state)


def take_rows(state, index):
    """Returns the state of some streams, in the order of ``index`` (N,)."""
    return tree_map(lambda x: x[index], state)


def put_rows(state, index, new):
    """Returns a state (B, …) whose rows ``index`` (N,) are those of another (N, …)."""
    return tree_map(lambda x, y: x.index_copy(0, index, y), *_equally_large(state, new))


def join_rows(state, more):
    """Returns the state of the streams of two states (B, …) and (N, …)."""
    return tree_map(lambda x, y: torch.cat([x, y]), *_equally_large(state, more))


def _equally_large(*states):
    """States that are zero-padded where they differ in size, but for the rows."""

    def fitted(x, *others):
        sizes = map(max, zip(*(y.shape[1:] for y in others)))
        missing = [size - own for size, own in zip(sizes, x.shape[1:])]
        return pad(x, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else x

    return [tree_map(fitted, state, *states) for state in states]


def state_bytes(state):
    """Returns the size of a state in bytes."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(state))
