import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.nnet import reference
from speechbrain_summarymixing.nnet.fastformer import Fastformer

D = 8


def make(nhead=2, seed=0):
    torch.manual_seed(seed)
    mixer = Fastformer(D, nhead=nhead, dropout=0.0).double()
    for parameter in mixer.parameters():  # biases away from zero
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("nhead", [1, 2, 4])
@pytest.mark.parametrize("lengths", [None, [6, 3, 1], [6, 6, 0]], ids=str)
def test_outputs_and_gradients_equal_the_equations(nhead, lengths):
    mixer, x = make(nhead), torch.randn(3, 6, D).double()
    mask = None if lengths is None else padding_of(lengths, 6)
    direction, results = torch.randn(3, 6, D).double(), []
    for run in (
        lambda x: mixer(x, key_padding_mask=mask)[0],
        lambda x: reference.fastformer(mixer, x, mask),
    ):
        mixer.zero_grad()
        leaf = x.clone().requires_grad_()
        output = run(leaf)
        (output * direction).sum().backward()
        results.append([output, leaf.grad, *(p.grad.clone() for p in mixer.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-10, rtol=1e-8)


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_batch_is_its_utterances_one_by_one(lengths, seed):
    mixer, frames = make(seed=seed), max(lengths)
    x = torch.randn(len(lengths), frames, D).double()
    x = x.masked_fill(padding_of(lengths, frames)[..., None], float("nan"))
    together = mixer(x, key_padding_mask=padding_of(lengths, frames))[0]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :length], mixer(x[row : row + 1, :length])[0][0])
        assert not together[row, length:].any()


def test_a_row_of_padding_alone_has_finite_gradients():
    mixer, x = make(), torch.randn(2, 5, D).double().requires_grad_()
    output = mixer(x, key_padding_mask=padding_of([5, 0], 5))[0]
    assert not output[1].any()
    output.square().sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in mixer.parameters())


def test_bfloat16_autocast_is_near_float32_over_2000_frames():
    torch.manual_seed(0)
    mixer, x = Fastformer(64, nhead=4, dropout=0.0), torch.randn(2, 2000, 64) + 1.0
    with torch.no_grad():
        exact = mixer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = mixer(x)[0].float()
    assert (rough - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_is_made_on_the_wrong_device(masked):
    with FakeTensorMode(), torch.device("cuda"):
        mask = torch.zeros(2, 6, dtype=torch.bool) if masked else None
        assert Fastformer(D)(torch.randn(2, 6, D), key_padding_mask=mask)[0].is_cuda


def test_wrong_options_raise_with_value_and_rule():
    with pytest.raises(ValueError, match="nhead is 3, but must be 1 or more and divide d_model 8"):
        Fastformer(D, nhead=3)
    with pytest.raises(ValueError, match=r"attn_mask of shape \(5, 5\) is given"):
        Fastformer(D)(torch.zeros(1, 5, D), attn_mask=torch.zeros(5, 5).bool())
