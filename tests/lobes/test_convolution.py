"""The depthwise convolution against torch's, and in parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch.nn import functional

from speechbrain_summarymixing.lobes.convolution import (
    ConvolutionStream,
    depthwise_convolution,
    no_frames,
)


def inputs(frames, kernel_size=5, channels=6, dtype=torch.float64):
    torch.manual_seed(frames)
    shapes = (2, channels, frames), (channels, 1, kernel_size), (channels,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def by_definition(x, weight, bias, causal=False, chunk=None):
    """Frame by frame, with zeros in place of what a frame may not see."""
    kernel_size, frames = weight.size(2), x.size(2)
    reach = kernel_size - 1 if causal else kernel_size // 2
    padded = functional.pad(x, (reach, kernel_size))
    outputs = []
    for t in range(frames):
        end = frames if chunk is None else (t // chunk + 1) * chunk
        tap = torch.arange(kernel_size)
        seen = (t - reach + tap < end).to(x.dtype)
        outputs.append((padded[:, :, t : t + kernel_size] * weight[:, 0] * seen).sum(2) + bias)
    return torch.stack(outputs, 2)


@pytest.mark.parametrize("causal, chunk", [(False, None), (True, None), (False, 1), (False, 4)])
@given(frames=st.integers(1, 30))
def test_outputs_and_gradients_are_those_of_the_definition(causal, chunk, frames):
    x, weight, bias = leaves = inputs(frames)
    chunks = None if chunk is None else DynChunkTrainConfig(chunk)
    output = depthwise_convolution(x, weight, bias, causal=causal, chunks=chunks)
    expected = by_definition(x, weight, bias, causal, chunk)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    for one, other in zip(
        torch.autograd.grad((output * direction).sum(), leaves),
        torch.autograd.grad((expected * direction).sum(), leaves),
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("frames", [1, 7, 300])
def test_without_gradients_it_gives_the_same(dtype, frames):
    x, weight, bias = inputs(frames, kernel_size=31, channels=64, dtype=dtype)
    with torch.no_grad():
        output = depthwise_convolution(x, weight, bias)
        expected = functional.conv1d(x, weight, bias, padding=15, groups=64)
    tolerance = {"atol": 0.1, "rtol": 0.05} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(output, expected, **tolerance)
    torch.testing.assert_close(depthwise_convolution(x, weight, bias), expected, **tolerance)


@pytest.mark.parametrize("causal", [True, False])
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5), chunk=st.integers(1, 6))
def test_parts_are_convolved_as_the_whole(causal, lengths, chunk):
    x, weight, bias = inputs(chunk * sum(lengths))
    stream = ConvolutionStream(chunk, no_frames(weight, causal, x.size(0)))
    parts = [
        depthwise_convolution(part, weight, bias, causal=causal, chunks=stream)
        for part in x.split([chunk * n for n in lengths], 2)
    ]
    whole = depthwise_convolution(x, weight, bias, causal=causal, chunks=DynChunkTrainConfig(chunk))
    torch.testing.assert_close(torch.cat(parts, 2), whole)


def test_a_chunk_longer_than_the_utterance_takes_no_more_memory(largest_tensor):
    x, weight, bias = inputs(20)
    with largest_tensor:
        output = depthwise_convolution(x, weight, bias, chunks=DynChunkTrainConfig(300_000))
    assert largest_tensor.elements <= 4 * x.numel()
    torch.testing.assert_close(output, depthwise_convolution(x, weight, bias))
