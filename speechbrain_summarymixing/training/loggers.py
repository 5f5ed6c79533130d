"""Where a run's losses go: text, a table of steps, TensorBoard, Weights & Biases."""

import csv
import secrets
from pathlib import Path

import torch
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.train_logger import TensorboardLogger, TrainLogger, WandBLogger

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import write_atomically, write_table
from speechbrain_summarymixing.processes import number_of_processes
from speechbrain_summarymixing.training.identity import settings


def train_loggers(hparams):
    """Returns the loggers that hyperparameters ask for; with ``log_step`` those of steps too.

    Arguments
    ---------
    hparams : dict

    Raises
    ------
    UserError
        If TensorBoard or Weights & Biases is asked for and not installed, or does not begin.
    """
    folder = Path(hparams["output_folder"])
    loggers = [hparams["train_logger"], StepTable(folder / "steps.csv")]
    if hparams["tensorboard"]:
        try:
            loggers.append(TensorBoard(save_dir=f"{folder}/tensorboard"))
        except ImportError as error:
            raise UserError(_missing("--tensorboard True", "tensorboard")) from error
    if hparams["wandb"] is not None:
        loggers.append(_wandb(hparams, folder))
    return loggers


def _missing(option, extra):
    return (
        f"{option} needs {extra}, which is not installed: "
        f'pip install "speechbrain-summarymixing[{extra}]"'
    )


def _wandb(hparams, folder):
    project = str(hparams["wandb"])
    try:
        import wandb
    except ImportError as error:
        raise UserError(_missing(f"--wandb {project}", "wandb")) from error

    def begin():
        name = folder / "wandb_id.txt"  # by which a run goes on, wherever its folder lies by then
        if not name.is_file():
            write_atomically(name, secrets.token_hex(4))
        options = {"id": name.read_text(), "resume": "allow", "name": str(folder)}
        return wandb.init(project=project, dir=folder, config=settings(hparams), **options)

    try:
        return WeightsAndBiases(begin)
    except Exception as error:
        reason = reason_of(error.__context__ or error)  # SpeechBrain fails to tell it
        raise UserError(
            f"--wandb {project}: Weights & Biases does not begin ({reason}): log in by `wandb "
            "login`, or set WANDB_MODE=offline, which writes to the output folder alone"
        ) from error


class TensorBoard(TensorboardLogger):
    """SpeechBrain's `TensorboardLogger`, with single steps."""

    @main_process_only
    def log_step(self, values):
        """Logs a row of `StepMeter`."""
        for name, value in values.items():
            self.writer.add_scalar(f"step/{name}", value, values["step"])


class WeightsAndBiases(WandBLogger):
    """SpeechBrain's `WandBLogger`, by optimiser steps, of which an epoch may log several."""

    @main_process_only
    def log_stats(self, stats_meta, train_stats=None, valid_stats=None, **_):
        """See SpeechBrain's `TrainLogger`."""
        parts = {"train": train_stats, "valid": valid_stats, **stats_meta}
        self.run.log(parts, step=stats_meta["steps"])

    @main_process_only
    def log_step(self, values):
        """Logs a row of `StepMeter`."""
        self.run.log({f"step/{name}": v for name, v in values.items()}, step=values["step"])


class StepTable(TrainLogger):
    """A CSV file of single steps; what a run that goes on does again is replaced.

    Arguments
    ---------
    path : Path
    """

    def __init__(self, path):
        self.path, self._begun = path, False

    def log_stats(self, *_, **__):
        """Epochs have a table of their own; see `curves`."""

    @main_process_only
    def log_step(self, values):
        """Writes a row of `StepMeter`."""
        if not self._begun:
            rows = []
            if self.path.is_file():
                with open(self.path, newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.reader(file) if len(row) == len(values)][1:]
            rows = [row for row in rows if int(row[0]) < values["step"]]
            write_table(self.path, list(values), rows)
            self._begun = True
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(values.values())


class StepMeter:
    """What is logged of every N-th optimiser step; nothing waits for a GPU at the others.

    Arguments
    ---------
    every : int
        N; 0: none is logged.
    seconds : float
        Of training so far.
    speed : str
        What a row calls the amount a second.
    """

    def __init__(self, every, seconds, speed):
        self.every, self.speed = every, speed
        self._since, self._losses, self._amount = seconds, [], 0.0

    def _is_due(self, step):
        return self.every > 0 and step % self.every == 0

    def before_step(self, step, optimizer, scaler):
        """Measures the gradients of an optimiser step before they are clipped."""
        if self._is_due(step):
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients) / scaler.get_scale()
            self._lr = optimizer.param_groups[0]["lr"]

    def after_batch(self, loss, amount):
        """Notes a batch's loss, on the CPU, and a function that returns its amount."""
        if self.every:
            self._losses.append(float(loss))
            self._amount += amount()

    def after_step(self, step, epoch, seconds):
        """Returns what is to be logged of a step, or None; ``seconds`` are those of training."""
        losses, self._losses = self._losses, []
        if not self._is_due(step):
            return None
        amount, self._amount = self._amount * number_of_processes(), 0.0
        took, self._since = seconds - self._since, seconds
        return {
            **{"step": step, "epoch": epoch, "loss": sum(losses) / len(losses), "lr": self._lr},
            **{"gradient_norm": float(self._norm), self.speed: amount / max(took, 1e-9)},
        }
