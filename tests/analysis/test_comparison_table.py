"""What `compare` makes of the files that runs write, which may be a program's of one's own."""

import json
from pathlib import Path

import pytest
import tiny

from speechbrain_summarymixing.analysis import compare
from speechbrain_summarymixing.analysis.compare_plan import Run
from speechbrain_summarymixing.errors import UserError

RESULTS = {
    "test": {"test": {"error": 25.0, "error_95": [0.0, 50.0]}},
    "parameters": 9,
    "optimizer_steps": 20,
    "train_seconds": 1.0,
}
WRITTEN = {
    "results.json": json.dumps(RESULTS),
    "errors_test.csv": "ID,errors,total\none,0,1\ntwo,1,3\n",
    "history.csv": "epoch,steps,valid_loss,valid_error\n1,10,2.0,50\n2,20,1.0,40\n",
}


@pytest.fixture
def compared(tmp_path, monkeypatch):
    """A function that compares systems a and b, of which a writes other files than it should.

    It returns the folders of the runs that were started, and why runs have failed.
    """
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    runs = [Run("own", name, 1, "x.yaml", "", {}, 9) for name in "ab"]
    monkeypatch.setattr(compare, "plan_runs", lambda *_, **__: runs)
    systems = [f"{name}={tiny.ROOT}/hparams/sumformer.yaml" for name in "ab"]

    def run(changed=(), train="train.py"):
        started = []

        def run_jobs(jobs, ended, **_):
            for job in jobs:
                files = {**WRITTEN, **(dict(changed) if job.folder.match("a/1") else {})}
                for name, text in files.items():
                    if text is not None:
                        (job.folder / name).write_text(text)
                started.append(str(job.folder))
                ended(job.key, None)

        monkeypatch.setattr(compare, "run_jobs", run_jobs)
        failed = compare.compare(systems, "out", corpora=["own"], train=train, progress=False)
        return started, {str(run): reason for run, reason in failed.items()}

    return run


def test_differences_and_ratios_are_the_systems_less_and_over_the_baselines(compared):
    """Of four words a has two wrong, and b one; a comes to b's loss of 1.0 in twice the steps."""
    slower = "epoch,steps,valid_loss,valid_error\n1,10,3.0,50\n2,20,2.0,40\n3,40,1.0,40\n"
    compared({"errors_test.csv": "ID,errors,total\none,1,1\ntwo,1,3\n", "history.csv": slower})
    rows = json.loads(Path("out/comparison.json").read_text())["comparison"]
    row, baseline = sorted(rows, key=lambda row: row["system"])
    assert (row["system"], row["mean"], baseline["mean"]) == ("a", 50.0, 25.0)
    assert row["difference"] == 25.0 and baseline["difference"] is None
    assert row["difference_seeds_95"] is None  # one seed
    assert (row["steps_ratio"]["max"], row["steps_ratio"]["mean"]) == (2.0, 2.0)
    assert "| +25.00 |" in Path("out/table.md").read_text()


def without(key):
    return json.dumps({name: value for name, value in RESULTS.items() if name != key})


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, "(No such file or directory)"),
        (without("optimizer_steps"), "(it has no optimizer_steps)"),
        ("{", "cannot be used (Expecting"),
        ("[]", "(it has no test, parameters"),
    ],
)
def test_a_run_without_results_has_failed_and_the_others_are_told(compared, text, expected):
    started, failed = compared({"results.json": text})
    assert len(started) == 2 and list(failed) == ["own a seed 1"]
    reason = failed["own a seed 1"]
    assert reason.startswith("wrote no results: out/own/a/1/results.json: ") and expected in reason
    assert "output.txt" in reason and "| own | test | b |" in Path("out/table.md").read_text()
    stored = [json.loads(Path(f"out/own/{name}/1/run.json").read_text()) for name in "ab"]
    assert [run["finished"] for run in stored] == [False, True]


@pytest.mark.parametrize(
    "name, text, expected, is_told",
    [
        ("history.csv", None, "No such file", False),
        ("history.csv", "steps,valid_loss,valid_error\n", "no steps, valid_loss", False),
        ("history.csv", "steps,valid_loss,valid_error\n9,,1\n", "to float: ''", False),
        ("history.csv", "steps,valid_loss,valid_F1\n9,1,1\n", "no valid_WER or valid_CER", True),
        ("errors_test.csv", "id,errors,total\none,0,1\n", "no ID", False),
        ("errors_test.csv", "ID,errors,total\none,0\n", "NoneType", False),
    ],
)
def test_a_file_that_cannot_be_used_is_named(compared, name, text, expected, is_told):
    with pytest.raises(UserError, match=f"^out/own/a/1/{name}: .*{expected}"):
        compared({name: text})
    assert Path("out/results.csv").is_file() and Path("out/table.md").is_file() == is_told


def test_a_program_is_known_again_by_another_path(compared, monkeypatch):
    monkeypatch.setattr(compare, "write_comparison", lambda *_: None)
    assert compared() == (["out/own/a/1", "out/own/b/1"], {})
    assert compared(train=str(Path("train.py").absolute())) == ([], {})
    for file in Path("out").glob("own/*/1/run.json"):  # as it was stored before
        file.write_text(json.dumps({**json.loads(file.read_text()), "train": "train.py"}))
    assert compared() == ([], {})
    Path("other.py").touch()
    assert len(compared(train="other.py")[0]) == 2


@pytest.mark.parametrize("text", ["[]", '{"seed": 1}', '{"settings": 1}'])
def test_results_beside_what_compare_has_not_written_are_kept(compared, text, monkeypatch, capsys):
    monkeypatch.setattr(compare, "write_comparison", lambda *_: None)
    compared()
    Path("out/own/b/1/run.json").write_text(text)
    assert compared() == (["out/own/b/1"], {})
    assert "the run before is now out/own/b/1.old1" in capsys.readouterr().err
    assert Path("out/own/b/1.old1/run.json").read_text() == text


def test_only_what_bars_the_folder_is_told_of_it(compared, monkeypatch):
    def other(*_):
        raise FileNotFoundError(2, "No such file", "other.txt")

    monkeypatch.setattr(compare, "_train", other)
    with pytest.raises(FileNotFoundError, match="other.txt"):
        compared()
    Path("out").rmdir()
    Path("out").touch()
    with pytest.raises(UserError, match="--folder out: cannot be used"):
        compared()
