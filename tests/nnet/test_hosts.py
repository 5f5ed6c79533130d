"""Mixers in what others make of them: adapters, integers, torch.func, DDP, a batch of nothing."""

import pytest
import torch
from speechbrain.nnet.adapters import AdaptedModel, LoRA
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechbrain_summarymixing.nnet import summaries
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.sines import exact_dtype
from speechbrain_summarymixing.nnet.streaming import put_rows, take_rows
from speechbrain_summarymixing.nnet.summaries import CAUSAL, Window
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16
MIXERS = {
    "standard": lambda: SummaryMixing(D),
    "heads": lambda: SummaryMixing(D, nhead=4),
    "lite": lambda: SummaryMixing(D, local_branch=False),
    "selective": lambda: SelectiveSummaryMixing(D, neighbours=3),
    "window attention": lambda: SelectiveSummaryMixing(D, neighbours=3, summaries=0),
}
every_mixer = pytest.mark.parametrize("make", MIXERS.values(), ids=MIXERS)


def quantised(mixer):
    return torch.ao.quantization.quantize_dynamic(mixer, {nn.Linear}, inplace=False)


def adapted(mixer):
    return AdaptedModel(nn.ModuleList([mixer]), LoRA, all_linear=True).adapted_model[0]


@every_mixer
@pytest.mark.parametrize("window", [None, Window(4)], ids=str)
@pytest.mark.parametrize("change, error", [(adapted, 1e-6), (quantised, 0.05)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_its_linear_layers_may_be_replaced(make, window, change, error):
    mixer, x = make().eval(), torch.randn(2, 30, D)
    expected = mixer(x, window=window)[0]  # LoRA begins with nothing
    output = change(mixer)(x, window=window)[0]
    assert (output - expected).norm() <= error * expected.norm()


@every_mixer
def test_gradients_of_each_utterance_by_torch_func(make):
    mixer, x = make().double().eval(), torch.randn(3, 20, D, dtype=torch.float64)
    weights = {key: value.detach() for key, value in mixer.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(mixer, weights, (x[None],))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for row, utterance in enumerate(x):
        own = torch.autograd.grad(mixer(utterance[None])[0].square().sum(), mixer.parameters())
        for key, gradient in zip(weights, own):
            torch.testing.assert_close(each[key][row], gradient)


@every_mixer
def test_every_parameter_has_a_gradient_as_ddp_demands(make):
    mixer = make()
    mixer(torch.randn(2, 20, D))[0].sum().backward()
    assert all(weight.grad is not None for weight in mixer.parameters())


@every_mixer
@pytest.mark.parametrize("shape", [(0, 5, D), (2, 0, D)], ids=str)
@pytest.mark.parametrize("window", [None, CAUSAL, Window(4)], ids=str)
def test_nothing_is_mixed_to_nothing(make, shape, window):
    x = torch.zeros(shape, requires_grad=True)
    mixer = make()
    output = mixer(x, key_padding_mask=torch.zeros(shape[:2], dtype=torch.bool), window=window)[0]
    output.sum().backward()
    assert output.shape == shape
    assert all(w.grad is None or w.grad.isfinite().all() for w in mixer.parameters())
    assert mixer(x, window=window)[0].shape == shape


@every_mixer
def test_a_stream_under_autocast_keeps_the_type_of_its_state(make):
    mixer, x = make().eval(), torch.randn(3, 8, D)
    start = mixer.initial_state(Window(4), 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rows = torch.tensor([2])
        _, state = mixer.forward_streaming(x[rows], Window(4), take_rows(start, rows))
    joined = put_rows(start, rows, state)
    assert [part.dtype for part in joined] == [part.dtype for part in start]


class NoFloat64(TorchDispatchMode):
    """Refuses tensors of float64, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            assert not (torch.is_tensor(tensor) and tensor.dtype == torch.float64), function
        return output


@pytest.mark.parametrize("window", [None, CAUSAL, Window(4), Window(4, 1)], ids=str)
@every_mixer
def test_no_float64_where_a_device_has_none(make, window, monkeypatch):
    assert exact_dtype("mps") == torch.float32 and exact_dtype("cpu") == torch.float64
    monkeypatch.setattr(summaries, "exact_dtype", lambda device: torch.float32)
    x = torch.randn(2, 30, D)
    with NoFloat64():
        mixer = make().eval()
        output = mixer(x, window=window)[0]
        if window is not None:
            pieces, state = [], mixer.initial_state(window, 2)
            for piece in x.split(8, 1):
                mixed, state = mixer.forward_streaming(piece, window, state)
                pieces.append(mixed)
            torch.testing.assert_close(torch.cat(pieces, 1), output, atol=1e-5, rtol=1e-5)
