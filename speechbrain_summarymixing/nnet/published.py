"""Weights with the key names of the published checkpoints."""

import torch
from torch import nn


def load_published_state_dict(cell, state_dict):
    """Loads weights with the key names of the published checkpoints into a cell.

    Arguments
    ---------
    cell : SummaryMixing
        Built with the widths, heads and norms of the checkpoint.
    state_dict : dict
        As for `published_weights`.

    Raises
    ------
    ValueError
        If keys are missing or left over, or a shape does not fit; the cell is then unchanged.
    """
    cell.load_state_dict(published_weights(cell, state_dict))


def published_weights(cell, state_dict):
    """Returns published weights by the names of a cell, which stays as it is.

    Arguments
    ---------
    cell : SummaryMixing
    state_dict : dict
        Tensors of one cell: ``local_proj.*``, ``summary_proj.*``, ``summary_local_merging.*``, or
        ``global_proj.*`` for the fast form, and ``local_norm.*``, ``summary_norm.*`` where the
        checkpoint has them.

    Raises
    ------
    ValueError
        If keys are missing or left over, or a shape does not fit.
    """
    left = dict(state_dict)

    def take(*names):
        for name in names:
            if name in left:
                return left.pop(name)
        raise ValueError(
            f"{names[0]} is not in the state dict, which holds {', '.join(state_dict)}: "
            "build the cell with the checkpoint's form, widths and norms"
        )

    def take_layer(prefix, index):
        """Weights (H, in / H, out / H) and biases (H, out / H) of a layer of f or s."""
        name = f"{prefix}.linear" if index == 0 else f"{prefix}.linear_{index - 1}"
        if cell.nhead > 1:
            return take(f"{name}.weights"), take(f"{name}.biases")
        return take(f"{name}.w.weight").T.unsqueeze(0), take(f"{name}.w.bias").unsqueeze(0)

    loaded = {}
    shared = bool(cell.local_dims) and len(cell.local_dims) == len(cell.summary_dims) == 1
    if shared and any(name.startswith("global_proj") for name in left):
        firsts = [take_layer("global_proj", 0)]
    else:
        branches = [("local_proj", cell.local_dims), ("summary_proj", cell.summary_dims)]
        firsts = [take_layer(prefix, 0) for prefix, dims in branches if dims]
        for branch, (prefix, dims) in zip(("local_layers", "summary_layers"), branches):
            for index in range(1, len(dims)):
                weights, biases = take_layer(prefix, index)
                loaded[f"{branch}.{index - 1}.weights"] = weights
                loaded[f"{branch}.{index - 1}.biases"] = biases
    loaded["first.weights"] = torch.cat([weights for weights, _ in firsts], dim=-1)
    loaded["first.biases"] = torch.cat([biases for _, biases in firsts], dim=-1)
    if cell.local_dims:
        for kind in ("weight", "bias"):
            loaded[f"combiner.{kind}"] = take(f"summary_local_merging.linear.w.{kind}")
    for norm in ("local_norm", "summary_norm"):
        if isinstance(getattr(cell, norm, None), nn.LayerNorm):
            for kind in ("weight", "bias"):
                loaded[f"{norm}.{kind}"] = take(f"{norm}.{kind}", f"{norm}.norm.{kind}")

    expected = cell.state_dict()
    wrong = [
        f"{name} is {tuple(value.shape)}, but this cell's is {tuple(expected[name].shape)}"
        for name, value in loaded.items()
        if value.shape != expected[name].shape
    ]
    if wrong or left:
        extra = [f"{', '.join(left)} left over"] if left else []
        raise ValueError(
            f"the state dict does not fit this cell: {'; '.join(wrong + extra)}: "
            "build the cell with the checkpoint's form, widths and norms"
        )
    return loaded
