import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.models.transformer.Transformer import (
    TransformerDecoder,
    get_lookahead_mask,
)
from speechbrain.nnet.attention import MultiheadAttention
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.stepping_decoder import CrossAttention, DecoderState
from speechbrain_summarymixing.lobes.summary_decoder import CausalSummaryMixing, SummaryDecoder
from speechbrain_summarymixing.nnet import reference
from speechbrain_summarymixing.nnet.summaries import CAUSAL
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16
pre_and_post_norm = pytest.mark.parametrize("normalize_before", [True, False])


def decoder(layers=2, seed=0, **options):
    torch.manual_seed(seed)
    net = SummaryDecoder(layers, D, nhead=4, d_ffn=24, **options).double().eval()
    for parameter in net.parameters():  # biases and norms away from their special values
        nn.init.normal_(parameter, std=0.3)
    return net


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


def steps(net, tokens, memory, padding=None, beams=1):
    """Outputs (N, U, D) and weights (N, U, T) of the tokens one by one, and the last state."""
    state, outputs, weights = net.start(memory, padding, beams), [], []
    for token in tokens.split(1, dim=1):
        output, weight, state = net.step(token, state)
        outputs.append(output)
        weights.append(weight)
    return torch.cat(outputs, 1), torch.cat(weights, 1), state


def test_the_cell_equals_the_causal_equations_whatever_the_mask():
    torch.manual_seed(0)
    cell = CausalSummaryMixing(D, dropout=0.0).double()
    x, padding = torch.randn(2, 7, D).double(), padding_of([7, 4], 7)
    expected = reference.summary_mixing(cell, x, padding, window=CAUSAL)
    for mask in (None, get_lookahead_mask(x)):
        output, state = cell(x, x, x, attn_mask=mask, key_padding_mask=padding, pos_embs=None)
        torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10)
        assert state is None


@pre_and_post_norm
def test_it_equals_speechbrains_decoder_with_a_masked_cell(normalize_before):
    net = decoder(normalize_before=normalize_before)
    plain = TransformerDecoder(
        2, 4, 24, d_model=D, activation=nn.GELU, normalize_before=normalize_before
    )
    for layer in plain.layers:
        layer.self_attn = SummaryMixing(D)
    plain.double().eval().load_state_dict(net.state_dict())
    tokens, memory = torch.randn(3, 9, D).double(), torch.randn(3, 12, D).double()
    masks = {
        "tgt_mask": get_lookahead_mask(tokens),
        "tgt_key_padding_mask": padding_of([9, 5, 1], 9),
        "memory_key_padding_mask": padding_of([12, 3, 8], 12),
    }
    output, _, weights = net(tokens, memory, **masks)
    expected, _, expected_weights = plain(tokens, memory, **masks)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(weights, expected_weights, atol=1e-12, rtol=1e-10)


@pre_and_post_norm
@settings(max_examples=20)
@given(
    layers=st.integers(1, 3),
    length=st.integers(1, 150),
    beams=st.integers(1, 3),
    frames=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_steps_equal_the_whole(normalize_before, layers, length, beams, frames, seed):
    net = decoder(layers, seed, normalize_before=normalize_before)
    tokens = torch.randn(beams * len(frames), length, D).double()
    memory, padding = torch.randn(len(frames), max(frames), D), padding_of(frames, max(frames))
    memory = memory.double()
    repeated, repeated_padding = (t.repeat_interleave(beams, 0) for t in (memory, padding))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        net, tokens, memory, repeated = (part.to(dtype) for part in (net, tokens, memory, repeated))
        with torch.no_grad():
            whole, _, weights = net(tokens, repeated, memory_key_padding_mask=repeated_padding)
            output, weight, state = steps(net, tokens, memory, padding, beams)
        torch.testing.assert_close(output, whole, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(weight, weights[-1], atol=tolerance, rtol=tolerance)
        assert state.tokens == length


def test_a_step_reads_one_token_and_a_state_that_does_not_grow(largest_tensor):
    net, memory = decoder(), torch.randn(2, 30, D).double()
    lengths, sizes = [], []
    for layer in net.layers:
        for part in (layer, layer.self_attn, layer.pos_ffn):
            part.register_forward_pre_hook(
                lambda _, inputs, named: lengths.append((*inputs, *named.values())[0].size(1)),
                with_kwargs=True,
            )
    state = net.start(memory, beams=3)
    with largest_tensor as largest:
        for _ in range(200):
            _, _, state = net.step(torch.randn(6, 1, D).double(), state)
            sizes.append(sum(t.numel() for t in tree_leaves(state) if torch.is_tensor(t)))
    assert set(lengths) == {1}
    assert len(set(sizes)) == 1
    assert largest.elements <= 6 * 64 * D  # a block of sums, of 6 hypotheses


def test_no_tensor_is_tokens_by_tokens(largest_tensor):
    net, length = decoder().float(), 3000
    tokens = torch.randn(1, length, D)
    mask = get_lookahead_mask(tokens)
    with largest_tensor as largest:
        output, _, _ = net(tokens.requires_grad_(), torch.randn(1, 5, D), tgt_mask=mask)
        output.sum().backward()
    assert largest.elements <= 100 * length


def test_the_memory_is_projected_when_it_starts_and_never_again(monkeypatch):
    net, memory = decoder(), torch.randn(2, 30, D).double()
    state = net.start(memory)
    monkeypatch.setattr(MultiheadAttention, "forward", None)
    monkeypatch.setattr(CrossAttention, "project", None)
    _, _, after = net.step(torch.randn(2, 1, D).double(), state)
    assert after.memories is state.memories


def test_permuted_hypotheses_go_on_as_their_predecessors():
    net, memory = decoder(), torch.randn(2, 30, D).double()
    tokens, index = torch.randn(6, 9, D).double(), torch.tensor([2, 2, 0, 5, 3, 5])
    _, _, state = steps(net, tokens[:, :8], memory, beams=3)
    newest = tokens[:, 8:]
    output, _, after = net.step(newest, state.permute(index))
    prefixes = torch.cat([tokens[index, :8], newest], 1)
    whole, _, _ = net(prefixes, memory.repeat_interleave(3, 0))
    torch.testing.assert_close(output, whole[:, -1:], atol=1e-10, rtol=1e-10)
    assert isinstance(after, DecoderState) and after.memories is state.memories


def test_a_later_token_changes_no_earlier_output():
    net, memory = decoder(), torch.randn(1, 10, D).double()
    tokens = torch.randn(1, 20, D).double()
    whole = net(tokens, memory)[0]
    for seen in (1, 7, 19):
        changed = tokens.clone()
        changed[:, seen:] += 1.0
        output = net(changed, memory)[0]
        torch.testing.assert_close(output[:, :seen], whole[:, :seen], atol=1e-12, rtol=0.0)
        assert (output[:, seen:] != whole[:, seen:]).any(2).all()


def test_padding_of_target_and_memory_has_no_influence():
    net, lengths, frames = decoder(), [9, 5, 1], [4, 12, 8]
    tokens, memory = torch.randn(3, 9, D).double(), torch.randn(3, 12, D).double()
    tokens[padding_of(lengths, 9)] = 1e9
    memory[padding_of(frames, 12)] = 1e9
    together, _, _ = net(
        tokens,
        memory,
        tgt_key_padding_mask=padding_of(lengths, 9),
        memory_key_padding_mask=padding_of(frames, 12),
    )
    for row, (length, frame) in enumerate(zip(lengths, frames)):
        alone, _, _ = net(tokens[row : row + 1, :length], memory[row : row + 1, :frame])
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-10, rtol=1e-10)


def test_every_parameter_learns():
    net = decoder(3).train()
    output, _, _ = net(torch.randn(2, 6, D).double(), torch.randn(2, 9, D).double())
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in net.named_parameters():
        if name.endswith("in_proj_bias"):  # softmax cancels the keys' part
            parts = parameter.grad.chunk(3)
            assert parts[0].abs().max() > 1e-9 and parts[2].abs().max() > 1e-9
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def model(**options):
    torch.manual_seed(0)
    small = {"nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 2, "d_ffn": 24}
    small.update(csgu_linear_units=24, kernel_size=3, d_model=D, summary_decoder=True)
    small.update(options)
    width = small["d_model"]
    return SummaryMixingASR(30, 12, token_mixer=lambda: SummaryMixing(width), **small).eval()


def test_in_a_model_the_cells_and_the_rest_have_their_own_initialisation():
    width = 128
    net = model(d_model=width, d_ffn=256)
    assert isinstance(net.decoder, SummaryDecoder) and len(net.decoder.layers) == 2
    for layer in net.decoder.layers:
        cell = layer.self_attn
        for weight in (*cell.first.weights.split(width, 2), cell.summary_layers[0].weights):
            assert weight.std().item() == pytest.approx(width**-0.5, rel=0.05)
        projection = layer.multihead_attn.att.in_proj_weight  # (3 D, D)
        assert projection.std().item() == pytest.approx((2 / (4 * width)) ** 0.5, rel=0.05)
        feed_forward = [m for m in layer.pos_ffn.modules() if isinstance(m, nn.Linear)]
        for linear in feed_forward:
            assert linear.weight.std().item() == pytest.approx((2 / 384) ** 0.5, rel=0.05)


def test_in_a_model_forward_and_decode_agree():
    net = model()
    src, tgt = torch.randn(3, 20, 12), torch.randint(1, 30, (3, 6))
    lengths = torch.tensor([1.0, 0.5, 0.75])
    encoded, decoded = net(src, tgt, lengths)
    prediction, weights = net.decode(tgt, encoded, torch.round(lengths * 20).int())
    torch.testing.assert_close(prediction, decoded)
    assert weights.shape == (3, 6, 20) and not weights[1, :, 10:].any()


def test_no_tensor_is_made_on_the_wrong_device():
    with FakeTensorMode(), torch.device("cuda"):
        net = model()
        src, tgt = torch.randn(2, 40, 12), torch.ones(2, 4, dtype=torch.long)
        encoded, decoded = net(src, tgt, torch.ones(2))
        state = net.decoder.start(encoded, torch.zeros(2, 40, dtype=torch.bool), beams=3)
        output, weights, state = net.decoder.step(torch.randn(6, 1, D), state)
        state = state.permute(torch.arange(6))
    tensors = [decoded, output, weights, *(t for t in tree_leaves(state) if torch.is_tensor(t))]
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


def test_sums_stay_exact_in_bfloat16_autocast():
    net = decoder(1).float()
    tokens, memory = torch.randn(1, 2000, D) + 1.0, torch.randn(1, 9, D)
    seen = []
    cell = net.layers[0].self_attn
    cell.summary_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
    with torch.no_grad():
        net(tokens, memory)
        with torch.autocast("cpu", torch.bfloat16):
            net(tokens, memory)
            _, _, state = steps(net, tokens, memory)
    exact, whole, stepped = seen[0], seen[1], torch.cat(seen[2:], 1)
    assert all(part.dtype == torch.float64 for sums in state.past for part in sums)
    for rough in (whole, stepped):  # a mean is rounded once to bfloat16, whatever its length
        assert ((rough - exact).norm(dim=2) / exact.norm(dim=2))[:, 100:].max() < 5e-3


def test_without_layers_there_is_no_decoder():
    net = SummaryMixingASR(
        30, 12, token_mixer=lambda: SummaryMixing(D), d_model=D, nhead=4, d_ffn=24,
        num_encoder_layers=1, num_decoder_layers=0, csgu_linear_units=24, summary_decoder=True,
    )  # fmt: skip
    assert not [name for name, _ in net.named_parameters() if name.startswith("decoder")]
