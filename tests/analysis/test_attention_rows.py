"""Rows of attention, seen and replaced in the attention of each library; their measures by hand."""

from functools import partial

import pytest
import torch
from speechbrain.nnet.attention import MultiheadAttention, RelPosEncXL, RelPosMHAXL, RoPEMHA
from swap_hosts import hugging_face, run_torch, torch_encoder
from torch import nn

from speechbrain_summarymixing.analysis.attention_rows import (
    DECAYED,
    MEAN_ROW,
    MEANS,
    RATES,
    REACH,
    UNIFORM,
    AttentionRows,
    by_distance,
    diagonality,
    means,
)
from speechbrain_summarymixing.analysis.diagnostic_attention import DiagnosticAttention
from speechbrain_summarymixing.analysis.probe import Change, Probe
from speechbrain_summarymixing.errors import UserError

D, H, T = 16, 2, 11


def relative():
    attention, positions = RelPosMHAXL(D, H), RelPosEncXL(D)
    return attention, lambda x: attention(x, x, x, pos_embs=positions(x))[0]


def causal():
    attention, positions = RelPosMHAXL(D, H), RelPosEncXL(D)
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    return attention, lambda x: attention(x, x, x, pos_embs=positions(x), attn_mask=mask)[0]


def of(make):
    attention = make()
    return attention, lambda x: attention(x, x, x)[0]


def of_torch(need_weights):
    attention = nn.MultiheadAttention(D, H, batch_first=True)
    return attention, lambda x: attention(x, x, x, need_weights=need_weights)[0]


def of_hugging_face(implementation):
    model = hugging_face("Wav2Vec2")
    model.config._attn_implementation = implementation
    attention = model.encoder.layers[0].attention
    return attention, lambda x: attention(x)[0]


ATTENTIONS = {
    "relative": relative,
    "causal": causal,
    "rotary": partial(of, partial(RoPEMHA, D, H)),
    "regular": partial(of, partial(MultiheadAttention, H, D)),
    "diagnostic": partial(of, partial(DiagnosticAttention, D, nhead=H)),
    "torch with weights": partial(of_torch, True),
    "torch without weights": partial(of_torch, False),
    "hugging face, eager": partial(of_hugging_face, "eager"),
    "hugging face, sdpa": partial(of_hugging_face, "sdpa"),
}


@pytest.fixture(params=ATTENTIONS)
def attention(request):
    torch.manual_seed(0)
    module, run = ATTENTIONS[request.param]()
    for parameter in module.eval().parameters():  # float32: SpeechBrain's softmax has no other
        nn.init.normal_(parameter, std=0.3)
    return request.param, module, run


def hear(module, run, x):
    with torch.no_grad(), Probe(module, [AttentionRows]) as probe, probe.recording():
        output = run(x)
    return probe, output


@torch.no_grad()
def test_what_is_seen_makes_the_own_output_and_means_are_what_they_say(attention):
    name, module, run = attention
    x = torch.randn(1, T, D)
    own = run(x)
    probe, output = hear(module, run, x)
    torch.testing.assert_close(output, own, rtol=0, atol=1e-5)
    (part,) = probe.parts
    assert part.heads == H and part.rows.shape == (H, T, T)
    torch.testing.assert_close(part.rows.sum(-1), torch.ones_like(part.rows[..., 0]))
    # the rows times the values are what enters the last transform: its outputs differ likewise
    part.observe()
    part.fit()
    changes = [Change("nothing"), *map(Change, MEANS)]
    changes += [Change(name, 0, head) for name in MEANS for head in range(H)]
    with probe, probe.changing(changes):
        outputs = run(x.expand(len(changes), -1, -1)) - own
    torch.testing.assert_close(outputs[0], torch.zeros_like(own[0]), rtol=0, atol=1e-5)
    whole, single = outputs[1:4], outputs[4:].view(3, H, T, D)
    torch.testing.assert_close(
        single.sum(1), whole, rtol=1e-5, atol=1e-5
    )  # one layer is linear in the rows of heads
    assert (single.flatten(2).norm(dim=-1) > 1e-3).all()
    weight = dict(module.named_parameters())
    transform = next(
        w for n, w in weight.items() if n.endswith(("out_proj.weight", "output.weight"))
    )
    for mean, difference in zip(MEANS, whole):
        rows = means(mean, part.rows, part.allowed, part.rates)
        changed = ((rows - part.rows) @ part.values).transpose(0, 1).flatten(1)
        torch.testing.assert_close(changed @ transform.mT, difference, rtol=1e-5, atol=1e-5)
    if name != "causal":
        constant = (whole[:1] + own).diff(dim=1)  # the uniform mean is the same for all
        torch.testing.assert_close(constant, torch.zeros_like(constant), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_later_batch_is_not_touched(attention):
    _, module, run = attention
    x = torch.randn(1, T, D)
    own = run(x)
    hear(module, run, x)
    assert torch.equal(run(x), own)
    assert torch.Tensor.softmax.__qualname__.endswith("softmax")
    assert "softmax" not in vars(torch.Tensor) and torch.backends.mha.get_fastpath_enabled()


@torch.no_grad()
def test_layers_of_torchs_encoder_are_told_in_their_order_past_its_fast_path():
    model = torch_encoder(True).double().eval()
    lengths = torch.tensor([T])
    probe, _ = hear(model, lambda x: run_torch(model, x, lengths), torch.randn(1, T, D).double())
    assert [part.name for part in probe.parts] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert [part.layer for part in probe.parts] == [0, 1]


def random_rows(heads=3, frames=9):
    torch.manual_seed(1)
    return torch.randn(heads, frames, frames, dtype=torch.float64).softmax(-1)


def test_diagonality_by_hand():
    rows = random_rows()
    expected = []
    for head in rows.tolist():
        centralities = []
        for i, row in enumerate(head):
            furthest = max(abs(i - j) for j in range(len(row)))
            centralities.append(1 - sum(a * abs(i - j) for j, a in enumerate(row)) / furthest)
        expected.append(sum(centralities) / len(centralities))
    torch.testing.assert_close(diagonality(rows), torch.tensor(expected, dtype=torch.float64))


def test_weights_by_distance_by_hand():
    rows = random_rows(frames=REACH + 3)
    weights, counts = by_distance(rows)
    for distance in (-REACH, -1, 0, 2, REACH):
        diagonal = rows.diagonal(distance, 1, 2)
        torch.testing.assert_close(weights[:, REACH + distance], diagonal.sum(-1))
        assert counts[:, REACH + distance].eq(diagonal.size(-1)).all()


@pytest.mark.parametrize("name", MEANS)
def test_means_sum_to_one_over_what_is_allowed(name):
    rows = random_rows()
    allowed = torch.ones_like(rows, dtype=torch.bool).tril()
    rates = torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)
    found = means(name, rows, allowed, rates)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(rows[..., 0]))
    assert found[~allowed].eq(0).all() and found[allowed].gt(0).all()
    if name == DECAYED:
        torch.testing.assert_close(found[1, 4, 2] / found[1, 4, 4], rates[1] ** 2)
        torch.testing.assert_close(found[2], means(UNIFORM, rows, allowed)[2])


def observed(*utterances):
    """A part that has seen (rows, values) of utterances."""
    part = AttentionRows("attention", nn.MultiheadAttention(D, H), None)
    for part.rows, part.values in utterances:
        part.allowed = torch.ones_like(part.rows, dtype=torch.bool)
        part.observe()
    part.fit()
    return part


def test_the_decay_of_rows_that_decay_is_found():
    rows = random_rows(2, 20)
    rates = torch.tensor([RATES[2], RATES[-1]], dtype=torch.float64)
    rows = means(DECAYED, rows, torch.ones_like(rows, dtype=torch.bool), rates)
    part = observed((rows, torch.randn(2, 20, 5)))
    decayed, uniform = part.table()
    assert decayed["decay"] == pytest.approx(RATES[2]) and uniform["decay"] == 1.0
    assert decayed["error_decayed"] < 1e-5 < 1e-2 < decayed["error_uniform"]
    assert uniform["error_uniform"] < 1e-5 and uniform["to_uniform"] < 1e-6
    assert uniform["entropy"] == pytest.approx(1.0) and uniform["diagonality"] < 0.55


def test_measures_are_over_all_utterances():
    values = torch.randn(3, 9, 4)
    one, other = random_rows(), torch.eye(9).expand(3, 9, 9)
    both = observed((one, values), (other, values))
    alone = [observed((rows, values)).table() for rows in (one, other)]
    for head, row in enumerate(both.table()):
        for name in ("diagonality", "entropy", "to_mean_row", "to_uniform"):
            mean = (alone[0][head][name] + alone[1][head][name]) / 2
            assert row[name] == pytest.approx(mean, rel=1e-5)
    outputs = torch.stack([one.float() @ values, other @ values])  # (2, H, T, E)
    varied = (outputs - outputs.mean(2, keepdim=True)).square().sum((0, 2, 3))
    expected = (varied / outputs.square().sum((0, 2, 3))).sqrt()
    found = [row["error_mean_row"] for row in both.table()]
    torch.testing.assert_close(torch.tensor(found), expected)
    assert both.table()[0]["head"] == 1 and set(both.table()[0]) == {"head", *both.columns}
    assert MEAN_ROW in both.changes


def test_causal_rows_are_compared_with_what_they_may_see():
    part = AttentionRows("attention", nn.MultiheadAttention(D, H), None)
    part.allowed = torch.ones(2, 6, 6, dtype=torch.bool).tril()
    part.rows = means(UNIFORM, part.allowed.double(), part.allowed)
    part.values = torch.randn(2, 6, 4)
    part.observe()
    part.fit()
    for row in part.table():
        assert row["entropy"] == pytest.approx(1.0) and row["to_uniform"] < 1e-6
        assert row["decay"] == 1.0 and row["error_uniform"] < 1e-6


class Odd(nn.MultiheadAttention):
    """Attention to twice as many frames, or whose softmax is lost."""

    def __init__(self, keys):
        super().__init__(D, H)
        self.keys = keys

    def forward(self, x):
        weights = (x @ x.repeat(1, self.keys, 1).mT).unsqueeze(1).softmax(-1)
        return torch.einsum("bhij,bje->bie", weights, x.repeat(1, self.keys, 1))


def test_rows_of_another_sequence_are_left_alone_and_lost_ones_are_told():
    probe, _ = hear(module := Odd(2).eval(), module, torch.randn(1, T, D))
    assert probe.parts == []
    probe, _ = hear(module := Odd(1).eval(), module, torch.randn(1, T, D))
    with pytest.raises(UserError, match="Odd, whose softmax is multiplied with nothing"):
        probe.parts[0].observe()
