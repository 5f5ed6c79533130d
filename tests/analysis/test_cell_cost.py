import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis import cell_cost as cell_costs
from speechbrain_summarymixing.analysis.cell_cost import (
    COLUMNS,
    FORMS,
    bare_products,
    cell_cost,
)
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("nhead", [1, 4])
@pytest.mark.parametrize("dims", [(16, 16), (16,), (32, 16, 8)])
def test_products_are_those_of_the_cell(nhead, dims):
    cell, x = (
        SummaryMixing(16, nhead=nhead, local_dims=dims, summary_dims=dims),
        torch.rand(2, 50, 16),
    )
    with torch.no_grad():
        whole = flops(lambda: cell(x))
    of_the_mean = 2 * 2 * dims[-1] * 16  # the summary's part of c: one product for each utterance
    assert flops(bare_products(cell, x)) == whole - of_the_mean


@pytest.mark.parametrize(
    "form, train, over_ms", [("plain", False, 2.0), ("plain", True, 6.0), ("causal", True, 2.0)]
)
def test_a_ratio_is_over_three_products_in_training(form, train, over_ms, monkeypatch):
    times = itertools.cycle([0.012, 0.002])  # of the cell, and of what it is over
    monkeypatch.setattr(cell_costs, "seconds_of", lambda *_: next(times))
    row = cell_cost(form=form, nhead=2, frames=20, d_model=16, train=train, repetitions=3)
    assert (row["cell_ms"], row["over_ms"]) == (pytest.approx(12.0), pytest.approx(over_ms))
    assert row["ratio"] == pytest.approx(12.0 / over_ms)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_row_says_what_was_timed(form, train):
    row = cell_cost(form=form, nhead=2, frames=20, d_model=16, train=train, repetitions=2)
    assert tuple(row) == COLUMNS and row["form"] == form
    products = "3 x products" if train else "products"
    assert row["over"] == (products if form == "plain" else "plain cell")
    assert row["cell_ms"] > 0 and row["over_ms"] > 0
    assert row["ratio"] == pytest.approx(row["cell_ms"] / row["over_ms"])


def test_the_command_prints_a_table_and_its_machine(capsys):
    assert cli.main("benchmark cell --nhead 1 2 --frames 10 20 --repetitions 1".split()) == 0
    out = capsys.readouterr().out.splitlines()
    assert "cores" in out[0] and out[1].split(",") == list(COLUMNS)
    assert [line.split(",")[:3] for line in out[2:]] == [
        ["plain", "1", "10"], ["plain", "1", "20"], ["plain", "2", "10"], ["plain", "2", "20"],
    ]  # fmt: skip


def test_the_command_knows_every_form():
    with pytest.raises(SystemExit):
        cli.main("benchmark cell --form none".split())
    arguments = ["benchmark", "cell", "--form", *FORMS, "--nhead", "1", "--frames", "9"]
    assert cli.main([*arguments, "--repetitions", "1", "--d-model", "16"]) == 0


@pytest.mark.parametrize(
    "options, expected",
    [
        ("--frames 0", "frames is 0, but must be 1 or more"),
        ("--nhead 0", "nhead is 0, but must be 1 or more"),
        ("--nhead 3", "not divisible by 3 heads"),
        ("--d-model 0", "d_model is 0, but must be 1 or more"),
        ("--device foo", "--device is 'foo', but must be cpu or cuda"),
    ],
)
def test_what_cannot_be_is_said(capsys, options, expected):
    assert cli.main(["benchmark", "cell", *options.split()]) == 1
    assert expected in capsys.readouterr().err
