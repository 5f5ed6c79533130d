"""``summarymixing compare``: planned, trained, killed, continued, and told."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import tiny

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis import compare
from speechbrain_summarymixing.analysis.compare_plan import (
    Run,
    content_of,
    parse_corpus,
    parse_system,
    plan_runs,
)
from speechbrain_summarymixing.analysis.comparison import error_rates, paired_difference
from speechbrain_summarymixing.analysis.comparison_table import compare_runs
from speechbrain_summarymixing.errors import UserError

ROOT = Path(__file__).parents[2]
SUMFORMER, ATTENTION, CONFORMER, TRANSFORMER, CONTEXTNET = (
    str(ROOT / "hparams" / f"{name}.yaml")
    for name in (
        *("sumformer", "branchformer_attention", "conformer_summarymixing"),
        *("transformer_attention", "contextnet"),
    )
)
SMALL = [f"{key}={value}" for key, value in tiny.SMALL.items()]
NO_DATA = "none:train_csv=a,valid_csv=b,test_csv=c"  # enough for a plan

noises = tiny.noises


# ---- the plan


def test_a_system_is_a_file_with_a_name_and_settings():
    system = parse_system("hparams/sumformer.yaml")
    assert (system.name, system.file, system.settings) == (
        "sumformer", "hparams/sumformer.yaml", {},
    )  # fmt: skip
    system = parse_system("b=x/y.yaml:lr=0.001,speeds=[95, 100],train_splits=a,b, d_model=8")
    assert (system.name, system.file) == ("b", "x/y.yaml")
    assert system.settings == {
        "lr": "0.001", "speeds": "[95, 100]", "train_splits": "a,b", "d_model": "8",
    }  # fmt: skip
    assert parse_system("sumformer.yaml:lr=1").name == "sumformer"


def test_a_corpus_is_a_name_of_the_projects_or_says_which():
    assert parse_corpus("an4").settings == {"corpus": "an4"}
    small = parse_corpus("small:corpus=mini,mini_train_utterances=9")
    assert (small.name, small.settings["corpus"]) == ("small", "mini")
    assert "corpus" not in parse_corpus(NO_DATA).settings


def test_a_systems_settings_go_before_a_corpuss_and_those_before_all():
    runs = plan_runs(
        [parse_system(f"a={SUMFORMER}:lr=3"), parse_system(CONFORMER)],
        [parse_corpus(f"{NO_DATA},lr=2,weight_decay=2")],
        [5, 6],
        settings={"lr": "1", "weight_decay": "1", "dropout": "0", "num_encoder_layers": "1"},
        baseline="a",
    )
    assert [(run.system, run.seed) for run in runs] == [
        ("a", 5), ("conformer_summarymixing", 5), ("a", 6), ("conformer_summarymixing", 6),
    ]  # fmt: skip
    keys = ("lr", "weight_decay", "dropout")
    assert [runs[0].settings[key] for key in keys] == ["3", "2", "0"]
    assert [runs[1].settings[key] for key in keys] == ["2", "2", "0"]


def test_a_setting_is_for_the_systems_that_have_it(tmp_path):
    mine = tmp_path / "mine.yaml"
    text = Path(SUMFORMER).read_text().replace("!include:", f"!include:{ROOT}/hparams/")
    mine.write_text(text + "mine: 1\n")
    runs = plan_runs(
        [parse_system(SUMFORMER), parse_system(str(mine))],
        [parse_corpus(NO_DATA)],
        [1],
        settings={"mine": "2", "num_encoder_layers": "1"},
        baseline="sumformer",
    )
    assert ["mine" in run.settings for run in runs] == [False, True]


@pytest.mark.parametrize("file", [SUMFORMER, CONFORMER, TRANSFORMER])
def test_encoders_are_made_as_large_as_the_baselines(file):
    runs = plan_runs(
        [parse_system(f"a={file}"), parse_system(ATTENTION)],
        [parse_corpus(NO_DATA)],
        [1],
        settings={"num_encoder_layers": "1"},
        baseline="branchformer_attention",
        match_parameters=True,
    )
    parameters = [run.encoder_parameters for run in runs]
    assert parameters[0] == pytest.approx(parameters[1], rel=0.005)
    width = {SUMFORMER: "csgu_linear_units"}.get(file, "encoder_d_ffn")
    assert int(runs[0].settings[width]) != 576 and "d_ffn" not in runs[0].settings


@pytest.mark.parametrize(
    "system, expected",
    [
        (f"a={SUMFORMER}:csgu_linear_units=8", "csgu_linear_units of a, which is set to 8"),
        (
            f"{CONTEXTNET}:num_encoder_layers=9",
            "csgu_linear_units does not change the encoder of contextnet",
        ),
        (f"a={SUMFORMER}:d_model=288", "the encoder of a has"),
    ],
)
def test_what_cannot_be_matched_is_told(system, expected):
    with pytest.raises(UserError, match=expected):
        plan_runs(
            [parse_system(system), parse_system(ATTENTION)],
            [parse_corpus(NO_DATA)],
            [1],
            settings={"num_encoder_layers": "1"},
            baseline="branchformer_attention",
            match_parameters=True,
        )


def test_another_content_is_one_that_a_comment_does_not_make(tmp_path):
    part, file = tmp_path / "part.yaml", tmp_path / "system.yaml"
    part.write_text("b: 1\n")
    file.write_text("a: 1\nshared: !include:part.yaml\n    b: !ref <a>\n")
    before = content_of(file)
    file.write_text("a: 1  # one\n# shared\nshared: !include:part.yaml\n    b: !ref <a>\n")
    assert content_of(file) == before
    part.write_text("b: 2\n")
    assert content_of(file) != before


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([SUMFORMER, SUMFORMER], ["two of the systems are sumformer", "sumformer2=FILE.yaml"]),
        ([SUMFORMER, "--seeds", "1", "1"], ["two of the seeds are 1", "leave one out"]),
        ([SUMFORMER, "--corpora", "an4", "an4"], ["two of the corpora are an4"]),
        ([SUMFORMER, "--set", "no_such=1"], ["no_such: no such option", SUMFORMER]),
        ([f"a={SUMFORMER}:no_such=1"], ["--no_such: no such option"]),
        ([SUMFORMER, "--set", "lr"], ["--set lr", "must be key=value"]),
        ([SUMFORMER, "--set", "seed=1"], ["sets seed, which compare gives"]),
        ([SUMFORMER, "--set", "check=True"], ["sets check, which trains nothing"]),
        ([f"../x={SUMFORMER}"], ["cannot read"]),
        ([f".x={SUMFORMER}"], ["'.x' names a folder"]),
        (["a b.yaml:d_model=16"], ["'a b' names a folder"]),
        ([SUMFORMER, "--baseline", "other"], ["--baseline is other", "one of sumformer"]),
        ([SUMFORMER, "--jobs", "0"], ["--jobs is 0", "1 or more"]),
        ([SUMFORMER, "--corpora", "nowhere"], ["nowhere", "one of aishell, an4"]),
        ([f"a={SUMFORMER}:d_model=16,kernel_size=4"], ["cannot be built", "kernel_size is 4"]),
        ([f"a={CONFORMER}:encoder_d_ffn=x"], ["encoder_d_ffn is 'x'", "above 0"]),
        (["no/such.yaml"], ["no/such.yaml", "cannot read"]),
        ([SUMFORMER, "--train", "no.py"], ["--train no.py: no such file"]),
        (
            [SUMFORMER, "--corpora", "x:corpus=mini,data_folder=d",
             "y:corpus=mini,mini_train_utterances=9,data_folder=d"],
            ["the mini corpus in d", "another data_folder"],
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_told(arguments, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "speechbrain_summarymixing.analysis.compare_plan.manifests", lambda hparams: None
    )
    if not any(text.startswith("--corpora") for text in arguments):
        arguments = [*arguments, "--corpora", NO_DATA]
    assert cli.main(["compare", *arguments, "--folder", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert all(text in error for text in expected), error
    assert not (tmp_path / "out").exists()


# ---- from the first run to the table


TRAIN = """
import sys
import speechbrain.utils.logger

speechbrain.utils.logger.get_environment_description = lambda: ""  # asks pip, for seconds
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training.experiment import run

run(sys.argv[1:], ASR)
"""


def command(noises, folder, *systems):
    train = folder.with_name("train.py")
    train.write_text(TRAIN)
    csvs = ",".join(f"{part}_csv={noises}/{part}.csv" for part in ("train", "valid", "test"))
    options = ["--corpora", f"noises:{csvs}", "--device", "cpu", "--jobs", "2"]
    options += ["--train", str(train)]
    options += ["--folder", str(folder), "--set", *SMALL]
    return ["compare", *systems, "--seeds", "1", "2", "--baseline", "a", *options]


def finished(folder):
    """From each run's folder to when its results were written."""
    paths = folder.glob("*/*/*/results.json")
    return {str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def stopped_after_the_first(arguments, folder):
    """Starts a comparison in a process that gets SIGTERM when the first run is finished."""
    process = subprocess.Popen(
        [sys.executable, "-m", "speechbrain_summarymixing.cli", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    told = []
    for line in process.stderr:
        told.append(line)
        if "test WER" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stderr.read()
    assert process.wait(timeout=60) == 130, told
    return finished(folder)


@pytest.mark.slow
def test_a_comparison_is_stopped_and_continued(noises, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    systems = [f"a={SUMFORMER}", f"b={ATTENTION}:lr=0.01"]
    broken = f"broken={SUMFORMER}:vocab_size=5000"
    first = stopped_after_the_first(command(noises, folder, *systems, broken), folder)
    assert 1 <= len(first) < 4 and not (folder / "results.csv").exists()

    # the others are trained, though a system fails
    assert cli.main(command(noises, folder, *systems, broken)) == 1
    out, error = capsys.readouterr()
    assert "noises broken seed 1: failed, exit status 1: error: " in error and "vocab_size" in error
    everything = finished(folder)
    assert set(everything) == {f"noises/{s}/{seed}" for s in "ab" for seed in (1, 2)}
    assert first.items() <= everything.items()
    check_results(folder, out)
    assert (
        "vocab_size"
        in json.loads((folder / "comparison.json").read_text())["failed"]["noises broken seed 2"]
    )

    # all is there
    assert cli.main(command(noises, folder, *systems)) == 0
    assert finished(folder) == everything
    assert (folder / "table.md").read_text() == capsys.readouterr().out

    # a run of other settings is kept beside the one that is trained anew
    place = folder / "noises" / "b" / "2"
    stored = json.loads((place / "run.json").read_text())
    stored["settings"]["lr"] = "0.02"
    (place / "run.json").write_text(json.dumps(stored))
    started = []

    def stop(jobs, *_, **__):
        started.extend(jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_jobs", stop)
    assert cli.main(command(noises, folder, *systems)) == 130
    assert [job.folder for job in started] == [place]
    assert f"other settings (lr); the run before is now {place}.old1" in capsys.readouterr().err
    new = json.loads((place / "run.json").read_text())
    assert new["settings"]["lr"] == "0.01" and not new["finished"]
    assert finished(folder)["noises/b/2.old1"] == everything["noises/b/2"]


def check_results(folder, out):
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["system"], row["seed"]) for row in rows] == [
        ("a", "1"), ("b", "1"), ("a", "2"), ("b", "2"),
    ]  # fmt: skip
    assert (
        float(rows[1]["test_WER"])
        == json.loads((folder / "noises" / "b" / "1" / "results.json").read_text())["test"]["test"][
            "WER"
        ]
    )
    assert int(rows[0]["encoder_parameters"]) < int(rows[0]["parameters"])
    assert json.loads((folder / "results.json").read_text())[2]["seed"] == 2

    told = json.loads((folder / "comparison.json").read_text())
    assert told["baseline"] == "a" and told["threads_of_a_run"] == 1 and told["versions"]["torch"]
    counts = {name: ([], []) for name in "ab"}
    for name, seed in (("a", 1), ("a", 2), ("b", 1), ("b", 2)):
        with open(folder / "noises" / name / str(seed) / "errors_test.csv", newline="") as file:
            read = sorted(csv.DictReader(file), key=lambda row: row["ID"])
        for column, values in zip(("errors", "total"), counts[name]):
            values.append([float(row[column]) for row in read])
    a, b = told["comparison"]
    assert a["difference"] is None and b["seeds"] == [1, 2]
    wer = [float(row["test_WER"]) for row in rows if row["system"] == "b"]
    assert [b["mean"], b["min"], b["max"]] == pytest.approx([numpy.mean(wer), min(wer), max(wer)])
    assert error_rates(*counts["b"]) == pytest.approx(wer)
    assert b["difference"] == pytest.approx(b["mean"] - a["mean"])
    assert b["difference"] == pytest.approx(paired_difference(counts["b"], counts["a"])[0])
    assert b["difference_95"][0] <= b["difference"] <= b["difference_95"][1]
    assert float(b["steps_ratio"]["max"]) >= float(b["steps_ratio"]["mean"]) > 0
    assert set(b["steps_ratio"]["per_seed"]) <= {"1", "2"}

    assert out == (folder / "table.md").read_text()
    assert out.count("| noises | test |") == 2 and "| baseline |" in out
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for place in folder.glob("noises/[ab]/*"):
        assert (place / "pretrained" / "model.ckpt").is_file() and not (place / "save").exists()


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        arguments = [SUMFORMER, "--corpora", NO_DATA, "--folder", str(tmp_path / "out")]
        assert cli.main(["compare", *arguments]) == 1
    assert "another compare" in capsys.readouterr().err


def test_other_utterances_are_refused(tmp_path):
    runs = [Run("mini", name, 1, "x.yaml", "", {}, 9) for name in "ab"]
    for run, utterance in zip(runs, ("one", "two")):
        run.folder(tmp_path).mkdir(parents=True)
        text = f"ID,errors,total\nzero,0,1\n{utterance},1,2\n"
        (run.folder(tmp_path) / "errors_test.csv").write_text(text)
    with pytest.raises(UserError, match="tell of different utterances, such as one"):
        compare_runs(runs, tmp_path, "b")
