"""What is seen of the parts of SummaryMixing, and what their absence does, by other ways."""

import pytest
import torch
from torch import nn

from speechbrain_summarymixing.analysis.attention_rows import AttentionRows
from speechbrain_summarymixing.analysis.diagnostic_attention import DiagnosticAttention
from speechbrain_summarymixing.analysis.probe import Change, Probe
from speechbrain_summarymixing.analysis.summary_parts import (
    MEAN_SUMMARY,
    NO_LOCAL,
    NO_NEIGHBOURS,
    NO_SUMMARIES,
    NO_SUMMARY,
    SelectiveParts,
    SummaryParts,
)
from speechbrain_summarymixing.nnet.selective_summary_mixing import (
    SCORE_LIMIT,
    SelectiveSummaryMixing,
)
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D, H = 8, 2


def random(module):
    torch.manual_seed(0)
    for parameter in module.double().eval().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def selective(neighbours=3, summaries=2):
    return random(SelectiveSummaryMixing(D, nhead=H, neighbours=neighbours, summaries=summaries))


def frames(count):
    torch.manual_seed(1)
    return torch.randn(1, count, D, dtype=torch.float64)


@pytest.fixture(params=[6, 31], ids=["one block", "blocks"])
def x(request):
    return frames(request.param)


def hear(module, kind, *inputs):
    """The part that has heard inputs, and changed outputs by name, head of the last one."""
    probe = Probe(module, [kind])
    with torch.no_grad(), probe:
        for one in inputs:
            with probe.recording():
                module(one)
            probe.parts[0].observe()
    (part,) = probe.parts
    part.fit()

    def change(name, head=None):
        with torch.no_grad(), probe, probe.changing([Change("nothing"), Change(name, 0, head)]):
            unchanged, changed = module(inputs[-1].expand(2, -1, -1))[0]
        torch.testing.assert_close(unchanged, module(inputs[-1])[0][0])
        return changed

    return part, change


def test_neighbours_are_seen_as_attention_in_a_window_sees_them(x):
    mixer = selective(summaries=0)
    attention = DiagnosticAttention(D, nhead=H, furthest=3).double().eval()
    attention.load_state_dict(mixer.state_dict())
    rows = hear(attention, AttentionRows, x)[0].rows
    part, _ = hear(mixer, SelectiveParts, x)
    assert part.changes == ()
    profile = part.profile()
    for distance in range(-3, 4):
        diagonal = rows.diagonal(distance, 1, 2)  # (H, T - |distance|)
        inside = part.near[:, max(-distance, 0) : x.size(1) - max(distance, 0), 3 + distance]
        torch.testing.assert_close(inside, diagonal)
        torch.testing.assert_close(profile[:, 3 + distance], diagonal.mean(-1))
    for row in part.table():
        assert row["neighbours"] == pytest.approx(1.0)


def test_weights_of_neighbours_and_summaries_are_all_there_is(x):
    part, _ = hear(selective(), SelectiveParts, frames(5), x)
    torch.testing.assert_close(
        part.near.sum(-1) + part.selected.sum(-1), torch.ones(H, x.size(1)).double()
    )
    for row in part.table():
        whole = row["neighbours"] + row["summary_1"] + row["summary_2"]
        assert whole == pytest.approx(1.0) and 0.01 < row["neighbours"] < 0.99
        assert 0 <= row["distance"] <= 3
    assert part.picture().shape == (H, x.size(1), 7 + 2)


def test_without_summaries_it_is_attention_in_a_window(x):
    mixer = selective()
    _, change = hear(mixer, SelectiveParts, x)
    window = selective(summaries=0)
    window.load_state_dict(
        {name: value for name, value in mixer.state_dict().items() if "summary" not in name}
    )
    torch.testing.assert_close(change(NO_SUMMARIES), window(x)[0][0])
    single = [change(NO_SUMMARIES, head) - mixer(x)[0][0] for head in range(H)]
    torch.testing.assert_close(sum(single), window(x)[0][0] - mixer(x)[0][0])


@torch.no_grad()
def test_without_neighbours_the_summaries_are_left(x):
    mixer = selective()
    part, change = hear(mixer, SelectiveParts, x)
    _, keys, values = mixer.projection(x)[0].unflatten(1, (3, H, -1)).permute(1, 2, 0, 3)
    scores = keys @ mixer.summary_score.mT  # (H, T, M)
    weights = (SCORE_LIMIT * torch.tanh(scores / SCORE_LIMIT)).softmax(1)
    selected = part.selected / part.selected.sum(-1, keepdim=True)
    mixed = selected @ (weights.mT @ values)
    torch.testing.assert_close(
        change(NO_NEIGHBOURS), mixer.output(mixed.transpose(0, 1).flatten(1))
    )


CELLS = {
    "one head": {},
    "two heads": {"nhead": 2},
    "without norms": {"nhead": 2, "layer_norm": False},
    "decayed": {"nhead": 2, "decay": 0.9},
}


@pytest.fixture(params=CELLS)
def cell(request):
    return random(SummaryMixing(D, **CELLS[request.param]))


def without(cell, first, last):
    """The output for the last input with columns of the combiner at zero."""
    weight = cell.combiner.weight.detach().clone()
    with torch.no_grad():
        cell.combiner.weight[:, first:last] = 0.0
        output = cell(frames(7))[0][0]
        cell.combiner.weight.copy_(weight)
    return output


@torch.no_grad()
def test_a_part_that_is_taken_away_adds_nothing_in_the_combiner(cell):
    part, change = hear(cell, SummaryParts, frames(4), frames(7))
    torch.testing.assert_close(change(NO_LOCAL), without(cell, 0, D))
    torch.testing.assert_close(change(NO_SUMMARY), without(cell, D, 2 * D))
    each = D // cell.nhead
    for head in range(cell.nhead):
        first = D + head * each
        torch.testing.assert_close(change(NO_SUMMARY, head), without(cell, first, first + each))
    rows = part.table()
    assert [row["head"] for row in rows] == ([None, 1, 2] if cell.nhead == 2 else [1])
    assert all(0 < row["share"] < 1 and row["variation"] > 0 for row in rows)


@torch.no_grad()
def test_the_mean_summary_is_that_of_the_utterances():
    cell = random(SummaryMixing(D))
    _, change = hear(cell, SummaryParts, frames(7), frames(7))
    torch.testing.assert_close(change(MEAN_SUMMARY), cell(frames(7))[0][0])  # both alike
    part, change = hear(cell, SummaryParts, frames(4) + 1, frames(7))
    assert (change(MEAN_SUMMARY) - cell(frames(7))[0][0]).abs().max() > 1e-3
    assert part.table()[0]["variation"] > 1e-3


def test_sizes_are_norms_of_what_is_added():
    cell = random(SummaryMixing(D, nhead=2))
    seen = {}
    cell.local_norm.register_forward_hook(lambda _, x, y: seen.update(local=y))
    cell.summary_norm.register_forward_hook(lambda _, x, y: seen.update(summary=y[0]))
    part, _ = hear(cell, SummaryParts, frames(7))
    weights = dict(zip(("local", "summary"), cell.combiner.weight.split(D, 1)))
    for row, columns in zip(part.table(), (slice(None), slice(0, 4), slice(4, 8))):
        for name, weight in weights.items():
            added = seen[name][:, columns] @ weight[:, columns].mT
            assert row[name] == pytest.approx(float(added.detach().norm(dim=-1).mean()))
    assert part.profile() is None and part.picture() is None


@torch.no_grad()
def test_a_cell_without_a_local_branch():
    cell = random(SummaryMixing(D, local_branch=False))
    part, change = hear(cell, SummaryParts, frames(7))
    assert part.changes == (NO_SUMMARY, MEAN_SUMMARY)
    assert change(NO_SUMMARY).eq(0).all()
    (row,) = part.table()
    assert row["local"] == 0.0 and row["share"] == 1.0
