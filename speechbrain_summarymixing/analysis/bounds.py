"""How far a mean is from attention: errors of replacing attention's rows, and what bounds them.

A row a of attention and the weights m of a mean both sum to 1 over T frames, with values V (T, E).
Rows are A (..., Q, T), for Q frames that ask. The proofs are in docs/theory.md.
"""

import math

import torch


def replacement_errors(rows, weights, values):
    """Distance of attention's output to that of a mean, for each row.

    Arguments
    ---------
    rows : torch.Tensor
        A (..., Q, T).
    weights : torch.Tensor
        m (..., 1 or Q, T), the weights of a mean for all rows, or of one for each.
    values : torch.Tensor
        V (..., T, E).

    Returns
    -------
    torch.Tensor
        (..., Q), of |a V - m V|.
    """
    return ((rows - weights) @ values).norm(dim=-1)


def total_variation(rows, weights):
    """Half of the sum of |a - m|, (..., Q): the share of a row's weight that lies elsewhere."""
    return (rows - weights).abs().sum(-1) / 2


def spread_bound(rows, weights, values):
    """Total variation times the largest distance of two values (proposition 1), (..., Q)."""
    return total_variation(rows, weights) * _diameter(values)


def entropy_bound(rows, values):
    """Bound for the uniform mean by the entropy of the rows (proposition 2), (..., Q)."""
    missing = (math.log(rows.shape[-1]) - entropy(rows)).clamp(min=0)
    return (missing / 2).sqrt() * _diameter(values)


def _diameter(values):
    """The largest distance of two values, (..., 1); not by products, which cancel in float32."""
    distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.amax((-2, -1)).unsqueeze(-1)


def covariance_bound(rows, weights, values):
    """Root of chi-squared times the largest variance of the values (proposition 3), (..., Q).

    Infinite where the mean gives no weight to a frame to which the row gives some.
    """
    difference = (rows - weights).square()
    chi_squared = torch.where(difference > 0, difference / weights, 0.0).sum(-1)
    mean = weights @ values  # (..., 1 or Q, E)
    centred = values.unsqueeze(-3) - mean.unsqueeze(-2)  # (..., 1 or Q, T, E)
    covariance = centred.mT @ (weights.unsqueeze(-1) * centred)
    largest = torch.linalg.eigvalsh(covariance)[..., -1].clamp(min=0)  # (..., 1 or Q)
    bound = (chi_squared * largest).sqrt()
    return torch.where(chi_squared.isinf(), chi_squared, bound)  # also where the largest is 0


def entropy(rows):
    """Entropy of each row in nats, (..., Q); that of a uniform one is log T."""
    return torch.special.entr(rows).sum(-1)


def mean_row(rows):
    """The mean over the frames that ask, (..., 1, T): of all constant rows the best one.

    Whatever the values, no other vector has a smaller mean squared distance to attention's outputs
    than this row's output (proposition 4).
    """
    return rows.mean(-2, keepdim=True)


def summaries_bound(rows, summaries):
    """Least root mean squared distance of the rows to any that M summaries make (proposition 5).

    Arguments
    ---------
    rows : torch.Tensor
        A (..., Q, T).
    summaries : int
        M, means whose weights are the same for all frames, of which each frame takes its own
        combination.

    Returns
    -------
    torch.Tensor
        (...).
    """
    singular = torch.linalg.svdvals(rows)[..., summaries:]
    return (singular.square().sum(-1) / rows.shape[-2]).sqrt()


def tail_bound(rows, weights, values, neighbours):
    """Bound where a frame's neighbours are attended to exactly, and the rest is a mean (prop. 6).

    Arguments
    ---------
    rows, weights, values
        As of `replacement_errors`, of self-attention: Q is T.
    neighbours : int
        W, frames to each side.

    Returns
    -------
    torch.Tensor
        (..., T); infinity where the row has a tail, and the mean no weight to spread it by.
    """
    tail, of_tail, of_mean = _tails(rows, weights, neighbours)
    bound = tail * spread_bound(of_tail, of_mean, values)
    return bound.masked_fill((tail > 0) & (of_mean.sum(-1) == 0), math.inf)


def tail_errors(rows, weights, values, neighbours):
    """What `tail_bound` bounds: the distance to the output with a mean of the rest, (..., T)."""
    tail, of_tail, of_mean = _tails(rows, weights, neighbours)
    return tail * replacement_errors(of_tail, of_mean, values)


def _tails(rows, weights, neighbours):
    """A row's weight outside of its neighbours (..., T), and what it and the mean are there."""
    frames = rows.shape[-1]
    time = torch.arange(frames, device=rows.device)
    outside = (time.unsqueeze(1) - time).abs() > neighbours
    far, mean = rows * outside, weights * outside
    tail = far.sum(-1)
    return tail, _normalised(far), _normalised(mean)


def _normalised(weights):
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
