"""The equations as plain loops: the oracle of the tests, nothing else (arXiv 2307.07421)."""

import math

import torch


def summary_mixing(cell, x, key_padding_mask=None, attn_mask=None, window=None):
    """SummaryMixing, frame by frame.

    Arguments
    ---------
    cell : SummaryMixing
        Its weights are read, its code is not used.
    x : torch.Tensor
        (B, T, D).
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding.
    attn_mask : torch.Tensor or None
        (T, T) or (B, T, T), bool (True blocks) or float (-inf blocks).
    window : Window or None
        The frames that each frame sees.

    Returns
    -------
    torch.Tensor
        (B, T, d_out).
    """
    batch, frames, _ = x.shape
    outputs = []
    for b in range(batch):
        valid = [t for t in range(frames) if key_padding_mask is None or not key_padding_mask[b, t]]
        summaries = {t: transform(cell, x[b, t], "summary") for t in valid}
        for t in range(frames):
            if t not in valid:
                outputs.append(torch.zeros(cell.d_out, dtype=x.dtype))
                continue
            seen = {
                j: summaries[j]
                for j in valid
                if not blocked(attn_mask, b, t, j) and not outside(window, t, j)
            }
            s_bar = mean(seen, t, cell.decay, torch.zeros(cell.summary_dims[-1], dtype=x.dtype))
            s_bar = layer_norm(cell.summary_norm, s_bar)
            if not cell.local_dims:
                outputs.append(s_bar)
                continue
            f = layer_norm(cell.local_norm, transform(cell, x[b, t], "local"))
            outputs.append(gelu(cell.combiner.weight @ torch.cat([f, s_bar]) + cell.combiner.bias))
    return torch.stack(outputs).view(batch, frames, cell.d_out)


def mean(seen, t, decay, zero):
    """Mean of the vectors seen, {j: (S,)}, by frame t; zero where there is none."""
    total, weights = zero, 0.0
    for j, vector in seen.items():
        weight = 1.0 if decay is None else decay ** abs(t - j)
        total, weights = total + weight * vector, weights + weight
    return total / weights if seen else zero


def outside(window, t, j):
    """Whether the window of frame t leaves frame j out."""
    if window is None:
        return False
    chunks_behind = t // window.chunk_frames - j // window.chunk_frames
    too_far = window.left_chunks is not None and chunks_behind > window.left_chunks
    return chunks_behind < 0 or too_far


def transform(cell, frame, branch):
    """f (branch "local") or s (branch "summary") of one frame (D,), head by head."""
    dims = cell.local_dims if branch == "local" else cell.summary_dims
    local_width = cell.local_dims[0] // cell.nhead if cell.local_dims else 0
    columns = slice(0, local_width) if branch == "local" else slice(local_width, None)
    layers = [(cell.first.weights[..., columns], cell.first.biases[..., columns])]
    later = cell.local_layers if branch == "local" else cell.summary_layers
    layers += [(layer.weights, layer.biases) for layer in later]
    assert len(layers) == len(dims)
    for weights, biases in layers:
        width = frame.numel() // cell.nhead
        heads = [
            frame[h * width : (h + 1) * width] @ weights[h] + biases[h] for h in range(cell.nhead)
        ]
        frame = gelu(torch.cat(heads))
    return frame


def blocked(attn_mask, b, t, j):
    """Whether frame t may not see frame j."""
    if attn_mask is None:
        return False
    entry = attn_mask[t, j] if attn_mask.dim() == 2 else attn_mask[b, t, j]
    return bool(entry) if attn_mask.dtype == torch.bool else entry.item() == -math.inf


def gelu(x):
    """x Phi(x), with the exact normal distribution."""
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def layer_norm(norm, x):
    """LayerNorm of a vector; the identity where the cell has none."""
    if isinstance(norm, torch.nn.Identity):
        return x
    centred = x - x.sum() / x.numel()
    variance = (centred * centred).sum() / x.numel()
    return centred / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias


def fastformer(mixer, x, key_padding_mask=None):
    """Fastformer of an utterance, frame by frame and head by head (arXiv 2108.09084).

    Arguments
    ---------
    mixer : Fastformer
        Its weights are read, its code is not used.
    x : torch.Tensor
        (B, T, D).
    key_padding_mask : torch.Tensor or None
        (B, T), True on padding.

    Returns
    -------
    torch.Tensor
        (B, T, D).
    """
    width = x.size(2) // mixer.nhead
    output = torch.zeros_like(x)
    for b in range(x.size(0)):
        valid = [
            t for t in range(x.size(1)) if key_padding_mask is None or not key_padding_mask[b, t]
        ]
        queries, keys = {}, {}
        for t in valid:
            both = mixer.projection.weight @ x[b, t] + mixer.projection.bias
            queries[t], keys[t] = both.chunk(2)
        if not valid:
            continue
        query = additive_attention(mixer.query_score, queries, width)
        products = {t: query * keys[t] for t in valid}
        key = additive_attention(mixer.key_score, products, width)
        for t in valid:
            output[b, t] = mixer.transform.weight @ (key * queries[t]) + mixer.transform.bias
            output[b, t] = output[b, t] + queries[t]
    return output


def additive_attention(score, vectors, width):
    """Weighted mean (D,) of vectors {t: (D,)}, each head by its own scores."""
    heads = []
    for h, (weight, bias) in enumerate(zip(score.weight, score.bias)):
        scores = {t: torch.exp((weight @ v + bias) / math.sqrt(width)) for t, v in vectors.items()}
        total = sum(scores.values())
        part = slice(h * width, (h + 1) * width)
        heads.append(sum(scores[t] / total * v[part] for t, v in vectors.items()))
    return torch.cat(heads)


def selective_summary_mixing(mixer, x, key_padding_mask=None, attn_mask=None, window=None):
    """SelectiveSummaryMixing, frame by frame and head by head.

    Arguments
    ---------
    mixer : SelectiveSummaryMixing
        Its weights are read, its code is not used.
    x, key_padding_mask, attn_mask, window
        As in `summary_mixing`.

    Returns
    -------
    torch.Tensor
        (B, T, D).
    """
    batch, frames, width = x.shape
    size = width // mixer.nhead
    outputs = []
    for b in range(batch):
        valid = [t for t in range(frames) if key_padding_mask is None or not key_padding_mask[b, t]]
        projected = {t: (mixer.projection.weight @ x[b, t]).split(width) for t in valid}
        for t in range(frames):
            if t not in valid:
                outputs.append(torch.zeros(width, dtype=x.dtype))
                continue
            seen = [
                j for j in valid if not blocked(attn_mask, b, t, j) and not outside(window, t, j)
            ]
            heads = []
            for h in range(mixer.nhead):
                part = slice(h * size, (h + 1) * size)
                queries, keys, values = (
                    {j: projected[j][which][part] for j in valid} for which in range(3)
                )
                heads.append(_select(mixer, h, t, seen, queries[t], keys, values))
            outputs.append(mixer.output.weight @ torch.cat(heads) + mixer.output.bias)
    return torch.stack(outputs).view(batch, frames, width)


def _select(mixer, h, t, seen, query, keys, values):
    """One head's mean (E,) of neighbours and summaries of the frames seen, by frame t."""
    width, size = mixer.d_model, query.numel()
    content = query + mixer.content_bias[h]
    weights, vectors = [], []
    for j in seen:
        if abs(t - j) > mixer.neighbours:
            continue
        rates = [10000.0 ** (-i / width) for i in range(0, width, 2)]
        sines = [f((t - j) * rate) for rate in rates for f in (math.sin, math.cos)]
        position = mixer.position.weight[h * size : (h + 1) * size] @ x_like(sines, query)
        score = content @ keys[j] + (query + mixer.position_bias[h]) @ position
        weights.append(torch.exp(score / math.sqrt(size)))
        vectors.append(values[j])
    for m in range(mixer.summaries):
        key, value, mass = torch.zeros_like(query), torch.zeros_like(query), 0.0
        for j in seen:
            weight = torch.exp(8 * torch.tanh(keys[j] @ mixer.summary_score[h, m] / 8))
            key, value, mass = key + weight * keys[j], value + weight * values[j], mass + weight
        if seen:
            key, value = key / mass, value / mass
        weights.append(torch.exp(content @ key / math.sqrt(size) + mixer.summary_bias[h, m]))
        vectors.append(value)
    total = sum(weight * vector for weight, vector in zip(weights, vectors))
    return total / sum(weights) if weights else torch.zeros_like(query)


def x_like(numbers, x):
    """Numbers as a tensor of the type of ``x``."""
    return torch.tensor(numbers, dtype=x.dtype)
