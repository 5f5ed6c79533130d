import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speechbrain_summarymixing.nnet import reference
from speechbrain_summarymixing.nnet.summaries import (
    BLOCK,
    CAUSAL,
    Window,
    attn_mask_mean,
    chunk_means,
    decayed_mean,
    running_chunk_means,
    running_sums,
    to_frames,
    window_of_mask,
    windowed_mean,
)

windows = st.builds(Window, st.integers(1, 20), st.none() | st.integers(0, 6))


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


def reference_means(x, padding, window=None, decay=None):
    """Means (B, T, S) by loops over frames."""
    rows = []
    for row, padded in zip(x, padding):
        valid = [j for j in range(len(row)) if not padded[j]]
        for t in range(len(row)):
            seen = {j: row[j] for j in valid if not reference.outside(window, t, j)}
            rows.append(reference.mean(seen, t, decay, torch.zeros_like(row[0])))
    return torch.stack(rows).view_as(x)


@settings(max_examples=50)
@given(frames=st.integers(1, 2 * BLOCK + 2), window=windows, data=st.data())
def test_the_windowed_mean_and_its_gradient_equal_the_loops(frames, window, data):
    padding = padding_of([frames, data.draw(st.integers(0, frames))], frames)
    x = torch.randn(2, frames, 2).double().requires_grad_()
    output, expected = windowed_mean(x, window, padding), reference_means(x, padding, window)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10)
    direction = torch.randn_like(output)
    gradients = [torch.autograd.grad(y, x, direction)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)
    by_mask = attn_mask_mean(x, window.attn_mask(frames), padding)
    torch.testing.assert_close(output, by_mask, atol=1e-12, rtol=1e-10)


@settings(max_examples=25)
@given(frames=st.integers(1, 2 * BLOCK + 2), decay=st.floats(0.01, 0.9999), data=st.data())
def test_the_decayed_mean_and_its_gradient_equal_the_loops(frames, decay, data):
    padding = padding_of([frames, data.draw(st.integers(0, frames))], frames)
    x = torch.randn(2, frames, 2).double().requires_grad_()
    output = decayed_mean(x, decay, padding).masked_fill(padding[..., None], 0.0)
    expected = reference_means(x, padding, decay=decay).masked_fill(padding[..., None], 0.0)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10)
    direction = torch.randn_like(output)
    gradients = [torch.autograd.grad(y, x, direction)[0] for y in (output, expected)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)


def test_padding_may_stand_anywhere():
    x, padding = torch.randn(4, 150, 2).double(), torch.rand(4, 150) < 0.5
    for window in (CAUSAL, Window(7), Window(7, 1), Window(1, 3)):
        expected = reference_means(x, padding, window)
        torch.testing.assert_close(windowed_mean(x, window, padding), expected)
    valid = padding.logical_not()
    expected = reference_means(x, padding, decay=0.9)
    torch.testing.assert_close(decayed_mean(x, 0.9, padding)[valid], expected[valid])


@pytest.mark.parametrize("window", [CAUSAL, Window(1, 3), Window(4, 1)])
def test_a_window_without_a_valid_frame_has_the_mean_zero(window):
    x = torch.randn(2, 30, 3, requires_grad=True)
    padding = torch.ones(2, 30, dtype=torch.bool)
    padding[0, 20:] = False
    output = windowed_mean(x, window, padding)
    assert not output[0, :20].any() and not output[1].any() and output[0, 20:].all()
    output.sum().backward()
    assert x.grad.isfinite().all() and not x.grad[1].any()
    assert not decayed_mean(x, 0.9, padding)[1].any()


@settings(max_examples=50)
@given(frames=st.integers(1, 300), window=windows, data=st.data())
def test_means_piece_by_piece_equal_those_of_the_whole(frames, window, data):
    padding = padding_of([frames, data.draw(st.integers(0, frames))], frames)
    x = torch.randn(2, frames, 3).double()
    pieces, state, start = [], None, 0
    while start < frames:
        end = start + window.chunk_frames * data.draw(st.integers(1, 60))
        piece = slice(start, min(frames, end))
        means, state = running_chunk_means(x[:, piece], window, state, padding[:, piece])
        pieces.append(to_frames(means, window, piece.stop - start))
        assert state.total.dtype == state.count.dtype == torch.float64
        assert state.total.size(1) <= (1 if window.left_chunks is None else window.left_chunks)
        start = piece.stop
    whole = windowed_mean(x, window, padding)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=1e-10)


def test_a_running_mean_of_float32_stays_exact():
    torch.manual_seed(0)
    x, state, pieces = torch.rand(1, 90_000, 2) + 1.0, None, []
    for piece in x.split(160, dim=1):
        means, state = running_chunk_means(piece, Window(16), state)
        pieces.append(means)
    exact = chunk_means(x.double(), Window(16))
    assert ((torch.cat(pieces, 1) - exact).abs() / exact).max() < 1e-6


@pytest.mark.parametrize(
    "window", [CAUSAL, Window(1, 0), Window(1, 9), Window(16), Window(16, 2), Window(45_000)]
)
def test_a_float32_windowed_mean_over_90000_frames_is_exact(window):
    torch.manual_seed(0)
    x = torch.rand(1, 90_000, 4) + 1.0
    output, exact = windowed_mean(x, window), windowed_mean(x.double(), window)
    assert output.dtype == torch.float32
    assert ((output - exact).abs() / exact).max() < 1e-6


@pytest.mark.parametrize("decay", [0.5, 0.995, 0.9999])
def test_a_decayed_mean_over_20000_frames_is_finite_and_right(decay):
    torch.manual_seed(0)
    frames = 20_000
    x = (torch.rand(1, frames, 3) + 1.0).requires_grad_()
    output = decayed_mean(x, decay)
    output.sum().backward()
    assert x.grad.isfinite().all()
    with torch.no_grad():
        exact = decayed_mean(x.double(), decay)
        torch.testing.assert_close(output.double(), exact, atol=0.0, rtol=2e-6)
    for t in (0, 1, BLOCK - 1, BLOCK, 777, frames // 2, frames - 1):
        weights = decay ** (torch.arange(frames) - t).abs().double()
        expected = (weights / weights.sum()) @ x[0].detach().double()
        torch.testing.assert_close(output[0, t].double(), expected, atol=0.0, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32_and_returned(dtype):
    x = torch.full((1, 5000, 2), 100.0, dtype=dtype)  # their sum is 500,000
    for mean in (windowed_mean(x, CAUSAL), windowed_mean(x, Window(4, 1)), decayed_mean(x, 0.999)):
        assert mean.dtype == dtype
        torch.testing.assert_close(mean, x)


@settings(max_examples=50)
@given(frames=st.integers(1, 60), window=windows, is_float=st.booleans())
def test_a_window_is_recognised_in_its_mask(frames, window, is_float):
    mask = window.attn_mask(frames)
    if is_float:
        given_mask = torch.zeros(frames, frames).masked_fill(mask, -math.inf)
    else:
        given_mask = mask
    found = window_of_mask(given_mask)
    assert torch.equal(found.attn_mask(frames), mask)
    if frames > window.chunk_frames * (2 + (window.left_chunks or 0)):
        assert found == window


def test_a_causal_mask_is_a_causal_window():
    assert window_of_mask(nn.Transformer.generate_square_subsequent_mask(9)) == CAUSAL


@pytest.mark.parametrize("changed", [(0, 0), (0, 5), (7, 0), (4, 6), (4, 3), (8, 8)])
def test_a_mask_that_is_no_window_is_not_taken_for_one(changed):
    for window in (CAUSAL, Window(3), Window(3, 1)):
        mask = window.attn_mask(9)
        mask[changed] = ~mask[changed]
        assert window_of_mask(mask) is None


def test_masks_of_another_shape_are_no_window():
    assert window_of_mask(torch.ones(4, 5).bool()) is None
    assert window_of_mask(CAUSAL.attn_mask(5).expand(2, 5, 5)) is None
    assert window_of_mask(torch.ones(5, 5).bool()) is None


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"chunk_frames": 0}, "chunk_frames is 0, but must be an integer of 1 or more"),
        ({"chunk_frames": 2.0}, "chunk_frames is 2.0"),
        ({"left_chunks": -1}, "left_chunks is -1, but must be an integer of 0 or more, or None"),
        ({"left_chunks": "all"}, "left_chunks is all"),
    ],
)
def test_a_window_that_cannot_be_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        Window(**numbers)


def test_what_left_a_window_leaves_no_rounding_behind():
    x = torch.cat(
        [torch.full((1, 30, 1), math.exp(8.0)), torch.full((1, 60, 1), math.exp(-8.0))], 1
    )
    sums, exact = running_sums(x, 20)[0], running_sums(x.double(), 20)[0]
    assert ((sums - exact).abs() / exact).max() < 1e-6


def test_a_chunk_longer_than_the_utterance_takes_no_more_memory(largest_tensor):
    x = torch.randn(1, 50, 8)
    with largest_tensor:
        output = windowed_mean(x, Window(300_000))
    assert largest_tensor.elements <= 2 * x.numel()
    torch.testing.assert_close(output, x.mean(1, keepdim=True).expand_as(x))


def test_a_bias_is_no_window():
    distance = torch.arange(6.0)[:, None] - torch.arange(6.0)
    causal = torch.zeros(6, 6).masked_fill(distance < 0, -math.inf)
    assert window_of_mask(causal) == CAUSAL
    assert window_of_mask(causal - distance.clamp(min=0)) is None  # ALiBi's
