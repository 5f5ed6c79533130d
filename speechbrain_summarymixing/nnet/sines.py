"""Sines and cosines of positions and of distances (arXiv 1706.03762); D is their width."""

import math

import torch


def exact_dtype(device):
    """Returns the type for what float32 is too coarse for: float64, which MPS has not."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def sines(position, width):
    """Returns (…, D), sines and cosines by turns, of positions (…) in frames, with D ``width``."""
    rate = torch.arange(0, width, 2, device=position.device, dtype=position.dtype)
    # of numbers that are exact in float32, as which an ONNX graph has them
    angle = position.unsqueeze(-1) * 10000.0 ** (rate / -width)
    # cosines as sines: sherpa-onnx's runtime has no float64 cosine
    return torch.stack([angle, angle + math.pi / 2], -1).sin().flatten(-2)


def distance_sines(furthest, width, device, dtype):
    """Returns (2 furthest + 1, D), of the distances furthest to -furthest."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    distance = torch.arange(furthest, -furthest - 1, -1, device=device, dtype=exact)
    return sines(distance, width).to(dtype)
