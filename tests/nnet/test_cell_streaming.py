"""The cell piece by piece: equal to the cell on the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.nnet.summaries import CAUSAL, Window
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 8
FORMS = {
    "standard": {},
    "four heads": {"nhead": 4},
    "lite": {"local_branch": False},
    "fast": {"shared_projection": True},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
windows = st.just(CAUSAL) | st.builds(Window, st.integers(1, 20), st.none() | st.integers(0, 6))


def make(form, width=D):
    torch.manual_seed(0)
    cell = SummaryMixing(width, dropout=0.0, **form).double()
    for parameter in cell.parameters():  # biases and norms away from their special values
        nn.init.normal_(parameter, std=0.5)
    return cell


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


def bounds(frames, window, data):
    """Slices at random chunk bounds, which cover the frames."""
    start = 0
    while start < frames:
        end = min(frames, start + window.chunk_frames * data.draw(st.integers(1, 40)))
        yield slice(start, end)
        start = end


def streamed(cell, x, window, pieces, padding=None):
    outputs, state = [], None
    for piece in pieces:
        mask = None if padding is None else padding[:, piece]
        output, state = cell.forward_streaming(x[:, piece], window, state, mask)
        outputs.append(output)
    return torch.cat(outputs, 1), state


@every_form
@settings(max_examples=40)
@given(frames=st.integers(1, 200), window=windows, masked=st.booleans(), data=st.data())
def test_pieces_equal_the_whole(form, frames, window, masked, data):
    cell, x = make(form), torch.randn(2, frames, D).double()
    padding = padding_of([frames, data.draw(st.integers(0, frames))], frames) if masked else None
    pieces = list(bounds(frames, window, data))
    output, state = streamed(cell, x, window, pieces, padding)
    whole = cell(x, key_padding_mask=padding, window=window)[0]
    torch.testing.assert_close(output, whole, atol=1e-11, rtol=1e-9)
    assert state.total.size(1) <= (1 if window.left_chunks is None else window.left_chunks)


@every_form
@pytest.mark.parametrize("window", [CAUSAL, Window(3), Window(2, 2)], ids=str)
def test_gradients_pass_through_the_state(form, window):
    cell, x = make(form), torch.randn(2, 18, D).double().requires_grad_()
    direction = torch.randn(2, 18, D).double()
    gradients = []
    for output in (
        streamed(cell, x, window, [slice(0, 6), slice(6, 12), slice(12, 18)])[0],
        cell(x, window=window)[0],
    ):
        leaves = [x, *cell.parameters()]
        gradients.append(torch.autograd.grad((output * direction).sum(), leaves))
    for by_pieces, by_whole in zip(*gradients):
        torch.testing.assert_close(by_pieces, by_whole, atol=1e-10, rtol=1e-8)


@every_form
@pytest.mark.parametrize("window", [CAUSAL, Window(1, 5)], ids=str)
def test_sums_stay_exact_in_bfloat16_autocast(form, window):
    cell, x = make(form, 32).float().eval(), torch.randn(1, 2000, 32) + 1.0
    pieces = [slice(t, t + 50) for t in range(0, 2000, 50)]
    with torch.no_grad():
        exact = cell(x, window=window)[0]
        with torch.autocast("cpu", torch.bfloat16):
            whole = cell(x, window=window)[0]
            rough, state = streamed(cell, x, window, pieces)
    assert state.total.dtype == state.count.dtype == torch.float64
    assert (rough.float() - exact).norm() / exact.norm() < 2e-2
    assert (rough.float() - whole.float()).norm() / exact.norm() < 5e-3


@every_form
def test_no_tensor_is_made_on_the_wrong_device(form):
    with FakeTensorMode(), torch.device("cuda"):
        cell = SummaryMixing(D, **form)
        _, state = cell.forward_streaming(torch.randn(2, 6, D), Window(3))
        output, state = cell.forward_streaming(torch.randn(2, 3, D), Window(3), state)
    assert {t.device.type for t in (output, *state)} == {"cuda"}


@pytest.mark.parametrize(
    "options, window, message",
    [
        ({}, None, "window is None, but a stream never shows the whole"),
        ({}, 3, "window is 3, but must be a Window"),
        ({"decay": 0.9}, CAUSAL, "given, but decay is 0.9"),
    ],
)
def test_what_cannot_be_streamed_is_refused(options, window, message):
    with pytest.raises(ValueError, match=message):
        SummaryMixing(D, **options).forward_streaming(torch.zeros(2, 5, D), window)
