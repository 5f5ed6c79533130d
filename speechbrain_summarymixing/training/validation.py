"""Validation at the end of epochs and within them: what it measures, keeps and stops."""

import time
from itertools import zip_longest
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.processes import gathered
from speechbrain_summarymixing.training import curves
from speechbrain_summarymixing.training.task import Task

logger = get_logger(__name__)

# what checkpoints have of the validations so far
VALIDATED = ("best_valid_loss", "validations_since_best", "validated_step")


class ValidatedTask(Task):
    """A task that is validated, whose best checkpoints are kept, and that may end early."""

    train_loggers = ()
    train_seconds = 0.0
    best_valid_loss = float("inf")
    validations_since_best = 0
    validated_step = 0  # optimiser steps of the weights that were validated last
    _evaluated = ()  # the IDs of each batch of this process
    _training_began = None  # when, while it trains
    _valid_loader = None
    _step_within = 0  # batches of the epoch so far, in a validation within it

    def _validation_due(self):
        every = self.hparams.valid_every_steps
        stepped = every > 0 and self.step % self.grad_accumulation_factor == 0
        return stepped and self.optimizer_step % every == 0

    def _validate_within_epoch(self):
        epoch, self._step_within = self.hparams.epoch_counter.current, self.step
        self.on_stage_end(sb.Stage.TRAIN, self.avg_train_loss, epoch)
        self.step = 0
        loader = self._valid_loader
        before, loader.generator = loader.generator, torch.Generator()  # training's goes on
        self._fit_valid(loader, epoch, not self.noprogressbar and if_main_process())
        loader.generator = before
        self.step, self._step_within = self._step_within, 0
        self.modules.train()
        self._training_began = time.monotonic()

    @property
    def _optimizer_step_limit_exceeded(self):
        return super()._optimizer_step_limit_exceeded or self._patience_is_out

    @property
    def _patience_is_out(self):
        return 0 < self.hparams.early_stop_patience <= self.validations_since_best

    def _share(self, loss):
        """Makes known to all what each has measured, in the order of one process; the mean loss."""
        parts = gathered((self.measured, self._evaluated, float(loss)))
        rounds = zip_longest(*(batches for _, batches, _ in parts), fillvalue=())
        order = (key for batches in rounds for batch in batches for key in batch)
        measured = {key: value for own, _, _ in parts for key, value in own.items()}
        self.measured = {key: measured[key] for key in dict.fromkeys(order) if key in measured}
        batches = sum(len(own) for _, own, _ in parts)
        return sum(len(own) * mean for _, own, mean in parts) / max(1, batches)

    def _seconds_of_stage(self):
        return time.monotonic() - self._training_began if self._training_began is not None else 0.0

    def _end_of_validation(self, epoch, valid_loss):
        again = self.optimizer_step == self.validated_step  # these weights, within the epoch
        if not again:
            better = valid_loss < self.best_valid_loss
            self.validations_since_best = 0 if better else self.validations_since_best + 1
            self.best_valid_loss = min(valid_loss, self.best_valid_loss)
            self.validated_step = self.optimizer_step
        if self._patience_is_out:
            logger.info(
                "The validation loss was not lower than %.4g %d times, --early_stop_patience: "
                "training ends",
                *(self.best_valid_loss, self.validations_since_best),
            )
        row = {
            "epoch": epoch,
            "steps": self.optimizer_step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.train_loss,
            "valid_loss": valid_loss,
            f"valid_{self.metric}": self.validation_metric(),
            "train_seconds": round(self.train_seconds, 1),
        }
        for train_logger in self.train_loggers:  # they write on the main process alone
            train_logger.log_stats(
                stats_meta={k: row[k] for k in ("epoch", "steps", "lr", "train_seconds")},
                train_stats={"loss": row["train_loss"]},
                valid_stats={
                    "loss": valid_loss,
                    curves.LABELS[self.metric]: row[f"valid_{self.metric}"],
                },
            )
        if if_main_process():
            curves.record(Path(self.hparams.output_folder), row)
        self.checkpointer.save_and_keep_only(
            meta={
                self.metric: row[f"valid_{self.metric}"],
                **{"epoch": epoch, "steps": self.optimizer_step},
            },
            end_of_epoch=not self.step,
            min_keys=[self.metric],
            num_to_keep=self.hparams.averaged_checkpoints + again,
            name=f"epoch-{epoch:04d}" + (f"-step-{self.optimizer_step:07d}" if self.step else ""),
        )
        if again and not self.step:  # the average needs no weights twice
            self.checkpointer.delete_checkpoints(num_to_keep=0, ckpt_predicate=self._is_double)

    def _is_double(self, checkpoint):
        meta = checkpoint.meta
        return meta.get("steps") == self.optimizer_step and not meta["end-of-epoch"]
