"""The table and the picture of `system_cost`, for the command line."""

import contextlib
import csv
import os
import sys
from pathlib import Path

from tqdm import tqdm

from speechbrain_summarymixing.analysis.cost_plot import plot_costs
from speechbrain_summarymixing.analysis.measuring import check_device, machine
from speechbrain_summarymixing.analysis.system_cost import (
    COLUMNS,
    SECONDS,
    WHAT,
    NotRun,
    system_cost,
)
from speechbrain_summarymixing.analysis.systems import FRAMES_PER_SECOND, load_systems
from speechbrain_summarymixing.errors import UserError


def benchmark_systems(
    paths,
    *,
    settings=(),
    seconds=SECONDS,
    what=WHAT,
    batch=1,
    repetitions=5,
    budget=120.0,
    device="cpu",
    precision="fp32",
    csv_file=None,
    plot_file=None,
):
    """Measures systems, prints the table as CSV and writes it and a picture to files.

    Arguments
    ---------
    paths : sequence of str or Path
        Hyperparameter files, as ``train.py`` takes them.
    settings : sequence of str
        Options ``key=value`` over those of every file that has them.
    seconds, what, batch, repetitions, budget
        As in `system_cost`.
    device, precision : str
        As for `System`.
    csv_file, plot_file : str, Path or None
        Where the table and the picture (PNG) go. Rows are written as they come.

    Returns
    -------
    list of dict
        The table's rows.

    Raises
    ------
    UserError
        If there is no system, one cannot be loaded, a number is out of range or a file cannot be
        written.
    """
    _check_numbers(seconds=seconds, batch=batch, repetitions=repetitions, budget=budget)
    check_device(device)
    if plot_file is not None:
        check_folder(plot_file, "--plot")
    systems = load_systems(paths, settings=settings, device=device, precision=precision)
    seconds = sorted(set(seconds))
    results = system_cost(
        systems,
        seconds=seconds,
        what=what,
        batch=batch,
        repetitions=repetitions,
        budget=budget,
    )
    header = f"{machine(device)}; batch {batch}; {precision}; encoder"
    header += f"; {' '.join(settings)}" if settings else ""
    points = len(what) * len(seconds) * len(systems)
    with contextlib.ExitStack() as stack:
        outputs = [sys.stdout]
        if csv_file is not None:
            outputs.append(stack.enter_context(open_csv(csv_file)))
        rows = write_rows(results, COLUMNS, header, outputs, points)
    if plot_file is not None and rows:
        plot_costs(rows, plot_file)
    return rows


def write_rows(results, columns, header, outputs, points):
    """Writes results as they come to open files, and returns the rows among them."""
    rows = []
    with tqdm(results, total=points, unit="point", disable=None) as bar:
        for file in outputs:
            print(f"# {header}", ",".join(columns), sep="\n", file=file, flush=True)
        for result in bar:
            with bar.external_write_mode():
                for file in outputs:
                    if isinstance(result, NotRun):
                        print(f"# {result}", file=file, flush=True)
                    else:
                        csv.writer(file, lineterminator="\n").writerow(map(_text, result.values()))
                        file.flush()
            if not isinstance(result, NotRun):
                rows.append(result)
    return rows


def _text(value):
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_numbers(*, seconds, batch, repetitions, budget):
    if not seconds:
        raise UserError("--seconds is empty, but needs a length: give numbers such as 10 or 30")
    rules = [("seconds", length, 1 / FRAMES_PER_SECOND) for length in seconds]
    rules += [("batch", batch, 1), ("repetitions", repetitions, 1)]
    for name, value, least in rules:
        if not least <= value < float("inf"):
            raise UserError(f"--{name} has {value:g}, but must be {least:g} or more: change it")
    if not budget > 0:
        raise UserError(f"--budget is {budget:g}, but must be above 0 seconds: change it")


def check_folder(path, option):
    """Raises a `UserError` if a file, given by an option, cannot be written."""
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(
            f"{option} {path}: cannot be written, its folder must exist and be writable: "
            "give another path"
        )


def open_csv(path):
    """Returns the file of ``--csv``, open."""
    check_folder(path, "--csv")
    try:
        return open(path, "w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(
            f"--csv {path}: cannot be written ({error.strerror}): give another path"
        ) from error
