"""The results of `compare`: rows of runs, differences to the baseline, table and curves."""

import csv
import json
from contextlib import contextmanager
from pathlib import Path

import numpy

from speechbrain_summarymixing.analysis.comparison import (
    error_rates,
    paired_difference,
    seeds_interval,
    steps_ratios,
)
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically, write_table
from speechbrain_summarymixing.training import curves

HEADER = (
    *("corpus", "test set", "system", "encoder parameters", "seeds", "errors, %", "min to max"),
    *("difference", "95% interval", "by seeds alone", "steps ratio, max (mean)"),
)
CURVE = ("steps", "valid_loss")  # columns of history.csv


def write_comparison(runs, folder, baseline, about):
    """Writes results, comparison, table and curves of finished runs; prints the table.

    Arguments
    ---------
    runs : list of Run
    folder : Path
    baseline : str
        A system's name.
    about : dict
        What else ``comparison.json`` tells.

    Raises
    ------
    UserError
        If two runs were tested on different utterances of a set, or one's files cannot be used.
    """
    folder = Path(folder)
    _write_rows([row_of(run, folder) for run in runs], folder)
    comparison = compare_runs(runs, folder, baseline)
    content = json.dumps(_without_infinity({**about, "comparison": comparison}), indent=2)
    write_atomically(folder / "comparison.json", content + "\n")
    table = table_of(comparison, baseline)
    write_atomically(folder / "table.md", table)
    print(table, end="", flush=True)
    draw_curves(runs, folder, folder / "curves.png")


def row_of(run, folder):
    """Returns a run's row of ``results.csv``, its measures of each test set as <set>_<measure>."""
    results = read_results(run.folder(folder))
    return {
        "corpus": run.corpus,
        "system": run.system,
        "seed": run.seed,
        "parameters": results["parameters"],
        "encoder_parameters": run.encoder_parameters,
        "steps": results["optimizer_steps"],
        "train_seconds": results["train_seconds"],
        **{
            f"{name}_{key}": value
            for name, scores in results["test"].items()
            for key, value in measures_of(scores).items()
        },
    }


def read_results(place):
    """Returns what a run's ``results.json`` tells.

    Arguments
    ---------
    place : Path
        The run's folder.

    Raises
    ------
    UserError
        If there is none, or it lacks a key that is read here.
    """
    path = place / "results.json"
    with _usable(path):
        results = json.loads(path.read_text(encoding="utf-8"))
        _need(("test", "parameters", "optimizer_steps", "train_seconds"), results)
    return results


def _read_rows(path, numbers, *others):
    """The rows of a run's table, with columns of numbers as such."""
    with _usable(path), open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
        _need((*numbers, *others), rows[0] if rows else {})
        return [row | {name: float(row[name]) for name in numbers} for row in rows]


@contextmanager
def _usable(path):
    """Names a run's file, which may be of a program of one's own, where it cannot be used."""
    try:
        yield
    except (OSError, ValueError, TypeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: runs are compared by this file, which cannot be used ({reason}): write it as "
            "examples/transfer/README.md tells, and train anew"
        ) from error


def _need(names, found):
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"it has no {', '.join(missing)}")


def measures_of(scores):
    """Returns what a task measures of a test set: the keys that have a 95% interval."""
    return {key: scores[key] for key in scores if f"{key}_95" in scores}


def _write_rows(rows, folder):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    write_table(folder / "results.csv", columns, cells)
    write_atomically(folder / "results.json", json.dumps(rows, indent=2) + "\n")


def compare_runs(runs, folder, baseline):
    """Compares each system with the baseline on each test set of each corpus.

    Arguments
    ---------
    runs : list of Run
        Finished ones.
    folder : Path
    baseline : str
        A system's name.

    Returns
    -------
    list of dict
        With corpus, set, system, file, settings, encoder_parameters, seeds, and of the error rates
        of the seeds, in percent: mean, min, max and std (None of one seed). Of all but the
        baseline, over the seeds that both have: difference, difference_95 and
        difference_seeds_95 (see `seeds_interval`), in points, and steps_ratio (see `_ratios`);
        else None.

    Raises
    ------
    UserError
        If two runs were tested on different utterances of a set, or one's files cannot be used.
    """
    compared = []
    for corpus in dict.fromkeys(run.corpus for run in runs):
        here = [run for run in runs if run.corpus == corpus]
        for name in dict.fromkeys(name for run in here for name in _sets(run, folder)):
            counts = _counts([run for run in here if name in _sets(run, folder)], folder, name)
            for system in dict.fromkeys(key[0] for key in counts):
                row = _summary(counts, system)
                if system != baseline:
                    row.update(_differences(counts, system, baseline))
                    row["steps_ratio"] = _ratios(here, folder, system, baseline)
                first = next(run for run in here if run.system == system)
                compared.append({"corpus": corpus, "set": name, **_about(first), **row})
    return compared


def _about(run):
    """What is the same in all runs of a system on a corpus."""
    return {key: getattr(run, key) for key in ("system", "file", "settings", "encoder_parameters")}


def _sets(run, folder):
    place = run.folder(folder)
    if not (paths := sorted(place.glob("errors_*.csv"))):
        raise UserError(
            f"{place} has no errors_<set>.csv, by which systems are compared: delete this folder "
            "and run the same command again, which trains it anew"
        )
    return [path.stem.removeprefix("errors_") for path in paths]


def _counts(runs, folder, name):
    """From (system, seed) to errors and totals (N,) of a test set, in one order of utterances."""
    counts, order, first = {}, None, None
    for run in runs:
        path = run.folder(folder) / f"errors_{name}.csv"
        rows = _read_rows(path, ("errors", "total"), "ID")
        rows = {row["ID"]: (row["errors"], row["total"]) for row in rows}
        order, first = order or list(rows), first or path
        if other := sorted(rows.keys() ^ set(order)):
            raise UserError(
                f"{path} and {first} tell of different utterances, such as {other[0]}: systems "
                "are compared on the same test sets, so give all the same data options"
            )
        counts[run.system, run.seed] = numpy.array([rows[key] for key in order]).T
    return counts


def _summary(counts, system):
    mine = {seed: count for (name, seed), count in counts.items() if name == system}
    rates = error_rates(*_stacked(mine.values()))
    return {
        "seeds": list(mine),
        "mean": float(rates.mean()),
        "min": float(rates.min()),
        "max": float(rates.max()),
        "std": float(rates.std(ddof=1)) if len(rates) > 1 else None,
        "difference": None,
        "difference_95": None,
        "difference_seeds_95": None,
        "steps_ratio": None,
    }


def _stacked(counts):
    """Errors and totals (S, N) of the counts (2, N) of S seeds."""
    return numpy.stack(list(counts), axis=1)


def _differences(counts, system, baseline):
    seeds = [seed for name, seed in counts if name == system and (baseline, seed) in counts]
    if not seeds:
        return {}
    ours, theirs = (_stacked(counts[name, seed] for seed in seeds) for name in (system, baseline))
    difference, interval = paired_difference(ours, theirs)
    return {
        "difference": difference,
        "difference_95": interval,
        "difference_seeds_95": seeds_interval(ours, theirs),
    }


def _ratios(runs, folder, system, baseline):
    """The steps ratios of a system: maximum and mean of each seed, and over seeds.

    The mean over seeds is of their means; None where the baseline reaches no loss after epoch 1.
    """
    of = {(run.system, run.seed): _read_rows(_history(run, folder), CURVE) for run in runs}
    per_seed = {}
    for run in runs:
        if run.system == system and (baseline, run.seed) in of:
            both = (of[name, run.seed] for name in (system, baseline))
            if ratios := steps_ratios(*(_curve(rows, "valid_loss") for rows in both)):
                per_seed[run.seed] = {"max": max(ratios), "mean": float(numpy.mean(ratios))}
    if not per_seed:
        return None
    maxima, means = ([values[key] for values in per_seed.values()] for key in ("max", "mean"))
    return {"max": max(maxima), "mean": float(numpy.mean(means)), "per_seed": per_seed}


def _curve(rows, column):
    """Values and steps of the epochs of a history."""
    return [row[column] for row in rows], [row["steps"] for row in rows]


def _without_infinity(value):
    """The same with "inf" for infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_infinity(item) for item in value]
    return "inf" if value == float("inf") else value


def table_of(comparison, baseline):
    """Returns the rows of `compare_runs` as a Markdown table."""
    lines = [HEADER, ["---"] * len(HEADER), *(_cells(row, baseline) for row in comparison)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row, baseline):
    difference, ratio = row["difference"], row["steps_ratio"]
    if row["system"] == baseline:
        compared = ["baseline", "", "", ""]
    else:
        compared = [
            "" if difference is None else f"{difference:+.2f}",
            *(
                "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"
                for interval in (row["difference_95"], row["difference_seeds_95"])
            ),
            "" if ratio is None else f"{ratio['max']:.2f} ({ratio['mean']:.2f})",
        ]
    return [
        *(row["corpus"], row["set"], row["system"], f"{row['encoder_parameters']:,}"),
        *(str(len(row["seeds"])), f"{row['mean']:.2f}", f"{row['min']:.2f} to {row['max']:.2f}"),
        *compared,
    ]


def draw_curves(runs, folder, path):
    """Draws validation loss and metric over the optimiser's steps to a PNG file.

    Arguments
    ---------
    runs : list of Run
        Finished ones. A thin line is a seed, a thick one the mean over a system's seeds, as far as
        all have come.
    folder : Path
    path : Path
    """
    from matplotlib.figure import Figure

    corpora = list(dict.fromkeys(run.corpus for run in runs))
    systems = list(dict.fromkeys(run.system for run in runs))
    figure = Figure(figsize=(9, 3.3 * len(corpora) + 0.4), layout="constrained")
    for corpus, panels in zip(corpora, figure.subplots(len(corpora), 2, squeeze=False)):
        here = [run for run in runs if run.corpus == corpus]
        for system in dict.fromkeys(run.system for run in here):
            paths = [_history(run, folder) for run in here if run.system == system]
            metric = _draw_system(panels, paths, system, f"C{systems.index(system) % 10}")
        panels[0].set(ylabel="validation loss", yscale="log", title=corpus)
        panels[1].set(ylabel=f"validation {curves.LABELS[metric]}", ylim=(0, None), title=corpus)
        for axes in panels:
            axes.set_xlabel("optimiser steps")
            axes.grid(alpha=0.3)
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    figure.legend(
        [lines[system] for system in systems],
        systems,
        loc="outside lower center",
        ncols=min(3, len(systems)),
    )
    figure.savefig(path, dpi=100, format="png")


def _history(run, folder):
    return run.folder(folder) / "history.csv"


def _draw_system(panels, paths, system, color):
    """Draws the curves of a system's seeds and their mean; returns what the metric is."""
    columns = [f"valid_{name}" for name in curves.LABELS]
    first = _read_rows(paths[0], CURVE)[0]
    metric = next((name for name in columns if name in first), " or ".join(columns))
    histories = [_read_rows(path, (*CURVE, metric)) for path in paths]
    for axes, column in zip(panels, ("valid_loss", metric)):
        seeds = [_curve(rows, column) for rows in histories]
        for values, steps in seeds:
            axes.plot(steps, values, color=color, alpha=0.4, linewidth=0.7)
        epochs = min(len(steps) for _, steps in seeds)
        values, steps = (
            numpy.mean([curve[part][:epochs] for curve in seeds], axis=0) for part in (0, 1)
        )
        axes.plot(steps, values, color=color, linewidth=2, label=system)
    return metric.removeprefix("valid_")
