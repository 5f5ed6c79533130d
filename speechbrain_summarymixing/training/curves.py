"""The history of a run: a table, and its curves as a picture."""

import csv
import os

COLUMNS = ("epoch", "steps", "lr", "train_loss", "valid_loss", "valid_WER", "train_seconds")


def record(folder, row):
    """Adds an epoch to ``history.csv`` in a folder and draws ``curves.png`` anew.

    Arguments
    ---------
    folder : Path
    row : dict
        With the `COLUMNS`. A row of the same or a later epoch, left by a run that was resumed
        before it, is replaced.
    """
    rows = [r for r in read(folder) if int(r["epoch"]) < row["epoch"]] + [row]
    path = folder / "history.csv"
    temporary = path.with_name("history.csv.new")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
    draw(rows, folder / "curves.png")


def read(folder):
    """Returns the rows of ``history.csv`` in a folder, [] if there is none yet."""
    path = folder / "history.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(rows, path):
    """Draws loss and word error rate over the optimiser's steps to a PNG file."""
    from matplotlib.figure import Figure

    steps = [int(row["steps"]) for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    loss, wer = figure.subplots(1, 2)
    for column, label in (("train_loss", "training"), ("valid_loss", "validation")):
        loss.plot(steps, [float(row[column]) for row in rows], marker=".", label=label)
    loss.set(xlabel="optimiser steps", ylabel="loss", yscale="log")
    loss.legend()
    wer.plot(steps, [float(row["valid_WER"]) for row in rows], marker=".", color="tab:red")
    wer.set(xlabel="optimiser steps", ylabel="validation WER (greedy CTC), %", ylim=(0, None))
    for axes in (loss, wer):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
