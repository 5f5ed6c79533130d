"""WER and cost of recognisers on recordings of more and more seconds, each heard as one.

    python examples/long_audio.py test.csv FOLDER --models MODEL attention=OTHER --seconds 2 10 60

The utterances of a manifest are joined to recordings of each length, as by `summarymixing join`,
and greedily recognised, whole: no pause, window or stream helps. FOLDER gets wer.csv, which a
second run of the same manifest goes on with, and wer.png. docs/long_audio.md has what the project's
systems do.
"""

import argparse
import csv
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from speechbrain_summarymixing.analysis.evaluate import evaluate
from speechbrain_summarymixing.corpora.joined import join
from speechbrain_summarymixing.errors import UserError

COLUMNS = ["model", "seconds", "WER", "low", "high", "words", "real_time_factor"]
COLUMNS += ["path", "manifest"]


def measure(model, manifest):
    """Returns WER in %, its 95% interval, the number of words and the real-time factor."""
    said = io.StringIO()
    with redirect_stdout(said):
        whole = {"segment_seconds": 1e6, "decoder": "greedy"}
        evaluate(model, manifest, as_json=True, progress=False, **whole)
    result = json.loads(said.getvalue())
    return [result["WER"], *result["WER_95"], result["words"], result["real_time_factor"]]


def plot(rows, file):
    """Draws WER and real-time factor by length, a line for each model."""
    matplotlib.use("Agg")
    figure, (errors, cost) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == name]
        own.sort(key=lambda row: float(row["seconds"]))
        columns = ("seconds", "low", "WER", "high", "real_time_factor")
        seconds, low, wer, high, factor = ([float(row[key]) for row in own] for key in columns)
        errors.plot(seconds, wer, marker="o", label=name)
        errors.fill_between(seconds, low, high, alpha=0.2)
        cost.plot(seconds, factor, marker="o", label=name)
    errors.set(ylabel="WER, %, with 95% interval", ylim=0)
    cost.set(ylabel="real-time factor, greedy", ylim=0)
    for axes in (errors, cost):
        axes.set(xlabel="seconds of a recording", xscale="log")
        axes.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def models_of(texts):
    """Returns a dict from the name of each ``[NAME=]FOLDER`` to the folder, as a whole path."""
    models = {}
    for text in texts:
        name, equals, model = text.partition("=")
        if not equals or Path(text).exists():
            name, model = "", text
        name = name or Path(model).absolute().name
        if name in models:
            raise UserError(f"--models has {name} twice: give one another name, as NAME={model}")
        models[name] = os.path.realpath(model) if Path(model).exists() else model  # or of the hub
    return models


def check(rows, models, manifest):
    """Refuses rows of other files by a `UserError`; tables of before tell no files."""
    for row in rows:
        told, now = row.get("path"), models.get(row["model"])
        if told and now and told != now:
            raise UserError(
                f"wer.csv has {row['model']} of {told}, but it is {now} now: give NAME={now}"
            )
        if (told := row.get("manifest")) and told != manifest:
            raise UserError(
                f"wer.csv is of {told}, but MANIFEST is {manifest}: give another FOLDER"
            )


def main(argv=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", required=True, metavar="[NAME=]FOLDER")
    parser.add_argument("--seconds", nargs="+", type=float, default=[2, 5, 10, 30, 60, 120, 300])
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    table = arguments.folder / "wer.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    models, manifest = models_of(arguments.models), os.path.realpath(arguments.manifest)
    check(rows, models, manifest)
    done = {(row["model"], float(row["seconds"])) for row in rows}
    for seconds in arguments.seconds:
        joined = arguments.folder / f"{seconds:g}s"
        if not joined.exists():
            join(arguments.manifest, joined, seconds=(seconds, seconds))
        for name, model in models.items():
            if (name, seconds) in done:
                continue
            values = measure(model, joined / arguments.manifest.with_suffix(".csv").name)
            values = [name, f"{seconds:g}", *values, model, manifest]
            rows.append(dict(zip(COLUMNS, values)))
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            with table.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    plot(rows, arguments.folder / "wer.png")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
