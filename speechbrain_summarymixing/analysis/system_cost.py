"""Time and peak memory of whole encoders against audio length, systems side by side.

What is measured is the encoder from front-end output on. Times are of one process that runs the
systems in turn; memory is of a fresh process for each point, which this module is when it is run.
A point that does not fit in memory or in the time budget is told, and never estimated.
"""

import json
import os
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy
import torch

from speechbrain_summarymixing.analysis.measuring import (
    is_out_of_memory,
    peak_growth_mb,
    seconds_of,
)
from speechbrain_summarymixing.analysis.systems import System

COLUMNS = (
    *("system", "what", "seconds", "median_s", "low_s", "high_s", "real_time_factor"),
    *("peak_MB", "repetitions", "parameters"),
)
SECONDS = (10.0, 30.0, 60.0, 150.0, 300.0, 600.0)
WHAT = ("inference", "training")
OUT_OF_MEMORY = "out of memory (an allocation failed or the process was killed): no figures"
WARM_UP_SECONDS = 0.4  # of audio, before memory is measured
# glibc then returns what is freed at once, and the resident set is what is in use
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class NotRun(NamedTuple):
    """A point without figures, or without times, and why."""

    system: str
    what: str
    seconds: float
    reason: str

    def __str__(self):
        return f"{self.system}, {self.what}, {self.seconds:g} s: {self.reason}"


def system_cost(
    systems,
    *,
    seconds=SECONDS,
    what=WHAT,
    batch=1,
    repetitions=5,
    budget=120.0,
):
    """Measures each system at each length, the shortest first.

    Arguments
    ---------
    systems : list of System
    seconds : sequence of float
        Lengths of audio.
    what : sequence of str
        "inference" (no gradients), "training" (forward and backward of the outputs' sum).
    batch : int
        Utterances of that length at once.
    repetitions : int
        Timed runs of each point, after a warm-up; the systems take turns.
    budget : float
        Seconds. Where a system's run takes longer, its longer lengths are left out.

    Yields
    ------
    dict or NotRun
        A row with the `COLUMNS`: quartiles of the time in seconds, time over seconds of audio,
        peak memory in MB (see `peak_memory`), the encoder's parameters. Or why there is none. A
        row that ran out of memory while it was timed has None for times, and a NotRun follows.
    """
    for kind in what:
        stopped = {}  # system's name -> why
        for length in sorted(seconds):
            peaks = {}
            for system in systems:
                if system.name not in stopped:
                    peak = peak_memory(system, kind, length, batch=batch)
                    if peak is not None:
                        peaks[system.name] = peak
                        continue
                    stopped[system.name] = f"not run: out of memory at {length:g} s"
                    reason = OUT_OF_MEMORY
                else:
                    reason = stopped[system.name]
                yield NotRun(system.name, kind, length, reason)
            running = [system for system in systems if system.name in peaks]
            times = interleaved_times(running, kind, length, batch=batch, repetitions=repetitions)
            for system in running:
                measured = times[system.name]
                yield _row(system, kind, length, batch, peaks[system.name], measured)
                if measured is None:
                    stopped[system.name] = f"not run: out of memory at {length:g} s"
                    yield NotRun(system.name, kind, length, "out of memory while timed: no times")
                elif (run := numpy.median(measured)) > budget:
                    stopped[system.name] = (
                        f"not run: a run of {length:g} s took {run:.3g} s, over the budget of "
                        f"{budget:g} s (--budget)"
                    )


def interleaved_times(systems, what, seconds, *, batch=1, repetitions=5):
    """Times systems in turn, after a warm-up of each.

    Returns
    -------
    dict
        For each system's name the seconds of its repetitions, or None if memory ran out.
    """
    times = {system.name: [] for system in systems}
    for _ in range(1 + repetitions):
        for system in systems:
            if times[system.name] is None:
                continue
            try:
                x = system.random_input(seconds, batch)
                run = seconds_of(lambda: system.step(what, x), system.device)  # noqa: B023
                times[system.name].append(run)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                times[system.name] = None
            x = None
            system.forget_gradients()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the processes that measure memory need it
    return {name: runs if runs is None else runs[1:] for name, runs in times.items()}


def peak_memory(system, what, seconds, *, batch=1):
    """Measures one run's peak memory in a fresh process.

    On the CPU it is how far the peak resident set grows beyond weights and libraries, after a
    warm-up at a tiny length; a training step's gradients count. On CUDA it is all that torch
    allocated at the peak, weights and gradients included.

    Arguments
    ---------
    system : System
    what : str
        "inference" or "training".
    seconds : float
        Length of audio.
    batch : int

    Returns
    -------
    float or None
        In MB (10^6 bytes); None if memory ran out or the process was killed for it.
    """
    how = {key: getattr(system, key) for key in ("path", "settings", "device", "precision")}
    task = {"system": how, "what": what, "seconds": seconds, "batch": batch}
    child = subprocess.run(
        [sys.executable, "-m", __spec__.name],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env={**os.environ, **MALLOC},
    )
    if child.returncode == -signal.SIGKILL:
        return None
    if child.returncode != 0:
        raise RuntimeError(f"measuring {system.name} failed ({child.returncode}):\n{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])["peak_MB"]


def _measure_memory(task):
    """The work of the process that `peak_memory` starts; returns MB, None if memory ran out."""
    try:
        system = System(**task["system"])
        system.step(task["what"], system.random_input(WARM_UP_SECONDS, task["batch"]))
        system.forget_gradients()

        def run():
            system.step(task["what"], system.random_input(task["seconds"], task["batch"]))

        return peak_growth_mb(run, system.device)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _row(system, what, seconds, batch, peak, times):
    low, median, high = (
        (None,) * 3 if times is None else map(float, numpy.percentile(times, (25, 50, 75)))
    )
    factor = None if median is None else median / (seconds * batch)
    repetitions = 0 if times is None else len(times)
    values = (system.name, what, seconds, median, low, high, factor)
    return dict(zip(COLUMNS, (*values, peak, repetitions, system.parameters)))


if __name__ == "__main__":
    print(json.dumps({"peak_MB": _measure_memory(json.load(sys.stdin))}))
