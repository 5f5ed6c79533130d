"""The processes of `compare`, some side by side, each of which trains one run.

Such a process is this module when it is run. It stops as by Ctrl-C, saving first, when its
standard input ends: where `run_jobs` closes it, or was killed.
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LOG = "output.txt"  # of a run's process, in its folder
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


class Job(NamedTuple):
    """A training to start.

    Arguments
    ---------
    key : object
        By which its end is told.
    folder : Path
        Where its output goes, `LOG`; made if it does not exist.
    arguments : list of str
        Of ``experiment.run``.
    """

    key: object
    folder: Path
    arguments: list


def run_jobs(jobs, ended, *, side_by_side=1, train=None, lock=None):
    """Runs processes to their end.

    Arguments
    ---------
    jobs : list of Job
    ended : callable
        Called with a job's key and why it failed, None if it did not, as each ends.
    side_by_side : int
        Processes at a time.
    train : str or None
        A ``train.py`` to run; None trains by each system's key ``task``.
    lock : int or None
        A file descriptor that the processes inherit, and hold while they run.

    Raises
    ------
    KeyboardInterrupt
        After SIGINT or SIGTERM, when all processes have saved and ended. A second one stops them
        at once, a third kills them.
    """
    waiting, running = deque(jobs), {}
    with _counted_interrupts() as interrupts:
        while (waiting or running) and not interrupts:
            while waiting and len(running) < side_by_side:
                job = waiting.popleft()
                running[_start(job, train, lock)] = job
            _collect(running, ended)
            time.sleep(0.1)
        if not interrupts:
            return
        for process in running:
            process.stdin.close()
        told = 1
        while running:
            for process in running if len(interrupts) > told else ():
                process.send_signal(signal.SIGINT if told == 1 else signal.SIGKILL)
            told = max(told, len(interrupts))
            _collect(running, ended, stopping=True)
            time.sleep(0.1)
    raise KeyboardInterrupt


@contextmanager
def _counted_interrupts():
    """Gives a list that grows by each SIGINT and SIGTERM."""
    signals, came = (signal.SIGINT, signal.SIGTERM), []
    before = [signal.signal(number, lambda number, _: came.append(number)) for number in signals]
    try:
        yield came
    finally:
        for number, handler in zip(signals, before):
            signal.signal(number, handler)


def _start(job, train, lock):
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder / LOG, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __spec__.name, train or "", *job.arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **ONE_THREAD},
            start_new_session=True,  # Ctrl-C in a terminal is the parent's to pass on, once
            pass_fds=() if lock is None else (lock,),
        )


def _collect(running, ended, *, stopping=False):
    """Takes the processes that have ended out of ``running``, and tells of them."""
    for process in [process for process in running if process.poll() is not None]:
        job = running.pop(process)
        if not process.stdin.closed:
            process.stdin.close()
        if process.returncode == 0:
            ended(job.key, None)
        elif not stopping:
            ended(job.key, _reason(process.returncode, job.folder / LOG))


def _reason(status, log):
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    how = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
    return f"{how}: {lines[-1].strip() if lines else 'no output'} (see {log})"


def _stop_with_the_input():
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _train(train, arguments):
    """The work of a process that `run_jobs` starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" lets it be ignored
    threading.Thread(target=_stop_with_the_input, daemon=True).start()
    if not train:
        from speechbrain_summarymixing.tasks.train import train as train_by_task

        train_by_task(arguments)
        return
    sys.argv = [train, *arguments]
    sys.path[0] = str(Path(train).absolute().parent)
    runpy.run_path(train, run_name="__main__")


if __name__ == "__main__":
    _train(sys.argv[1], sys.argv[2:])
