"""Sequences cut into blocks, and what frames around a block look like from it.

B is the batch, H the number of heads, T the number of frames, N the number of blocks, K the number
of chunks and E the width of a head.
"""

from typing import NamedTuple

import torch
from torch.nn import functional


class Blocks(NamedTuple):
    """Frames cut into blocks, each with the same number of blocks around it."""

    size: int
    count: int  # N
    sides: int  # blocks around a block to each side: S = (2 sides + 1) size

    @property
    def before(self):
        """Frames around a block to each side."""
        return self.sides * self.size

    def of(self, x):
        """(B, H, T, …), filled up with zeros, as (B, H, N, size, …)."""
        return _filled(x, self.count, self.size)

    def around(self, x, fill=0):
        """Of what begins ``before`` the first block, (B, H, before + T, …): (B, H, N, S, …)."""
        x = _filled(x, self.count + 2 * self.sides, self.size, fill)
        if self.sides == 0:
            return x
        return torch.cat([x[:, :, i : i + self.count] for i in range(2 * self.sides + 1)], 3)


def in_chunks(x, size):
    """(B, H, T, …), filled up with zeros, as (B, H, K, size, …); None is one chunk of all."""
    return x.unsqueeze(2) if size is None else _filled(x, (x.size(2) + size - 1) // size, size)


def _filled(x, blocks, size, fill=0):
    missing = blocks * size - x.size(2)
    if not isinstance(missing, int) or missing > 0:
        x = functional.pad(x, (0, 0) * (x.dim() - 3) + (0, missing), value=fill)
    return x.unflatten(2, (blocks, size))


def by_head(x, matrices):
    """(B, H, …, E) times (H, E, F): (B, H, …, F), in H products instead of B H."""
    product = x.transpose(0, 1).flatten(1, -2) @ matrices
    return product.unflatten(1, (x.size(0), *x.shape[2:-1])).transpose(0, 1)
