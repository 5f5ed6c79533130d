"""The propositions of docs/theory.md, on random attention and on attention that was trained."""

import csv
import math
import sys
from pathlib import Path

import pytest
import torch

from speechbrain_summarymixing.analysis.bounds import (
    covariance_bound,
    entropy,
    entropy_bound,
    mean_row,
    replacement_errors,
    spread_bound,
    summaries_bound,
    tail_bound,
    tail_errors,
    total_variation,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import recall
from recall import Attention, Recall, train

ROUNDING = 1e-12


def random_case(seed):
    """Rows (2, T, T) from flat to nearly one-hot, weights of a mean (2, 1, T), values (2, T, E)."""
    draw = torch.Generator().manual_seed(seed)
    frames = int(torch.randint(2, 40, (), generator=draw))
    sharpness = 10 ** (3 * torch.rand((), generator=draw, dtype=torch.float64) - 1.5)
    scores, positions = (
        torch.randn(2, rows, frames, generator=draw, dtype=torch.float64) for rows in (frames, 1)
    )
    values = torch.randn(2, frames, 5, generator=draw, dtype=torch.float64)
    return (scores * sharpness).softmax(-1), positions.softmax(-1), values


@pytest.fixture(scope="module")
def trained_case():
    """The rows and values of attention that learnt to recall."""
    task = Recall(8)
    model = train(Attention, task, steps=300, seed=0)
    rows, values = model.mixer.double().rows_and_values(
        model.embed(task.batch(2, torch.Generator().manual_seed(1))[0]).double()
    )
    assert entropy(rows[:, 8:]).mean() < 0.8 * math.log(rows.shape[-1])  # it looks somewhere
    return rows, torch.full_like(rows[..., :1, :], 1 / rows.shape[-1]), values


@pytest.fixture(params=[*range(8), "trained"])
def case(request):
    if request.param == "trained":
        rows, weights, values = request.getfixturevalue("trained_case")
        return rows.detach(), weights, values.detach()
    return random_case(request.param)


def uniform(rows):
    return torch.full_like(rows[..., :1, :], 1 / rows.shape[-1])


def test_the_spread_and_the_covariance_bound_the_error(case):
    rows, weights, values = case
    errors = replacement_errors(rows, weights, values)
    assert (errors <= spread_bound(rows, weights, values) + ROUNDING).all()
    assert (errors <= covariance_bound(rows, weights, values) + ROUNDING).all()
    assert errors.max() > 0


def test_the_entropy_bounds_the_error_of_the_uniform_mean(case):
    rows, _, values = case
    errors = replacement_errors(rows, uniform(rows), values)
    bound = entropy_bound(rows, values)
    assert (errors <= bound + 1e-7).all()  # the root of a rounded zero
    assert (spread_bound(rows, uniform(rows), values) <= bound + 1e-7).all()  # Pinsker


def test_bounds_are_reached():
    """Two frames, a row on the first: the uniform mean is half of their distance away."""
    rows = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    values = torch.tensor([[[3.0], [-1.0]]], dtype=torch.float64)
    for bound in (spread_bound, covariance_bound):
        torch.testing.assert_close(bound(rows, uniform(rows), values).item(), 2.0)
    assert replacement_errors(rows, uniform(rows), values).item() == pytest.approx(2.0)
    weights = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    assert covariance_bound(rows, weights, values).item() == math.inf
    assert spread_bound(rows, weights, values).item() == pytest.approx(4.0)


def test_bounds_are_their_formulas():
    """By another way of computing each: none is looser than the proposition has it."""
    rows, weights, values = random_case(1)
    row, mean = rows.flatten(0, -3)[0][0], weights.flatten(0, -3)[0][0]  # (T,)
    value = values.flatten(0, -3)[0]  # (T, E)
    diameter = max(float((a - b).square().sum().sqrt()) for a in value for b in value)
    variation = float((row - mean).abs().sum()) / 2
    missing = math.log(len(row)) + float((row * row.log()).sum())
    centred = value - mean @ value
    covariance = sum(m * torch.outer(c, c) for m, c in zip(mean, centred))
    chi = float(((row - mean).square() / mean).sum())
    found = [
        bound.flatten(0, -2)[0][0].item()
        for bound in (
            spread_bound(rows, weights, values),
            entropy_bound(rows, values),
            covariance_bound(rows, weights, values),
        )
    ]
    largest = float(torch.linalg.eigvalsh(covariance)[-1])
    assert found == pytest.approx(
        [variation * diameter, math.sqrt(missing / 2) * diameter, math.sqrt(chi * largest)]
    )


def test_a_tail_without_a_mean_has_no_bound():
    rows = torch.full((4, 4), 0.25, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    bound = tail_bound(rows, weights, torch.full((4, 1), 5.0, dtype=torch.float64), 0)
    assert bound[0] == math.inf and bound[1:].isfinite().all()
    whole = tail_bound(rows, weights, torch.full((4, 1), 5.0, dtype=torch.float64), 3)
    assert whole.tolist() == [0.0] * 4  # all are neighbours


def test_in_float32_values_far_from_zero_have_their_distances():
    draw = torch.Generator().manual_seed(0)
    rows, values = torch.eye(60)[None], 1000 + 0.02 * torch.rand(1, 60, 8, generator=draw)
    found = spread_bound(rows, uniform(rows), values), entropy_bound(rows, values)
    rows, values = rows.double(), values.double()
    expected = spread_bound(rows, uniform(rows), values), entropy_bound(rows, values)
    torch.testing.assert_close(found, expected, check_dtype=False)


def test_by_definition_total_variation_is_the_largest_difference_of_a_set_of_frames():
    rows, weights, _ = random_case(3)
    rows, weights = rows[..., :6], weights[..., :6]
    rows, weights = rows / rows.sum(-1, keepdim=True), weights / weights.sum(-1, keepdim=True)
    sets = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    largest = ((rows - weights) @ sets.mT).abs().amax(-1)
    torch.testing.assert_close(total_variation(rows, weights), largest)


def test_no_constant_is_nearer_to_all_outputs_than_the_mean_rows(case):
    rows, weights, values = case
    outputs = rows @ values
    best = replacement_errors(rows, mean_row(rows), values).square().mean(-1)
    draw = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0):
        shift = scale * torch.randn(values[..., :1, :].shape, generator=draw, dtype=rows.dtype)
        other = (outputs - mean_row(rows) @ values - shift).square().sum(-1).mean(-1)
        assert (best < other).all()
        difference = other - best  # a parabola around it
        torch.testing.assert_close(difference, shift.square().sum((-2, -1)), rtol=1e-6, atol=1e-12)
    uniforms = replacement_errors(rows, weights, values).square().mean(-1)
    apart = ((mean_row(rows) - weights) @ values).square().sum((-2, -1))
    torch.testing.assert_close(uniforms, best + apart)  # variance and squared bias


@pytest.mark.parametrize("summaries", [1, 3])
def test_no_combination_of_summaries_is_nearer_than_the_singular_values_say(case, summaries):
    rows, _, _ = case
    bound = summaries_bound(rows, summaries)
    u, s, v = torch.linalg.svd(rows)
    kept = u[..., :summaries] * s[..., None, :summaries] @ v[..., :summaries, :]
    reached = (rows - kept).square().sum(-1).mean(-1).sqrt()
    torch.testing.assert_close(bound, reached)
    draw = torch.Generator().manual_seed(0)
    chosen = torch.randn(*rows.shape[:-1], summaries, generator=draw, dtype=rows.dtype).softmax(-1)
    means = torch.randn(*rows.shape[:-2], summaries, rows.shape[-1], generator=draw).double()
    distance = (rows - chosen @ means.softmax(-1)).square().sum(-1).mean(-1).sqrt()
    assert (distance >= bound - ROUNDING).all()


@pytest.mark.parametrize("neighbours", [0, 2, 100])
def test_with_exact_neighbours_only_the_tail_is_in_error(case, neighbours):
    rows, weights, values = case
    errors = tail_errors(rows, weights, values, neighbours)
    assert (errors <= tail_bound(rows, weights, values, neighbours) + ROUNDING).all()
    time = torch.arange(rows.shape[-1])
    near = (time[:, None] - time).abs() <= neighbours
    rest = weights.expand_as(rows).masked_fill(near, 0.0)
    rest = rest / rest.sum(-1, keepdim=True).clamp(min=1e-300)
    kept = rows.masked_fill(~near, 0.0)
    tail = 1 - kept.sum(-1, keepdim=True)
    by_hand = ((rows - kept - tail * rest) @ values).norm(dim=-1)
    torch.testing.assert_close(errors, by_hand, atol=1e-10, rtol=1e-9)
    if neighbours == 100:
        assert errors.max() == 0


def test_the_example_writes_its_table_and_picture(monkeypatch, capsys, tmp_path):
    options = ["--keys", "2", "4", "--steps", "10", "--seeds", "1", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["recall.py", *options])
    recall.main()
    with open(tmp_path / "recall.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(recall.MIXERS) * 2
    found = [
        float(r["right"]) for r in rows if (r["task"], r["mixer"]) == ("recall, 2 keys", "none")
    ]
    mean = f"{sum(found) / 2:.1f} ({min(found):.1f} to {max(found):.1f})"
    assert f"{mean} |\n| recall, 4 keys |" in capsys.readouterr().out
    assert (tmp_path / "recall.png").stat().st_size > 5000
