"""The history of a run: a table, and its curves as a picture."""

import csv
import io

from speechbrain_summarymixing.files import write_atomically

LABELS = {
    "WER": "WER (greedy), %",
    "CER": "CER (greedy), %",
    "perplexity": "perplexity",
    "TER": "tokens missed after the right ones, %",
    "error": "error rate, %",
    "masked_error": "masked frames of another code, %",
}


def record(folder, row):
    """Adds an epoch to ``history.csv`` in a folder and draws ``curves.png`` anew.

    Arguments
    ---------
    folder : Path
    row : dict
        With epoch, steps, lr, train_loss, valid_loss, train_seconds and, in valid_<metric>, one
        of the `LABELS`. A row of the same or a later step, left by a run that was resumed before
        it, is replaced.
    """
    place = row["epoch"], row["steps"]
    rows = [r for r in read(folder) if (int(r["epoch"]), int(r["steps"])) < place] + [row]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "history.csv", text.getvalue())
    draw(rows, folder / "curves.png")


def read(folder):
    """Returns the rows of ``history.csv`` in a folder, [] if there is none yet."""
    path = folder / "history.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(rows, path):
    """Draws loss and metric over the optimiser's steps to a PNG file."""
    from matplotlib.figure import Figure

    metric = next(name for name in LABELS if f"valid_{name}" in rows[0])
    steps = [int(row["steps"]) for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss, measured = figure.subplots(1, 2)
    for column, label in (("train_loss", "training"), ("valid_loss", "validation")):
        loss.plot(steps, [float(row[column]) for row in rows], marker=".", label=label)
    loss.set(xlabel="optimiser steps", ylabel="loss", yscale="log")
    loss.legend()
    values = [float(row[f"valid_{metric}"]) for row in rows]
    measured.plot(steps, values, marker=".", color="tab:red")
    measured.set(xlabel="optimiser steps", ylabel=f"validation {LABELS[metric]}", ylim=(0, None))
    for axes in (loss, measured):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
