"""What the training of every task shares: schedule, checkpoints, curves, stop and resume."""

import gc
import signal
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.logger import get_logger
from torch._dynamo.exc import TorchDynamoException
from torch.nn.parallel import DistributedDataParallel

from speechbrain_summarymixing.errors import UserError, lacks_memory, reason_of
from speechbrain_summarymixing.processes import (
    highest,
    number_of_processes,
    taken_off_ddp,
)
from speechbrain_summarymixing.training import plan
from speechbrain_summarymixing.training.ema import AveragedWeights
from speechbrain_summarymixing.training.loggers import StepMeter
from speechbrain_summarymixing.training.random_states import RandomStates
from speechbrain_summarymixing.training.schedules import make_schedule
from speechbrain_summarymixing.training.validation import VALIDATED, ValidatedTask

logger = get_logger(__name__)

EMA = "ema"  # of checkpoints: the file of averaged weights
STOPS = (signal.SIGINT, signal.SIGTERM)  # of a terminal; of SLURM, Kubernetes and torchrun


class Interrupted(UserError):
    """Training was stopped by Ctrl-C or SIGTERM, after a checkpoint was written.

    ``signal`` is the one, by which a shell's exit status is made.
    """

    def __init__(self, message, signum):
        super().__init__(message)
        self.signal = signum


@register_checkpoint_hooks
class ExperimentBrain(ValidatedTask):
    """SpeechBrain's Brain with the life of an experiment; a task adds what is learnt.

    A task loads its sets, computes the batch, sets ``_batch_ids`` before the loss, measures and
    exports. Expects the keys of ``hparams/parts/training.yaml`` as hyperparameters, ``model`` among
    the checkpointer's recoverables, and ``train_loggers`` and ``system`` as attributes.
    """

    system = ""  # the hyperparameter file
    amounts = {}  # of a part, "train" and "valid", what its set holds, in words
    _batch_ids = ()
    _random_states = None
    _ema = None  # an `AveragedWeights`
    _wrapped = {}  # for DDP, while the bare modules evaluate
    _stop_requested = 0  # the number of the signal

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._swapped = ExitStack()  # while the average of weights is validated

    # ---- one batch

    def fit_batch(self, batch):
        """As SpeechBrain's; a lack of memory is told with the batch's utterances."""
        if self._random_states is not None:
            self._random_states.restore()
        with self._memory_told(batch, self.batch_option):
            loss = super().fit_batch(batch)
        self._meter.after_batch(loss, partial(self.amount_of, batch))
        if self.step % self.grad_accumulation_factor == 0:
            self._log_step()
        return loss

    def optimizers_step(self):
        """As SpeechBrain's; the gradients of steps that are logged are measured before."""
        self._meter.before_step(self.optimizer_step + 1, self.optimizer, self.scaler)
        super().optimizers_step()

    def _log_step(self):
        epoch = self.hparams.epoch_counter.current
        seconds = self.train_seconds + self._seconds_of_stage()
        values = self._meter.after_step(self.optimizer_step, epoch, seconds)
        for train_logger in self.train_loggers if values else ():
            if hasattr(train_logger, "log_step"):
                train_logger.log_step(values)

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
            if isinstance(error, TorchDynamoException):
                raise UserError(
                    f"--compile: torch cannot compile the encoder here ({reason_of(error)}): leave "
                    "it out, which changes nothing but the speed"
                ) from error
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
        self._valid_loader = self.make_dataloader(
            valid_set, sb.Stage.VALID, ckpt_prefix=None, **options.pop("valid_loader_kwargs")
        )
        before = {number: signal.signal(number, self._request_stop) for number in STOPS}
        try:
            super().fit(epoch_counter, train_set, self._valid_loader, **options)
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
        if self._validation_due():
            self._validate_within_epoch()
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
        if not self.epoch_steps:
            raise UserError(
                f"--grad_accumulation_factor is {self.grad_accumulation_factor}, but an epoch has "
                f"{-(-batches // processes)} batches of each process, so no step would be taken: "
                f"lower it or --{self.batch_option}"
            )
        total = self.hparams.number_of_epochs * self.epoch_steps
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
        if self.nonfinite_patience > 0:  # else the batches that pass would make all weights NaN
            self.skip_nonfinite_grads = True
        if self.hparams.ema:
            self._ema = AveragedWeights(self.hparams.model, self.hparams.ema)
            self.checkpointer.add_recoverable(EMA, self._ema)
        super().on_fit_start()
        if total > 1:  # the first step is one of the warm-up too
            self.lr_schedule(self.optimizer, max(1, self.optimizer_step))
        if self._ema is not None:
            self.optimizer.register_step_post_hook(self._take_in_weights)
        if self.shard_reader is not None and self.optimizer_step > 0:
            self.shard_reader.steps_before = self.optimizer_step
            logger.info("Going on: the shards are read from their begin, in another order")
        if self.distributed_launch:  # else each process draws the same dropout
            torch.manual_seed(self.hparams.seed + self.rank)
        self._meter = StepMeter(self.hparams.log_every_steps, self.train_seconds, self.speed)
        for line in plan.lines(self):
            logger.info(line)
        if self._optimizer_step_limit_exceeded and not self.step:  # nothing is left to train
            self.hparams.epoch_counter.current = self.hparams.epoch_counter.limit

    def _compile(self):
        if self.compile and self.compile_module_keys is None:
            # SpeechBrain's makes a graph of each module for each length; in place no name changes
            self.encoder().compile(
                mode=self.compile_mode, fullgraph=self.compile_using_fullgraph, dynamic=True
            )
            return
        super()._compile()

    def _take_in_weights(self, optimizer, *_):
        # SpeechBrain's --skip_nonfinite_grads leaves no gradient, and fp16's scaler takes no step
        if any(p.grad is not None for p in optimizer.param_groups[0]["params"]):
            self._ema.update(self.optimizer_step)

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
                self.modules[name] = DistributedDataParallel(
                    module,
                    device_ids=None if self.distributed_backend == "gloo" else [self.device],
                    find_unused_parameters=self.find_unused_parameters,
                )

    def wrap_anew(self):
        """Lets DDP see which weights have gradients from now on; all processes must ask for it."""
        if self.distributed_launch:
            taken_off_ddp(self.modules)
            self._wrapped = {}
            gc.collect()  # the hooks of the wrappers of before go with them
            self._wrap_distributed()

    def on_stage_start(self, stage, epoch=None):
        """Starts training's clock; its augmentation is that of the epoch."""
        if stage == sb.Stage.TRAIN:
            self._training_began = time.monotonic()
            if self.augmentation is not None:
                self.augmentation.epoch.fill_(epoch)
            return
        self.measured, self._evaluated = {}, []
        # so that processes may evaluate other numbers of batches
        self._wrapped = taken_off_ddp(self.modules)
        if stage == sb.Stage.VALID and self._ema is not None:
            self._swapped.enter_context(self._ema.in_place())

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs; after validation also saves a checkpoint and draws the curves."""
        if stage != sb.Stage.TRAIN:
            stage_loss = self._share(stage_loss)
            self.modules.update(self._wrapped)
            self._swapped.close()
        if stage == sb.Stage.TRAIN:
            self.train_seconds += self._seconds_of_stage()
            self._training_began = None
            self.train_loss = float(stage_loss)
            self._tell_what_is_left_out(epoch)
        elif stage == sb.Stage.VALID:
            self.step = self._step_within
            self._end_of_validation(epoch, float(stage_loss))

    def _tell_what_is_left_out(self, epoch):
        left = self.epoch_steps - self.step // self.grad_accumulation_factor
        if self._optimizer_step_limit_exceeded and left > 0:
            logger.warning(
                "Epoch %d ends %d steps early (--optimizer_step_limit or --early_stop_patience): "
                "a run that goes on begins with the next one and ends as many steps earlier",
                *(epoch, left),
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
        average = self.checkpointer.average(checkpoints, EMA if self.hparams.ema else "model")
        self.hparams.model.load_state_dict(average, strict=True)
        self.hparams.model.eval()
        logger.info(
            f"Testing the average of the {'EMA of the ' if self.hparams.ema else ''}epochs "
            + ", ".join(f"{c.meta['epoch']} (step {c.meta.get('steps')})" for c in checkpoints)
        )

    # ---- resume

    @mark_as_saver
    def _save(self, path):
        super()._save(path)
        state = yaml.safe_load(Path(path).read_text())
        state["train_seconds"] = self.train_seconds + self._seconds_of_stage()
        state.update((name, getattr(self, name)) for name in VALIDATED)
        Path(path).write_text(yaml.dump(state))

    @mark_as_loader
    def _recover(self, path, end_of_epoch):
        super()._recover(path, end_of_epoch)
        state = yaml.safe_load(Path(path).read_text())
        for name in ("train_seconds", *VALIDATED):  # a run of before does not know them all
            setattr(self, name, state.get(name, getattr(self, name)))
