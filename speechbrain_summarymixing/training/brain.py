"""What the training of every task shares: schedule, checkpoints, curves, stop and resume."""

import signal
import time
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from torch.nn.parallel import DistributedDataParallel

from speechbrain_summarymixing.errors import UserError, lacks_memory
from speechbrain_summarymixing.lobes.positions import SinePositions
from speechbrain_summarymixing.processes import (
    gathered,
    highest,
    number_of_processes,
    taken_off_ddp,
)
from speechbrain_summarymixing.training import curves, plan
from speechbrain_summarymixing.training.random_states import RandomStates
from speechbrain_summarymixing.training.schedules import make_schedule
from speechbrain_summarymixing.training.task import Task

logger = get_logger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM)  # of a terminal; of SLURM, Kubernetes and torchrun


class Interrupted(UserError):
    """Training was stopped by Ctrl-C or SIGTERM, after a checkpoint was written.

    ``signal`` is the one, by which a shell's exit status is made.
    """

    def __init__(self, message, signum):
        super().__init__(message)
        self.signal = signum


@register_checkpoint_hooks
class ExperimentBrain(Task):
    """SpeechBrain's Brain with the life of an experiment; a task adds what is learnt.

    A task loads its sets, computes the batch, sets ``_batch_ids`` before the loss, measures and
    exports. Expects the keys of ``hparams/parts/training.yaml`` as hyperparameters, ``model`` among
    the checkpointer's recoverables, and ``train_loggers`` and ``system`` as attributes.
    """

    train_loggers = ()
    system = ""  # the hyperparameter file
    train_seconds = 0.0
    amounts = {}  # of a part, "train" and "valid", what its set holds, in words
    _batch_ids = ()
    _evaluated = ()  # the IDs of each batch of this process
    _random_states = None
    _wrapped = {}  # for DDP, while the bare modules evaluate
    _stage_began = None
    _stop_requested = 0  # the number of the signal

    # ---- one batch

    def fit_batch(self, batch):
        """As SpeechBrain's; a lack of memory is told with the batch's utterances."""
        if self._random_states is not None:
            self._random_states.restore()
        with self._memory_told(batch, self.batch_option):
            return super().fit_batch(batch)

    def evaluate_batch(self, batch, stage):
        """As SpeechBrain's; a lack of memory is told with the batch's utterances."""
        part = "valid" if stage == sb.Stage.VALID else "test"
        with self._memory_told(batch, f"{part}_batch_size"):
            loss = super().evaluate_batch(batch, stage)
        self._evaluated.append(list(batch.id))
        return loss

    @contextmanager
    def _memory_told(self, batch, option):
        try:
            yield
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            longest = ""
            if hasattr(batch, "duration"):
                seconds, key = max(zip(map(float, batch.duration), batch.id))
                longest = f", the longest of which is {key} of {seconds:.1f} s"
            raise UserError(
                f"no memory left on {self.device} for a batch of {len(batch.id)} "
                f"utterances{longest}: go on with --precision bf16 or --activation_checkpointing "
                f"True, or lower --{option} ({getattr(self.hparams, option, 'not set')} now), or "
                "leave out utterances as long; the latter two in training want a new "
                "--output_folder"
            ) from error

    def check_loss_isfinite(self, loss):
        """Stops before a NaN loss reaches the weights, and names its utterances."""
        if not torch.isfinite(loss) and self.nonfinite_count >= self.nonfinite_patience:
            raise UserError(
                f"the loss is {float(loss)} in epoch {self.hparams.epoch_counter.current}, step "
                f"{self.step}, for the utterances {', '.join(self._batch_ids)}: no weight was "
                "changed by it. Look at this audio and its transcripts, lower --lr, or let "
                "--nonfinite_patience N batches an epoch pass"
            )
        super().check_loss_isfinite(loss)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Moves the learning rate after each optimiser step."""
        if should_step:
            self.lr_schedule(self.optimizer, self.optimizer_step)

    # ---- one epoch

    def fit(self, epoch_counter, train_set, valid_set=None, **options):
        """As SpeechBrain's; Ctrl-C and SIGTERM save a checkpoint and raise `Interrupted`."""
        self.expect(train_set, valid_set, options["train_loader_kwargs"])
        before = {number: signal.signal(number, self._request_stop) for number in STOPS}
        try:
            super().fit(epoch_counter, train_set, valid_set, **options)
            if self._stop_requested:
                raise Interrupted(
                    "stopped after the last epoch, which is saved. The same command tests it",
                    self._stop_requested,
                )
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def expect(self, train_set, valid_set, loading):
        """Notes what there is to learn, given the sets and the options of the training loader."""
        self.amounts = {"train": self.amount(train_set), "valid": self.amount(valid_set)}
        if self.shard_reader is not None:
            # of each process, while a sampler counts those of all
            self.steps_per_epoch = loading["looped_nominal_epoch"] * number_of_processes()
        else:
            if not self.distributed_launch:
                # SpeechBrain calls set_epoch only on what it wrapped itself
                self.train_sampler = loading["batch_sampler"]
            self.steps_per_epoch = len(loading["batch_sampler"])

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # a checkpoint amid an accumulation would lose its gradients
        due = super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        self._stop_requested = highest(self._stop_requested, self.device)
        return (due or self._stop_requested > 0) and self.step % self.grad_accumulation_factor == 0

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self._stop_requested:
            raise Interrupted(
                f"stopped in epoch {self.hparams.epoch_counter.current} after optimiser step "
                f"{self.optimizer_step}, saved in {self.checkpointer.checkpoints_dir}. "
                "The same command goes on from there",
                self._stop_requested,
            )

    def _request_stop(self, signum, frame):
        if self._stop_requested:
            raise KeyboardInterrupt
        name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
        logger.info("%s: saving after this batch; once more stops at once", name)
        self._stop_requested = signum

    def on_fit_start(self):
        """Sets the schedule's length before the newest checkpoint is loaded."""
        if self.optimizer_step_limit is not None:
            self.optimizer_step_limit = int(self.optimizer_step_limit)  # the command line's is text
        processes, batches = number_of_processes(), self.steps_per_epoch
        if self.distributed_launch and batches <= processes and self.shard_reader is None:
            raise UserError(
                f"an epoch has {batches} batches for {processes} processes, but each must get two "
                f"or more: start fewer processes or lower --{self.batch_option}"
            )
        # batches are repeated until each process has as many; gradients left over are dropped
        self.epoch_steps = -(-batches // processes) // self.grad_accumulation_factor
        total = max(1, self.hparams.number_of_epochs * self.epoch_steps)
        self.lr_schedule = make_schedule(
            self.hparams.schedule,
            lr=self.hparams.lr,
            warmup=self.hparams.warmup_steps,
            total=total,
            cooldown_fraction=self.hparams.cooldown_fraction,
        )
        # of several processes a checkpoint would have those of the main one alone
        if not self.distributed_launch and self.checkpointer is not None:
            self._random_states = RandomStates()
            # checkpoints of before have none
            self.checkpointer.add_recoverable("random", self._random_states, optional_load=True)
        super().on_fit_start()
        if self.shard_reader is not None and self.optimizer_step > 0:
            self.shard_reader.steps_before = self.optimizer_step
            logger.info("Going on: the shards are read from their begin, in another order")
        if self.distributed_launch:  # else each process draws the same dropout
            torch.manual_seed(self.hparams.seed + self.rank)
        for line in plan.lines(self):
            logger.info(line)

    def _train_loader_specifics(self, dataset, loader_kwargs):
        if self.shard_reader is not None:  # which splits the shards itself
            return loader_kwargs
        return super()._train_loader_specifics(dataset, loader_kwargs)

    def _wrap_distributed(self):
        if not self.distributed_launch:
            super()._wrap_distributed()
            return
        # not SpeechBrain's: it makes batch normalisation SyncBatchNorm, which the CPU lacks
        for name, module in self.modules.items():
            if any(p.requires_grad for p in module.parameters()):
                # a table that has grown on one process alone cannot be broadcast
                module._ddp_params_and_buffers_to_ignore = [
                    f"{part_name}.table"
                    for part_name, part in module.named_modules()
                    if isinstance(part, SinePositions)
                ]
                self.modules[name] = DistributedDataParallel(
                    module,
                    device_ids=None if self.distributed_backend == "gloo" else [self.device],
                    find_unused_parameters=self.find_unused_parameters,
                )

    def on_stage_start(self, stage, epoch=None):
        """Starts the stage's clock; training's augmentation is that of the epoch."""
        self._stage_began = time.monotonic()
        if stage != sb.Stage.TRAIN:
            self.measured, self._evaluated = {}, []
            # so that processes may evaluate other numbers of batches
            self._wrapped = taken_off_ddp(self.modules)
        elif self.augmentation is not None:
            self.augmentation.epoch.fill_(epoch)

    def _share(self, loss):
        """Makes known to all what each has measured, in the order of one process; the mean loss."""
        parts = gathered((self.measured, self._evaluated, float(loss)))
        rounds = zip_longest(*(batches for _, batches, _ in parts), fillvalue=())
        order = (key for batches in rounds for batch in batches for key in batch)
        measured = {key: value for own, _, _ in parts for key, value in own.items()}
        self.measured = {key: measured[key] for key in dict.fromkeys(order) if key in measured}
        batches = sum(len(own) for _, own, _ in parts)
        return sum(len(own) * mean for _, own, mean in parts) / max(1, batches)

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs; after validation also saves a checkpoint and draws the curves."""
        if stage != sb.Stage.TRAIN:
            stage_loss = self._share(stage_loss)
            self.modules.update(self._wrapped)
        if stage == sb.Stage.TRAIN:
            self.train_seconds += time.monotonic() - self._stage_began
            self.train_loss = float(stage_loss)
        elif stage == sb.Stage.VALID:
            self._end_of_epoch(epoch, float(stage_loss))

    def _end_of_epoch(self, epoch, valid_loss):
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
            meta={self.metric: row[f"valid_{self.metric}"], "epoch": epoch},
            min_keys=[self.metric],
            num_to_keep=self.hparams.averaged_checkpoints,
            name=f"epoch-{epoch:04d}",
        )

    # ---- test

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads the average of the best checkpoints."""
        super().on_evaluate_start(min_key=self.metric)
        checkpoints = self.checkpointer.find_checkpoints(
            min_key=self.metric, max_num_checkpoints=self.hparams.averaged_checkpoints
        )
        if not checkpoints:
            raise UserError(
                f"{self.checkpointer.checkpoints_dir} holds no checkpoint of a finished epoch, "
                "so there is nothing to test: train first (without --test_only)"
            )
        average = self.checkpointer.average(checkpoints, "model")
        self.hparams.model.load_state_dict(average, strict=True)
        self.hparams.model.eval()
        logger.info(
            "Testing the average of the epochs "
            + ", ".join(str(c.meta["epoch"]) for c in checkpoints)
        )

    # ---- resume

    @mark_as_saver
    def _save(self, path):
        super()._save(path)
        state = yaml.safe_load(Path(path).read_text())
        state["train_seconds"] = self.train_seconds + (
            time.monotonic() - self._stage_began if self.step else 0.0
        )
        Path(path).write_text(yaml.dump(state))

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        self.train_seconds = yaml.safe_load(Path(path).read_text()).get("train_seconds", 0.0)
