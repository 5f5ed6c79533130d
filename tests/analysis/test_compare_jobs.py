"""Processes that end, fail, are interrupted, and lose their parent; none of them trains."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from speechbrain_summarymixing.analysis import compare_jobs
from speechbrain_summarymixing.analysis.compare_jobs import LOG, Job, run_jobs

# A training that writes its state to <folder>/state, and at Ctrl-C saves, which takes it a while.
TRAINING = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path

    state, seconds, status = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    state.write_text(f"began {os.environ['OMP_NUM_THREADS']}")
    try:
        time.sleep(seconds)
    except KeyboardInterrupt:
        time.sleep(0.3)
        state.write_text("saved")
        sys.exit("stopped")
    state.write_text("done")
    sys.exit(f"\\nno luck\\n" if status else 0)
    """
)


@pytest.fixture
def training(tmp_path):
    """A function that returns a job, and the path of the script that it runs."""
    script = tmp_path / "train.py"
    script.write_text(TRAINING)

    def job(key, seconds=0.0, status=0):
        folder = tmp_path / key
        return Job(key, folder, [str(folder / "state"), str(seconds), str(status)])

    return job, str(script)


def wait_for(condition, seconds=30):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_process_that_fails_is_told_with_its_last_line_and_the_others_run(training, tmp_path):
    job, script = training
    ends = {}
    jobs = [job("good"), job("bad", status=1), job("late")]
    run_jobs(jobs, ends.__setitem__, side_by_side=2, train=script)
    assert ends["good"] is None and ends["late"] is None
    assert ends["bad"] == f"exit status 1: no luck (see {tmp_path / 'bad' / LOG})"
    assert (tmp_path / "late" / "state").read_text() == "done"


def test_a_process_trains_a_recogniser_where_no_other_script_is_named(tmp_path):
    ends = {}
    run_jobs([Job("one", tmp_path, ["no/such.yaml", "--device=cpu"])], ends.__setitem__)
    assert "no/such.yaml: cannot read this hyperparameter file" in ends["one"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_processes_save_and_starts_no_other(training, tmp_path, number):
    job, script = training
    ends = {}
    states = [tmp_path / key / "state" for key in ("one", "two")]

    def interrupt():
        wait_for(lambda: all(state.exists() and state.read_text() == "began 1" for state in states))
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            [job("one", 60), job("two", 60), job("three")],
            ends.__setitem__,
            side_by_side=2,
            train=script,
        )
    assert [state.read_text() for state in states] == ["saved"] * 2
    assert not (tmp_path / "three").exists() and ends == {}
    assert signal.getsignal(number) is handler


def test_processes_whose_parent_is_killed_save_too(training, tmp_path):
    job, script = training
    code = f"""
from pathlib import Path
from speechbrain_summarymixing.analysis.compare_jobs import Job, run_jobs
folder, arguments = Path({str(tmp_path / "one")!r}), {job("one", 60).arguments!r}
run_jobs([Job(0, folder, arguments)], print, train={script!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    state = tmp_path / "one" / "state"
    wait_for(lambda: state.exists() and state.read_text() == "began 1")
    parent.kill()
    parent.wait()
    wait_for(lambda: state.read_text() == "saved")


def test_a_killed_process_is_told(training, tmp_path, monkeypatch):
    job, script = training
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(compare_jobs.sys, "executable", str(killed))
    ends = {}
    run_jobs([job("one")], ends.__setitem__, train=script)
    assert ends["one"].startswith("killed by signal 9: no output")
