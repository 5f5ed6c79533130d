import csv
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis.decoding_cost import COLUMNS, Decoding
from speechbrain_summarymixing.analysis.systems import System

ROOT = Path(__file__).parents[2]
ATTENTION, SUMMARY = (
    str(ROOT / "hparams" / f"{name}.yaml") for name in ("sumformer", "sumformer_summary_decoder")
)
SMALL = (
    "d_model=16 num_encoder_layers=1 d_ffn=16 csgu_linear_units=16 nhead=2 kernel_size=3 n_mels=20 "
    "front_end_output=20 vocab_size=30"
).split() + ["front_end_channels=[4, 4]"]


@pytest.fixture
def run(capsys):
    """A function that runs ``benchmark decoding`` with small widths."""

    def command(*arguments):
        status = cli.main(["benchmark", "decoding", *map(str, arguments), "--set", *SMALL])
        return status, *capsys.readouterr()

    return command


def test_the_table_has_a_row_for_each_system_and_length(run):
    status, out, _ = run(ATTENTION, SUMMARY, "--steps", 20, 3, "--repetitions", 2, "--beam", 2)
    assert status == 0
    header, *table = out.splitlines()
    assert "torch" in header and "beam 2" in header and "d_model=16" in header
    rows = list(csv.DictReader(table))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["system"], row["search"], row["prefix"], row["frames"]) for row in rows] == [
        (system, search, prefix, prefix if search == "whole prefixes" else "1")
        for prefix in ("3", "20")
        for system in ("sumformer", "sumformer_summary_decoder")
        for search in ("whole prefixes", "steps")
    ]
    for row in rows:
        low, median, high = (float(row[key]) for key in ("low_ms", "step_ms", "high_ms"))
        assert 0 < low <= median <= high and row["repetitions"] == "2"


def test_the_work_of_a_step_does_not_grow_with_the_prefix():
    frames, flops = [], []
    decoding = Decoding(System(SUMMARY, settings=SMALL), seconds=1.0, beam=3)
    for prefix in (2, 10, 150):  # the first step of all projects the encoder's output
        decoding.go_to(prefix)
        frames.append(decoding.frames())
        with FlopCounterMode(display=False) as counter:
            decoding.step()
        flops.append(counter.get_total_flops())
    assert frames == [1, 1, 1]
    assert flops[0] == flops[1] == flops[2] > 0


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("path", [ATTENTION, SUMMARY])
def test_what_is_timed_is_the_step_of_the_search_at_that_prefix(path, whole):
    system, fed = System(path, settings=SMALL), []
    decoding = Decoding(system, seconds=1.0, beam=3, whole_prefixes=whole)
    decoding.searcher.model.custom_tgt_module.register_forward_pre_hook(
        lambda _, inputs: fed.append(inputs[0].long())
    )
    torch.manual_seed(0)
    decoding.go_to(7)
    decoding.step()
    decoding.step()  # from where the first one stood
    assert torch.equal(fed[-1], fed[-2])
    torch.manual_seed(0)
    tokens = torch.randint(30, (3, 7))
    prefix = fed[-1] if whole else torch.cat([*fed[:6], fed[-1]], 1)
    assert torch.equal(prefix, tokens)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--steps", "1"], ["no system", "hparams/sumformer.yaml"]),
        (["no/such.yaml"], ["no/such.yaml", "cannot read"]),
        ([SUMMARY, "--steps", "10", "0"], ["--steps has 0", "1 or more"]),
        ([SUMMARY, "--seconds", "0"], ["--seconds has 0", "0.04 or more"]),
        ([SUMMARY, "--beam", "0"], ["--beam has 0", "1 or more"]),
        ([SUMMARY, "--repetitions", "0"], ["--repetitions has 0", "1 or more"]),
        ([SUMMARY, "--device", "tpu"], ["--device is 'tpu'", "cpu or cuda"]),
    ],
)
def test_wrong_input_is_told(run, arguments, expected):
    status, out, error = run(*arguments)
    assert status == 1 and out == ""
    assert all(text in error for text in expected), error


def test_a_system_without_a_decoder_is_told(capsys):
    settings = [*SMALL, "num_decoder_layers=0"]
    assert cli.main(["benchmark", "decoding", ATTENTION, "--set", *settings]) == 1
    error = capsys.readouterr().err
    assert ATTENTION in error and "no beam search over a Transformer decoder" in error
