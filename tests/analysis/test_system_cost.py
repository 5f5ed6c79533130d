import csv
import struct
from pathlib import Path

import pytest

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis import system_cost
from speechbrain_summarymixing.analysis.system_cost import COLUMNS, peak_memory
from speechbrain_summarymixing.analysis.systems import System, load_systems
from speechbrain_summarymixing.errors import UserError

ROOT = Path(__file__).parents[2]
SUMFORMER, ATTENTION = (
    str(ROOT / "hparams" / f"{name}.yaml") for name in ("sumformer", "branchformer_attention")
)
SMALL = (
    "d_model=16 num_encoder_layers=1 d_ffn=16 csgu_linear_units=16 nhead=2 kernel_size=3 n_mels=20 "
    "front_end_output=20 vocab_size=30"
).split() + ["front_end_channels=[4, 4]"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs ``benchmark systems`` with small widths in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        status = cli.main(["benchmark", "systems", *map(str, arguments), "--set", *SMALL])
        return status, *capsys.readouterr()

    return command


def rows_of(text):
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


@pytest.mark.slow
def test_the_table_and_the_picture(run, tmp_path):
    status, out, _ = run(
        SUMFORMER, ATTENTION, "--seconds", 2, 1, "--what", "inference", "--repetitions", 3,
        "--csv", "costs.csv", "--plot", "costs.png",
    )  # fmt: skip
    assert status == 0
    assert (tmp_path / "costs.csv").read_text() == out
    assert {file.name for file in tmp_path.iterdir()} == {"costs.csv", "costs.png"}
    assert "torch" in out.splitlines()[0] and "d_model=16" in out.splitlines()[0]
    rows = rows_of(out)
    assert tuple(rows[0]) == COLUMNS
    assert [(row["system"], row["what"], row["seconds"]) for row in rows] == [
        ("sumformer", "inference", "1"),
        ("branchformer_attention", "inference", "1"),
        ("sumformer", "inference", "2"),
        ("branchformer_attention", "inference", "2"),
    ]
    for row in rows:
        low, median, high = (float(row[key]) for key in ("low_s", "median_s", "high_s"))
        assert 0 < low <= median <= high
        factor = median / float(row["seconds"])
        assert float(row["real_time_factor"]) == pytest.approx(factor, rel=1e-2)
        assert float(row["peak_MB"]) >= 0
        assert row["repetitions"] == "3"
    picture = (tmp_path / "costs.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width == 900 and 300 < height < 900


@pytest.mark.slow
def test_a_training_step_of_attention_needs_quadratic_memory_and_of_sumformer_linear():
    growth = {}
    for system, lengths in (
        (System(SUMFORMER, settings=SMALL), (200, 400)),
        (System(ATTENTION, settings=SMALL), (30, 60)),
    ):
        short, long = (peak_memory(system, "training", length) for length in lengths)
        growth[system.name] = long / short
    assert growth["sumformer"] == pytest.approx(2, rel=0.1)
    assert growth["branchformer_attention"] > 3


def test_a_run_out_of_memory_is_told_and_no_row(run):
    # so many bytes that no address space holds them: the allocation fails at once, everywhere
    status, out, _ = run(
        SUMFORMER, "--seconds", 1e13, 2e13, "--what", "training", "--plot", "x.png"
    )
    assert status == 0
    assert rows_of(out) == []
    assert "# sumformer, training, 1e+13 s: out of memory" in out
    assert "# sumformer, training, 2e+13 s: not run: out of memory at 1e+13 s" in out
    assert not Path("x.png").exists()


def test_a_killed_process_ran_out_of_memory(monkeypatch, tmp_path):
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(system_cost.sys, "executable", str(killed))
    assert peak_memory(System(SUMFORMER, settings=SMALL), "inference", 1) is None


def test_a_process_that_fails_otherwise_is_an_error(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(system_cost.sys, "executable", str(broken))
    with pytest.raises(RuntimeError, match=r"sumformer failed \(3\)[\s\S]*no such thing"):
        peak_memory(System(SUMFORMER, settings=SMALL), "inference", 1)


def test_times_that_ran_out_of_memory_are_empty_cells(run, monkeypatch):
    monkeypatch.setattr(system_cost, "peak_memory", lambda *_, **__: 1.5)

    def step(self, what, x):
        if x.size(1) > 25:
            raise MemoryError

    monkeypatch.setattr(System, "step", step)
    _, out, _ = run(SUMFORMER, "--seconds", 1, 2, 3, "--what", "inference", "--plot", "x.png")
    short, long = rows_of(out)
    assert short["median_s"] and short["repetitions"] == "5"
    assert (long["seconds"], long["median_s"], long["low_s"], long["peak_MB"]) == (
        "2", "", "", "1.5",
    )  # fmt: skip
    assert "2 s: out of memory while timed" in out and "3 s: not run: out of memory at 2 s" in out
    assert Path("x.png").is_file()


def test_over_the_budget_longer_lengths_are_not_run(run, monkeypatch):
    monkeypatch.setattr(system_cost, "peak_memory", lambda *_, **__: 1.5)
    status, out, _ = run(ATTENTION, SUMFORMER, "--seconds", 1, 2, "--budget", 1e-9)
    assert status == 0
    assert [(row["system"], row["what"], row["seconds"]) for row in rows_of(out)] == [
        ("branchformer_attention", "inference", "1"),
        ("sumformer", "inference", "1"),
        ("branchformer_attention", "training", "1"),
        ("sumformer", "training", "1"),
    ]
    for name in ("branchformer_attention", "sumformer"):
        for what in ("inference", "training"):
            assert f"# {name}, {what}, 2 s: not run: a run of 1 s took" in out
    assert "over the budget of 1e-09 s (--budget)" in out


def test_systems_of_one_name_are_told_apart_by_their_folders(tmp_path):
    (tmp_path / "parts").symlink_to(ROOT / "hparams" / "parts")
    other = tmp_path / "sumformer.yaml"
    other.write_text(Path(SUMFORMER).read_text())
    systems = load_systems([SUMFORMER, other, ATTENTION], settings=SMALL)
    assert [s.name for s in systems] == [SUMFORMER, str(other), "branchformer_attention"]


def test_parameters_are_those_of_the_encoder():
    one, two = (
        System(SUMFORMER, settings=[*SMALL, f"num_decoder_layers={n}"]).parameters for n in (1, 2)
    )
    assert one == two
    assert System(SUMFORMER, settings=[*SMALL, "num_encoder_layers=2"]).parameters > one


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--seconds", "1"], ["no system", "hparams/sumformer.yaml"]),
        (["no/such.yaml"], ["no/such.yaml", "cannot read"]),
        ([SUMFORMER, SUMFORMER], [SUMFORMER, "twice"]),
        ([SUMFORMER, "--seconds", "10", "0"], ["--seconds has 0", "0.04 or more"]),
        ([SUMFORMER, "--seconds", "-3"], ["--seconds has -3", "0.04 or more"]),
        ([SUMFORMER, "--repetitions", "0"], ["--repetitions has 0", "1 or more"]),
        ([SUMFORMER, "--batch", "0"], ["--batch has 0", "1 or more"]),
        ([SUMFORMER, "--budget", "0"], ["--budget is 0", "above 0"]),
        ([SUMFORMER, "--device", "tpu"], ["--device is 'tpu'", "cpu or cuda"]),
        ([SUMFORMER, "--csv", "no/folder/x.csv"], ["no/folder/x.csv", "cannot be written"]),
        ([SUMFORMER, "--csv", "."], ["--csv .", "cannot be written"]),
        ([SUMFORMER, "--plot", "no/folder/x.png"], ["no/folder/x.png", "cannot be written"]),
    ],
)
def test_wrong_input_is_told(run, arguments, expected):
    status, out, error = run(*arguments)
    assert status == 1 and out == ""
    assert all(text in error for text in expected), error


@pytest.mark.parametrize(
    "setting, expected",
    [
        ("widht=3", [SUMFORMER, "widht", "no such option"]),
        ("d_model", ["--set d_model", "key=value"]),
        ("d_model=[1", ["--set d_model=[1", "no YAML value"]),
        ("d_model=15", [SUMFORMER, "cannot be built", "d_model 15"]),
    ],
)
def test_a_wrong_setting_is_told_with_its_file(capsys, setting, expected):
    assert cli.main(["benchmark", "systems", SUMFORMER, "--set", setting]) == 1
    error = capsys.readouterr().err
    assert all(text in error for text in expected), error


def test_a_setting_goes_to_the_systems_that_have_it():
    summary, attention = load_systems([SUMFORMER, ATTENTION], settings=[*SMALL, "summaries=2"])
    assert summary.settings == [*SMALL, "summaries=2"] and attention.settings == SMALL
    assert {layer.mha_layer.summaries for layer in summary.transformer.encoder.layers} == {2}
    with pytest.raises(UserError, match="--set summaries: no such option in .*attention.yaml"):
        load_systems([ATTENTION], settings=["summaries=2"])


def test_without_a_front_end_a_system_sees_each_frame_of_the_features():
    contextnet = System(ROOT / "hparams/contextnet.yaml", settings=["num_encoder_layers=3"])
    assert contextnet.random_input(1.5).shape == (1, 150, 80)
    assert System(SUMFORMER, settings=SMALL).random_input(2).shape[1] == 50
