"""The cell with windows and with decay."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

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
SUMMARIES = {
    "causal": {"window": CAUSAL},
    "causal, two to the left": {"window": Window(1, 2)},
    "chunks": {"window": Window(3)},
    "chunks, one to the left": {"window": Window(2, 1)},
    "chunks, none to the left": {"window": Window(4, 0)},
    "one chunk": {"window": Window(100, 7)},
    "decay": {"decay": 0.7},
}
every_summary = pytest.mark.parametrize("summary", SUMMARIES.values(), ids=SUMMARIES)


def make(form, seed=0):
    torch.manual_seed(seed)
    cell = SummaryMixing(D, dropout=0.0, **form).double()
    for parameter in cell.parameters():  # biases and norms away from their special values
        nn.init.normal_(parameter, std=0.5)
    return cell


def make_with(form, summary):
    """A cell of the form that has the summary's decay, and the summary's window for its call."""
    options = {key: value for key, value in summary.items() if key == "decay"}
    window = {key: value for key, value in summary.items() if key == "window"}
    return make({**form, **options}), window


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


@every_form
@every_summary
@pytest.mark.parametrize("lengths", [None, [9, 4, 1], [9, 9, 0]], ids=str)
def test_outputs_and_gradients_equal_the_equations(
    form, summary, lengths, assert_equal_to_reference
):
    cell, window = make_with(form, summary)
    masks = {} if lengths is None else {"key_padding_mask": padding_of(lengths, 9)}
    assert_equal_to_reference(cell, torch.randn(3, 9, D).double(), **masks, **window)


@every_form
@every_summary
def test_one_frame(form, summary, assert_equal_to_reference):
    cell, window = make_with(form, summary)
    assert_equal_to_reference(cell, torch.randn(2, 1, D).double(), **window)


@pytest.mark.parametrize("summary", ["causal", "chunks, one to the left", "decay"])
def test_they_equal_the_equations_over_several_blocks_of_the_scan(
    summary, assert_equal_to_reference
):
    cell, window = make_with({}, SUMMARIES[summary])
    masks = {"key_padding_mask": padding_of([150, 131], 150)}
    assert_equal_to_reference(cell, torch.randn(2, 150, D).double(), **masks, **window)


@every_form
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    chunk_frames=st.integers(1, 40),
    left_chunks=st.none() | st.integers(0, 5),
)
def test_a_window_equals_the_attention_mask_that_says_the_same(
    form, lengths, chunk_frames, left_chunks
):
    cell, frames, window = make(form), max(lengths), Window(chunk_frames, left_chunks)
    x, padding = torch.randn(len(lengths), frames, D).double(), padding_of(lengths, frames)
    output = cell(x, key_padding_mask=padding, window=window)[0]
    expected = cell(x, key_padding_mask=padding, attn_mask=window.attn_mask(frames))[0]
    torch.testing.assert_close(output, expected, atol=1e-11, rtol=1e-9)


@every_form
@settings(max_examples=10)
@given(frames=st.integers(2, 200), chunk_frames=st.integers(1, 20), data=st.data())
def test_a_window_hides_what_comes_after_the_chunk(form, frames, chunk_frames, data):
    cell, window = make(form), Window(chunk_frames)
    x = torch.randn(1, frames, D).double()
    seen = chunk_frames * data.draw(st.integers(0, (frames - 1) // chunk_frames))
    changed = x.clone()
    changed[:, seen:] += 1.0
    whole = cell(x, window=window)[0]
    assert torch.equal(cell(changed, window=window)[0][:, :seen], whole[:, :seen])
    if seen:
        torch.testing.assert_close(cell(x[:, :seen], window=window)[0], whole[:, :seen])


@every_summary
@settings(max_examples=10)
@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4))
def test_a_batch_is_its_utterances_one_by_one(summary, lengths):
    cell, window = make_with({}, summary)
    frames = max(lengths)
    x = torch.randn(len(lengths), frames, D).double()
    x[padding_of(lengths, frames)] = math.nan
    together = cell(x, key_padding_mask=padding_of(lengths, frames), **window)[0]
    for row, length in enumerate(lengths):
        alone = cell(x[row : row + 1, :length], **window)[0]
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-12, rtol=1e-10)
        assert not together[row, length:].any()


@every_form
@every_summary
def test_gradients_are_finite_where_nothing_is_valid(form, summary):
    cell, window = make_with(form, summary)
    cell.float()
    x = torch.randn(3, 400, D, requires_grad=True)
    mask = padding_of([400, 1, 0], 400)  # 0.7^399 is no float32
    output = cell(x, key_padding_mask=mask, **window)[0]
    assert not output[mask].any() and output.isfinite().all()
    output.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in cell.parameters())


class LargestStorage(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes, forward and backward."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, torch.Tensor):
                self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return results


@every_form
@every_summary
def test_no_tensor_is_larger_than_the_features(form, summary):
    cell, window = make_with(form, summary)
    frames = 5000
    x = torch.randn(1, frames, D).double().requires_grad_()
    with LargestStorage() as largest:
        output = cell(x, key_padding_mask=padding_of([frames - 9], frames), **window)[0]
        output.sum().backward()
    assert 0 < largest.bytes <= 1.1 * x.element_size() * frames * 2 * D  # f and s in one product


@every_form
@every_summary
def test_bfloat16_autocast_is_near_float32_over_2000_frames(form, summary):
    torch.manual_seed(0)
    options = {**summary}
    decay = 0.995 if options.pop("decay", None) else None
    cell, x = SummaryMixing(64, dropout=0.0, **form, decay=decay), torch.randn(2, 2000, 64) + 1.0
    masks = {"key_padding_mask": padding_of([2000, 1500], 2000)}
    with torch.no_grad():
        exact = cell(x, **masks, **options)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = cell(x, **masks, **options)[0].float()
    assert (rough - exact).norm() / exact.norm() < 1e-2


@every_form
@every_summary
@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_is_made_on_the_wrong_device(form, summary, masked):
    options = {**summary}
    decay = options.pop("decay", None)
    with FakeTensorMode(), torch.device("cuda"):
        cell = SummaryMixing(D, **form, decay=decay)
        x = torch.randn(2, 6, D)
        padding = torch.zeros(2, 6, dtype=torch.bool) if masked else None
        output = cell(x, key_padding_mask=padding, **options)[0]
    assert output.device.type == "cuda"


@every_form
@every_summary
def test_the_forward_pass_is_one_graph_without_host_synchronisation(form, summary):
    class Windowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.window = make_with(form, summary)

        def forward(self, x, mask):
            return self.cell(x, key_padding_mask=mask, **self.window)[0]

    windowed = Windowed().eval()
    x, mask = torch.randn(2, 6, D).double(), padding_of([6, 3], 6)
    program = torch.export.export(windowed, (x, mask), strict=True)
    torch.testing.assert_close(program.module()(x, mask), windowed(x, mask))


@pytest.mark.parametrize("masks", [{"window": CAUSAL}, {"attn_mask": torch.zeros(5, 5).bool()}])
def test_decay_with_a_window_or_a_mask_is_refused(masks):
    cell = SummaryMixing(D, decay=0.9)
    with pytest.raises(ValueError, match="given, but decay is 0.9"):
        cell(torch.zeros(2, 5, D), **masks)


def test_a_mixer_says_that_it_takes_windows():
    assert SummaryMixing(D).supports_window is True
