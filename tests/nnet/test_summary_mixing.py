import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published_cells import published
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.nnet import reference
from speechbrain_summarymixing.nnet.grouped_linear import GroupedLinear, join_heads, split_heads
from speechbrain_summarymixing.nnet.summaries import CAUSAL
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing, load_published_state_dict

D = 8
FORMS = {
    "standard": {},
    "no norm": {"layer_norm": False},
    "two heads": {"nhead": 2},
    "four heads": {"nhead": 4},
    "four heads, no norm": {"nhead": 4, "layer_norm": False},
    "lite": {"local_branch": False},
    "lite, no norm": {"local_branch": False, "layer_norm": False},
    "lite, heads": {"local_branch": False, "nhead": 2},
    "fast": {"shared_projection": True},
    "fast, no norm": {"shared_projection": True, "layer_norm": False},
    "other widths": {"local_dims": (12, 10), "summary_dims": (6, 4), "d_out": 5},
    "other depths": {"local_dims": (12,), "summary_dims": (6, 4, 8), "nhead": 2, "d_out": 6},
    "fast, narrow": {"shared_projection": True, "local_dims": (4,), "summary_dims": (4,)},
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def make(form, seed=0):
    torch.manual_seed(seed)
    cell = SummaryMixing(D, dropout=0.0, **form).double()
    for parameter in cell.parameters():  # biases and norms away from their special values
        nn.init.normal_(parameter, std=0.5)
    return cell


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


@every_form
@pytest.mark.parametrize("lengths", [None, [7, 4, 1], [7, 7, 0]], ids=str)
def test_outputs_and_gradients_equal_the_equations(form, lengths, assert_equal_to_reference):
    masks = {} if lengths is None else {"key_padding_mask": padding_of(lengths, 7)}
    assert_equal_to_reference(make(form), torch.randn(3, 7, D).double(), **masks)


@every_form
def test_one_frame(form, assert_equal_to_reference):
    assert_equal_to_reference(make(form), torch.randn(2, 1, D).double())


@every_form
@pytest.mark.parametrize("kind", ["bool", "float", "batched"])
def test_attention_masks_equal_the_equations(form, kind, assert_equal_to_reference):
    torch.manual_seed(1)
    mask = torch.rand(2, 6, 6) < 0.5 if kind == "batched" else torch.rand(6, 6) < 0.5
    mask[..., 2, :] = True  # a frame that sees nothing
    if kind == "float":
        mask = torch.zeros(6, 6).masked_fill(mask, -math.inf)
    masks = {"attn_mask": mask, "key_padding_mask": padding_of([6, 4], 6)}
    assert_equal_to_reference(make(form), torch.randn(2, 6, D).double(), **masks)


def test_a_causal_mask_hides_the_future():
    cell, x = make({}), torch.randn(1, 9, D).double()
    causal = torch.ones(9, 9).triu(1).bool()
    whole = cell(x, attn_mask=causal)[0]
    torch.testing.assert_close(cell(x[:, :5], attn_mask=causal[:5, :5])[0], whole[:, :5])


@pytest.mark.parametrize("form", ["standard", "four heads", "fast"])
def test_permuting_frames_permutes_the_output(form):
    cell, x, order = make(FORMS[form]), torch.randn(2, 11, D).double(), torch.randperm(11)
    torch.testing.assert_close(cell(x[:, order])[0], cell(x)[0][:, order])


@every_form
@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_batch_is_its_utterances_one_by_one(form, lengths, seed):
    cell, frames = make(form, seed), max(lengths)
    x = torch.randn(len(lengths), frames, D).double()
    together = cell(x, key_padding_mask=padding_of(lengths, frames))[0]
    for row, length in enumerate(lengths):
        alone = cell(x[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-12, rtol=1e-10)
        assert not together[row, length:].any()


@every_form
@pytest.mark.parametrize("garbage", [1e30, math.inf, math.nan])
def test_what_stands_in_the_padding_has_no_influence(form, garbage):
    cell, x = make(form), torch.randn(2, 6, D).double()
    mask = padding_of([6, 3], 6)
    clean = cell(x, key_padding_mask=mask)[0]
    spoilt = x.clone()
    spoilt[1, 3:] = garbage
    spoilt.requires_grad_()
    output = cell(spoilt, key_padding_mask=mask)[0]
    assert torch.equal(output, clean)
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in cell.parameters())
    assert spoilt.grad.isfinite().all() and not spoilt.grad[1, 3:].any()


@every_form
def test_a_row_of_padding_alone_is_zero_with_finite_gradients(form):
    cell, x = make(form), torch.randn(2, 5, D).double().requires_grad_()
    output = cell(x, key_padding_mask=padding_of([5, 0], 5))[0]
    assert not output[1].any() and output[0].any()
    output.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in cell.parameters())


def test_the_summary_before_its_norm_is_zero_without_a_valid_frame():
    cell = make({"local_branch": False})
    seen = []
    cell.summary_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    cell(torch.randn(1, 4, D).double(), key_padding_mask=torch.ones(1, 4, dtype=torch.bool))
    assert not seen[0].any()


def test_lite_drops_its_output_in_training_alone():
    mixer = SummaryMixing(16, local_branch=False, layer_norm=False, dropout=0.5)
    x = torch.rand(2, 500, 16)
    dropped, whole = mixer(x)[0], mixer.eval()(x)[0]
    kept = dropped != 0
    assert 0.45 < kept.double().mean() < 0.55
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])
    assert (whole != 0).all()


@pytest.mark.parametrize("form", ["standard", "four heads", "lite", "fast"])
@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_autocast_is_near_float32_over_2000_frames(form, masked):
    torch.manual_seed(0)
    cell, x = SummaryMixing(64, dropout=0.0, **FORMS[form]), torch.randn(2, 2000, 64) + 1.0
    masks = {"key_padding_mask": padding_of([2000, 1500], 2000)} if masked else {}
    with torch.no_grad():
        exact = cell(x, **masks)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = cell(x, **masks)[0].float()
    assert (rough - exact).norm() / exact.norm() < 1e-2


@pytest.mark.parametrize("heads", [1, 4])
def test_under_autocast_a_layer_of_gelu_has_the_gradients_of_its_two_steps(heads):
    torch.manual_seed(0)
    layer, x = GroupedLinear(64, 32, heads), torch.randn(heads, 200, 64 // heads).bfloat16()
    direction, gradients = torch.randn(heads, 200, 32 // heads).bfloat16(), []
    x.requires_grad_()
    for run in (lambda: layer(nn.functional.gelu(x)), lambda: layer.of_gelu(x)):
        with torch.autocast("cpu", torch.bfloat16):
            output = run()
        gradients.append(torch.autograd.grad(output, (x, *layer.parameters()), direction))
    for expected, recomputed in zip(*gradients):
        torch.testing.assert_close(recomputed, expected)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_layer_of_gelu_has_first_and_second_derivatives(heads, approximate):
    torch.manual_seed(0)
    layer = GroupedLinear(4, 6, heads).double()
    x = torch.randn(heads, 3, 4 // heads).double().requires_grad_()
    expected = layer(nn.functional.gelu(x, approximate=approximate))
    torch.testing.assert_close(layer.of_gelu(x, approximate), expected)
    inputs = (x, layer.weights, layer.biases)

    def run(*_):  # the checks change the inputs in place
        return layer.of_gelu(x, approximate)

    assert torch.autograd.gradcheck(run, inputs) and torch.autograd.gradgradcheck(run, inputs)


def test_half_precision_sums_do_not_overflow():
    cell = SummaryMixing(D, local_branch=False, layer_norm=False, activation=nn.Identity)
    with torch.no_grad():
        for layer in (cell.first, *cell.summary_layers):
            layer.weights.copy_(torch.eye(D)[None])
    x = torch.full((1, 5000, D), 100.0, dtype=torch.float16)  # their sum is 500,000
    torch.testing.assert_close(cell.half().eval()(x)[0], x)


@every_form
@pytest.mark.parametrize("masked", [False, True])
def test_no_tensor_is_made_on_the_wrong_device(form, masked):
    with FakeTensorMode(), torch.device("cuda"):
        cell = SummaryMixing(D, **form)
        x = torch.randn(2, 6, D)
        masks = {}
        if masked:
            masks = {
                "key_padding_mask": torch.zeros(2, 6, dtype=torch.bool),
                "attn_mask": torch.zeros(6, 6, dtype=torch.bool),
            }
        output = cell(x, **masks)[0]
    assert output.device.type == "cuda"


@every_form
def test_the_forward_pass_is_one_graph_without_host_synchronisation(form):
    cell = make(form).eval()
    x, mask = torch.randn(2, 6, D).double(), padding_of([6, 3], 6)
    program = torch.export.export(cell, (x,), {"key_padding_mask": mask}, strict=True)
    torch.testing.assert_close(
        program.module()(x, key_padding_mask=mask)[0], cell(x, key_padding_mask=mask)[0]
    )


def test_dropout_acts_on_what_enters_the_combiner_and_only_in_training():
    torch.manual_seed(0)
    cell, x = SummaryMixing(D, dropout=0.5), torch.randn(4, 50, D)
    assert torch.equal(cell.eval()(x)[0], cell(x)[0])
    kept = []
    cell.dropout.register_forward_hook(lambda _, __, output: kept.append(output))
    assert not torch.equal(cell.train()(x)[0], cell(x)[0])
    shapes = {tuple(k.shape) for k in kept}
    assert shapes == {(4, 1, D), (4, 50, D)}
    assert 0.3 < sum((k == 0).float().mean().item() for k in kept) / len(kept) < 0.7


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_are_initialised_by_their_own_fans(heads):
    torch.manual_seed(0)
    layer = GroupedLinear(512, 512 + 256, heads, parts=(512, 256))
    first, second = layer.weights.split([512 // heads, 256 // heads], dim=2)
    assert first.std().item() == pytest.approx(math.sqrt(2 / (1024 / heads)), rel=0.02)
    assert second.std().item() == pytest.approx(math.sqrt(2 / (768 / heads)), rel=0.02)
    x = join_heads(layer(split_heads(torch.randn(100, 512), heads)))
    assert 0.8 < x.std().item() < 1.3


def test_grouped_linear_is_block_diagonal():
    layer = GroupedLinear(4, 6, heads=2)
    x = torch.randn(3, 4)
    output = join_heads(layer(split_heads(x, 2)))
    x[:, :2] += 1.0
    changed = join_heads(layer(split_heads(x, 2)))
    assert torch.equal(output[:, 3:], changed[:, 3:]) and not torch.equal(output, changed)


def published_output(state, form, x):
    """h of one utterance x (T, D), from published weights and the paper's equations."""
    heads = form.get("nhead", 1)

    def apply(name, frame):
        if heads > 1:
            weights, biases = state[f"{name}.weights"], state[f"{name}.biases"]
            parts = frame.chunk(heads)
            return reference.gelu(torch.cat([p @ w + b for p, w, b in zip(parts, weights, biases)]))
        return reference.gelu(state[f"{name}.w.weight"] @ frame + state[f"{name}.w.bias"])

    def norm(name, frame):
        scale = state.get(f"{name}.weight", state.get(f"{name}.norm.weight"))
        shift = state.get(f"{name}.bias", state.get(f"{name}.norm.bias"))
        if scale is None:
            return frame
        return nn.functional.layer_norm(frame, (D,), scale, shift)

    def f_and_s(frame):
        if form.get("shared_projection"):
            return apply("global_proj.linear", frame).chunk(2)
        s = apply("summary_proj.linear_0", apply("summary_proj.linear", frame))
        if not form.get("local_branch", True):
            return None, s
        return apply("local_proj.linear_0", apply("local_proj.linear", frame)), s

    pairs = [f_and_s(frame) for frame in x]
    s_bar = norm("summary_norm", torch.stack([s for _, s in pairs]).mean(0))
    if not form.get("local_branch", True):
        return s_bar.expand(len(x), D)
    merge = "summary_local_merging.linear.w"
    return torch.stack(
        [
            reference.gelu(
                state[f"{merge}.weight"] @ torch.cat([norm("local_norm", f), s_bar])
                + state[f"{merge}.bias"]
            )
            for f, _ in pairs
        ]
    )


PUBLISHED = [name for name in FORMS if not name.startswith("other") and "narrow" not in name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_compute_what_they_did(name):
    form = FORMS[name]
    state = published(form, torch.Generator().manual_seed(3), D)
    cell = make(form).eval()
    load_published_state_dict(cell, state)
    x = torch.randn(1, 5, D).double()
    torch.testing.assert_close(cell(x)[0][0], published_output(state, form, x[0]))


def test_published_weights_that_do_not_fit_are_refused_and_change_nothing():
    state = published({}, torch.Generator().manual_seed(3), D)
    cell = make({})
    before = {k: v.clone() for k, v in cell.state_dict().items()}
    with pytest.raises(ValueError, match="speaker.weight left over"):
        load_published_state_dict(cell, {**state, "speaker.weight": torch.zeros(1)})
    missing = {k: v for k, v in state.items() if "linear_0" not in k}
    with pytest.raises(ValueError, match="local_proj.linear_0.w.weight is not in the state dict"):
        load_published_state_dict(cell, missing)
    wide = {**state, "summary_local_merging.linear.w.weight": torch.zeros(D, 3 * D)}
    with pytest.raises(ValueError, match=r"combiner.weight is \(8, 24\).*\(8, 16\)"):
        load_published_state_dict(cell, wide)
    assert all(torch.equal(v, before[k]) for k, v in cell.state_dict().items())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nhead": 3}, "width 8 is not divisible by 3 heads"),
        ({"nhead": 0}, "nhead is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"local_dims": ()}, "local_dims is \\(\\), but must be one or more"),
        ({"summary_dims": (8, 0)}, "summary_dims is \\(8, 0\\)"),
        (
            {"local_branch": False, "summary_dims": (8, 4)},
            "summary_dims\\[-1\\] is 4 and d_out is 8",
        ),
        ({"local_branch": False, "local_dims": (8,)}, "there is no f"),
        ({"shared_projection": True, "nhead": 2}, "nhead is 2"),
        ({"shared_projection": True, "local_dims": (4,)}, "\\(4,\\) and summary_dims \\(8,\\)"),
        ({"decay": 0.0}, "decay is 0.0, but must be above 0"),
        ({"decay": 1.0}, "decay is 1.0, but must be above 0 and below 1"),
    ],
)
def test_wrong_options_raise_with_value_and_rule(options, message):
    with pytest.raises(ValueError, match=message):
        SummaryMixing(D, **options)


X = torch.zeros(2, 5, D)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"query": X[0]}, "must be \\(batch, time, 8\\)"),
        ({"query": X[..., :3]}, "\\(2, 5, 3\\), but must be \\(batch, time, 8\\)"),
        ({"query": X, "key": X.clone()}, "key is another tensor"),
        ({"query": X, "value": X.clone()}, "value is another tensor"),
        ({"query": X, "key_padding_mask": torch.zeros(2, 4).bool()}, "\\(2, 4\\).*\\(2, 5\\)"),
        ({"query": X, "attn_mask": torch.zeros(4, 5).bool()}, "attn_mask has shape \\(4, 5\\)"),
        ({"query": X, "window": 3}, "window is 3, but must be a Window"),
        (
            {"query": X, "window": CAUSAL, "attn_mask": torch.zeros(5, 5).bool()},
            "attn_mask is given too, but each says alone",
        ),
    ],
)
def test_wrong_inputs_raise_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        SummaryMixing(D)(**call)
