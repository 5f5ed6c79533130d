"""Random weights with the key names of the published checkpoints."""

import torch


def published(form, generator, width):
    """A state dict of a cell with the published key names."""
    heads, fast = form.get("nhead", 1), form.get("shared_projection", False)
    local = form.get("local_branch", True)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = {}

    def layer(name, width_in, width_out):
        if heads > 1:
            state[f"{name}.weights"] = rand(heads, width_in // heads, width_out // heads)
            state[f"{name}.biases"] = rand(heads, width_out // heads)
        else:
            state[f"{name}.w.weight"] = rand(width_out, width_in)
            state[f"{name}.w.bias"] = rand(width_out)

    if fast:
        layer("global_proj.linear", width, 2 * width)
    else:
        for prefix in ["local_proj", "summary_proj"] if local else ["summary_proj"]:
            layer(f"{prefix}.linear", width, width)
            layer(f"{prefix}.linear_0", width, width)
    if local:
        state["summary_local_merging.linear.w.weight"] = rand(width, 2 * width)
        state["summary_local_merging.linear.w.bias"] = rand(width)
    if form.get("layer_norm", True):
        for norm in ["local_norm", "summary_norm"] if local else ["summary_norm"]:
            state[f"{norm}.norm.weight" if heads > 1 else f"{norm}.weight"] = rand(width)
            state[f"{norm}.norm.bias" if heads > 1 else f"{norm}.bias"] = rand(width)
    return state
