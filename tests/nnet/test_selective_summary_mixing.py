"""Neighbours and selected summaries: against the equations, and in every window."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.utils._python_dispatch import TorchDispatchMode

from speechbrain_summarymixing.nnet import reference
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.streaming import Stream
from speechbrain_summarymixing.nnet.summaries import CAUSAL, Window

D = 8
FORMS = {
    "default": {},
    "one neighbour": {"neighbours": 1},
    "more neighbours than frames": {"neighbours": 20, "nhead": 4},
    "neighbours alone": {"summaries": 0},
    "one summary": {"summaries": 1, "nhead": 1},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
WINDOWS = {
    "all": None,
    "causal": CAUSAL,
    "causal, two to the left": Window(1, 2),
    "chunks": Window(3),
    "chunks, one to the left": Window(2, 1),
    "chunks, none to the left": Window(4, 0),
    "one chunk": Window(100, 7),
}
every_window = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
windows = st.just(CAUSAL) | st.builds(Window, st.integers(1, 20), st.none() | st.integers(0, 6))


def make(form, width=D):
    torch.manual_seed(0)
    options = {"nhead": 2, "neighbours": 3, "summaries": 3, "dropout": 0.0, **form}
    mixer = SelectiveSummaryMixing(width, **options).double()
    for parameter in mixer.parameters():  # biases away from zero
        nn.init.normal_(parameter, std=0.5)
    return mixer


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


@pytest.fixture
def assert_equal(assert_equal_to_reference):
    def check(mixer, x, **masks):
        assert_equal_to_reference(mixer, x, twin=reference.selective_summary_mixing, **masks)

    return check


@every_form
@every_window
@pytest.mark.parametrize("lengths", [None, [9, 4, 1], [9, 9, 0]], ids=str)
def test_outputs_and_gradients_equal_the_equations(form, window, lengths, assert_equal):
    masks = {} if lengths is None else {"key_padding_mask": padding_of(lengths, 9)}
    assert_equal(make(form), torch.randn(3, 9, D).double(), window=window, **masks)


@every_form
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one mask", "a mask for each utterance"])
@pytest.mark.parametrize("is_float", [False, True])
def test_attention_masks_equal_the_equations(form, batch, is_float, assert_equal):
    mask = torch.rand(*batch, 9, 9) < 0.5  # frames may see nothing
    if is_float:
        mask = torch.zeros(mask.shape).masked_fill(mask, -math.inf)
    padding = padding_of([9, 5, 2], 9)
    assert_equal(
        make(form), torch.randn(3, 9, D).double(), attn_mask=mask, key_padding_mask=padding
    )


@every_form
@every_window
def test_one_frame(form, window, assert_equal):
    assert_equal(make(form), torch.randn(2, 1, D).double(), window=window)


@every_form
@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=3),
    window=windows,
)
def test_a_window_equals_the_attention_mask_that_says_the_same(form, lengths, window):
    mixer, frames = make(form), max(lengths)
    x, padding = torch.randn(len(lengths), frames, D).double(), padding_of(lengths, frames)
    output = mixer(x, key_padding_mask=padding, window=window)[0]
    expected = mixer(x, key_padding_mask=padding, attn_mask=window.attn_mask(frames))[0]
    torch.testing.assert_close(output, expected, atol=1e-11, rtol=1e-9)


@every_form
@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 80), min_size=1, max_size=4), window=st.none() | windows)
def test_a_batch_is_its_utterances_one_by_one(form, lengths, window):
    mixer, frames = make(form), max(lengths)
    x = torch.randn(len(lengths), frames, D).double()
    x[padding_of(lengths, frames)] = math.nan
    together = mixer(x, key_padding_mask=padding_of(lengths, frames), window=window)[0]
    for row, length in enumerate(lengths):
        alone = mixer(x[row : row + 1, :length], window=window)[0]
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-12, rtol=1e-10)
        assert not together[row, length:].any()


def test_what_is_far_away_acts_through_the_summaries_alone():
    x = torch.randn(1, 40, D).double()
    changed = x.clone()
    changed[:, 30:] += 1.0
    difference = {
        summaries: (mixer(x)[0] - mixer(changed)[0]).abs()[0, :27].amax(1)
        for summaries in (0, 3)
        for mixer in [make({"summaries": summaries})]
    }
    assert difference[0].max() < 1e-14  # neighbours: 3
    assert difference[3].min() > 1e-6


@every_form
def test_permuting_far_frames_leaves_a_frame_unchanged(form):
    mixer, x = make(form), torch.randn(1, 60, D).double()
    reach = mixer.neighbours
    order = torch.cat([torch.arange(reach + 1), reach + 1 + torch.randperm(59 - reach)])
    torch.testing.assert_close(mixer(x[:, order])[0][:, 0], mixer(x)[0][:, 0])


def pieces_of(frames, window, data):
    """Slices at random chunk bounds, which cover the frames."""
    start = 0
    while start < frames:
        end = min(frames, start + window.chunk_frames * data.draw(st.integers(1, 40)))
        yield slice(start, end)
        start = end


def streamed(mixer, x, window, pieces, padding=None):
    outputs, state = [], None
    for piece in pieces:
        mask = None if padding is None else padding[:, piece]
        output, state = mixer.forward_streaming(x[:, piece], window, state, mask)
        outputs.append(output)
    return torch.cat(outputs, 1), state


@every_form
@settings(max_examples=30)
@given(frames=st.integers(1, 150), window=windows, masked=st.booleans(), data=st.data())
def test_pieces_equal_the_whole(form, frames, window, masked, data):
    mixer, x = make(form), torch.randn(2, frames, D).double()
    padding = padding_of([frames, data.draw(st.integers(0, frames))], frames) if masked else None
    output, state = streamed(mixer, x, window, list(pieces_of(frames, window, data)), padding)
    whole = mixer(x, key_padding_mask=padding, window=window)[0]
    torch.testing.assert_close(output, whole, atol=1e-11, rtol=1e-9)
    assert state.sums.size(1) <= (1 if window.left_chunks is None else window.left_chunks)
    assert state.neighbours.size(2) == state.seen.size(1) <= mixer.neighbours + 1


@pytest.mark.parametrize("window", [CAUSAL, Window(3), Window(2, 2)], ids=str)
def test_gradients_pass_through_the_state(window):
    mixer, x = make({}), torch.randn(2, 18, D).double().requires_grad_()
    direction = torch.randn(2, 18, D).double()
    gradients = [
        torch.autograd.grad((output * direction).sum(), [x, *mixer.parameters()])
        for output in (
            streamed(mixer, x, window, [slice(0, 6), slice(6, 12), slice(12, 18)])[0],
            mixer(x, window=window)[0],
        )
    ]
    for by_pieces, by_whole in zip(*gradients):
        torch.testing.assert_close(by_pieces, by_whole, atol=1e-10, rtol=1e-8)


def test_a_stream_in_the_place_of_the_mask_goes_on():
    mixer, x, stream = make({}), torch.randn(1, 12, D).double(), Stream(Window(4))
    output = torch.cat(
        [mixer(x[:, :8], attn_mask=stream)[0], mixer(x[:, 8:], None, None, stream)[0]], 1
    )
    torch.testing.assert_close(output, mixer(x, attn_mask=Window(4))[0])


@every_form
@every_window
def test_gradients_are_finite_where_nothing_is_valid(form, window):
    mixer = make(form).float()
    x, mask = torch.randn(3, 50, D, requires_grad=True), padding_of([50, 1, 0], 50)
    output = mixer(x, key_padding_mask=mask, window=window)[0]
    assert not output[mask].any() and output.isfinite().all()
    output.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in mixer.parameters())


def test_extreme_scores_stay_finite():
    mixer, x = make({}).float(), 1e4 * torch.randn(2, 50, D)
    x.requires_grad_()
    output = mixer(x, window=CAUSAL)[0]
    output.sum().backward()
    assert output.isfinite().all() and x.grad.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that an operation makes, forward and backward."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else [results]:
            if isinstance(result, torch.Tensor):
                self.elements = max(self.elements, result.numel())
        return results


@every_window
def test_memory_grows_with_the_length_not_with_its_square(window):
    mixer = make({}).float()
    largest = {}
    for frames in (1000, 4000):
        x = torch.randn(1, frames, D, requires_grad=True)
        with LargestTensor() as largest[frames]:
            mixer(x, key_padding_mask=padding_of([frames - 9], frames), window=window)[
                0
            ].sum().backward()
    assert largest[4000].elements <= 4.05 * largest[1000].elements < 1000 * 1000


@every_form
@every_window
def test_bfloat16_autocast_is_near_float32_over_2000_frames(form, window):
    torch.manual_seed(0)
    options = {"nhead": 2, "neighbours": 3, **form}
    mixer, x = SelectiveSummaryMixing(64, dropout=0.0, **options), torch.randn(2, 2000, 64) + 1.0
    masks = {"key_padding_mask": padding_of([2000, 1500], 2000), "window": window}
    with torch.no_grad():
        exact = mixer(x, **masks)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = mixer(x, **masks)[0].float()
    assert (rough - exact).norm() / exact.norm() < 1e-2


def test_the_state_of_a_stream_is_summed_in_float64_under_autocast():
    mixer, x = make({}).float().eval(), torch.randn(1, 2000, D)
    pieces = [slice(t, t + 50) for t in range(0, 2000, 50)]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough, state = streamed(mixer, x, CAUSAL, pieces)
        whole = mixer(x, window=CAUSAL)[0]
    assert state.sums.dtype == torch.float64
    assert (rough.float() - whole.float()).norm() / whole.float().norm() < 5e-3


@every_form
@every_window
@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_is_made_on_the_wrong_device(form, window, masked):
    with FakeTensorMode(), torch.device("cuda"):
        mixer = SelectiveSummaryMixing(D, **{"nhead": 2, **form})
        x = torch.randn(2, 6, D)
        padding = torch.zeros(2, 6, dtype=torch.bool) if masked else None
        tensors = [mixer(x, key_padding_mask=padding, window=window)[0]]
        if window is not None:
            output, state = mixer.forward_streaming(x, window)
            tensors += [output, *state, mixer.forward_streaming(x, window, state)[0]]
    assert {t.device.type for t in tensors} == {"cuda"}


SHAPES = [(2, 7), (4, 150), (2, 64), (5, 65)]


@every_form
@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_exported_mixer_takes_any_batch_and_length(form, strict):
    mixer = make(form).eval()
    dynamic = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"query": dynamic, "key_padding_mask": dynamic}
    x, padding = torch.randn(2, 6, D).double(), padding_of([6, 3], 6)
    program = torch.export.export(
        mixer, (x,), {"key_padding_mask": padding}, dynamic_shapes=shapes, strict=strict
    )
    for batch, frames in SHAPES:
        x = torch.randn(batch, frames, D).double()
        padding = padding_of([frames - row for row in range(batch)], frames)
        output, expected = (f(x, key_padding_mask=padding)[0] for f in (program.module(), mixer))
        torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("train", [False, True])
def test_a_compiled_mixer_is_one_graph_for_every_length(train):
    torch._dynamo.reset()
    mixer, graphs = make({}).train(train), CompileCounter()
    compiled = torch.compile(mixer, backend=graphs, fullgraph=True, dynamic=True)
    with torch.set_grad_enabled(train):
        for batch, frames in SHAPES:
            x = torch.randn(batch, frames, D).double().requires_grad_(train)
            padding = padding_of([frames - row for row in range(batch)], frames)
            outputs = [f(x, key_padding_mask=padding)[0] for f in (compiled, mixer)]
            torch.testing.assert_close(*outputs)
            if train:
                torch.testing.assert_close(
                    *[torch.autograd.grad(y.square().sum(), x)[0] for y in outputs]
                )
    assert graphs.frame_count == 1


def test_dropout_acts_in_training_alone():
    mixer, x = make({}), torch.randn(1, 9, D).double()
    mixer.dropout.p = 0.5
    assert not torch.equal(mixer(x)[0], mixer(x)[0])
    mixer.eval()
    assert torch.equal(mixer(x)[0], mixer(x)[0])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nhead": 3}, "nhead is 3 and d_model 8"),
        ({"nhead": 0}, "nhead is 0"),
        ({"neighbours": 0}, "neighbours is 0"),
        ({"summaries": -1}, "summaries -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_wrong_options_raise_with_value_and_rule(options, message):
    with pytest.raises(ValueError, match=message):
        SelectiveSummaryMixing(D, **options)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m, x: m(x, torch.zeros_like(x)), "key is another tensor"),
        (lambda m, x: m(x[0]), "query has shape"),
        (lambda m, x: m(x, attn_mask=torch.zeros(2, 2).bool()), "attn_mask has shape"),
        (lambda m, x: m.forward_streaming(x, None), "window is None, but a stream"),
    ],
)
def test_wrong_calls_raise_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call(make({}), torch.zeros(2, 5, D).double())


@pytest.mark.parametrize("width", [64, 144, 512])
def test_a_new_mixer_adds_little_to_the_residual_and_its_summaries_weigh_little(width):
    torch.manual_seed(0)
    x, mixer = torch.randn(4, 60, width), SelectiveSummaryMixing(width).eval()
    output = mixer(x)[0]
    assert 0 < output.std() < 0.06  # 0.12 and more with a gain of 1
    without = SelectiveSummaryMixing(width, summaries=0).eval()
    shared = {k: v for k, v in mixer.state_dict().items() if not k.startswith("summary")}
    without.load_state_dict(shared, strict=False)
    assert (output - without(x)[0]).std() < 0.02 * output.std()  # 0.057 and more with a bias of 0
