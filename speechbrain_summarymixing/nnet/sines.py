"""Sines and cosines of positions and of distances (arXiv 1706.03762); D is their width."""

import math

import torch


def sines(position, width):
    """Returns (…, D), sines and cosines by turns, of positions (…) in frames, with D ``width``."""
    rate = torch.arange(0, width, 2, device=position.device, dtype=position.dtype)
    angle = position.unsqueeze(-1) * (rate * (-math.log(10000.0) / width)).exp()
    # cosines as sines: sherpa-onnx's runtime has no float64 cosine
    return torch.stack([angle, angle + math.pi / 2], -1).sin().flatten(-2)


def distance_sines(furthest, width, device, dtype):
    """Returns (2 furthest + 1, D), of the distances furthest to -furthest."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    distance = torch.arange(furthest, -furthest - 1, -1, device=device, dtype=exact)
    return sines(distance, width).to(dtype)
