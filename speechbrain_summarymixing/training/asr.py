"""Joint CTC and attention training of a speech recogniser (arXiv 1609.06773)."""

import signal
import time
from pathlib import Path

import speechbrain as sb
import torch
import yaml
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.checkpoints import (
    average_checkpoints,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats
from torch.nn.parallel import DistributedDataParallel

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.lobes.positions import SinePositions
from speechbrain_summarymixing.training import curves
from speechbrain_summarymixing.training.processes import number_of_processes, on_any

logger = get_logger(__name__)


class Interrupted(UserError):
    """Training was stopped by Ctrl-C, after a checkpoint was written."""


@register_checkpoint_hooks
class ASR(sb.Brain):
    """SpeechBrain's Brain for an encoder with a CTC head and an attention decoder.

    Expects the keys of ``hparams/parts/asr.yaml`` as hyperparameters, and ``tokenizer`` and
    ``train_loggers`` as attributes.
    """

    tokenizer = None
    train_loggers = ()
    train_seconds = 0.0
    _stage_began = None
    _stop_requested = False

    # ---- one batch

    def compute_forward(self, batch, stage):
        """Returns CTC and decoder log-probabilities (B, T, V), (B, U, V) and hypotheses."""
        batch = batch.to(self.device)
        self._batch_ids = batch.id
        wavs, lengths = batch.sig
        tokens_bos, _ = batch.tokens_bos
        hparams = self.hparams

        features = hparams.compute_features(wavs)
        epoch = hparams.epoch_counter.current
        features = self.modules.normalize(features, lengths, epoch=epoch)
        if stage == sb.Stage.TRAIN and hparams.feature_augment is not None:
            features, lengths = hparams.feature_augment(features, lengths)
        encoder_input = self.modules.front_end(features, lengths)
        encoded, decoded = self.modules.transformer(
            encoder_input, tokens_bos, lengths, pad_idx=hparams.blank_index
        )
        p_ctc = hparams.log_softmax(self.modules.ctc_lin(encoded))
        p_seq = hparams.log_softmax(self.modules.seq_lin(decoded))

        hypotheses = None
        if stage == sb.Stage.VALID:
            hypotheses = ctc_greedy_decode(p_ctc, lengths, blank_id=hparams.blank_index)
        elif stage == sb.Stage.TEST:
            hypotheses, _, _, _ = hparams.test_search(encoded.detach(), lengths)
        return p_ctc, p_seq, lengths, hypotheses

    def compute_objectives(self, predictions, batch, stage):
        """Returns the weighted sum of the CTC and the attention loss."""
        p_ctc, p_seq, lengths, hypotheses = predictions
        tokens, tokens_lengths = batch.tokens
        tokens_eos, tokens_eos_lengths = batch.tokens_eos
        loss_ctc = self.hparams.ctc_cost(p_ctc, tokens, lengths, tokens_lengths)
        loss_seq = self.hparams.seq_cost(p_seq, tokens_eos, length=tokens_eos_lengths)
        if stage != sb.Stage.TRAIN:
            words = [self.tokenizer.decode(list(map(int, h))).split() for h in hypotheses]
            self.wer_stats.append(batch.id, words, [wrd.split() for wrd in batch.wrd])
        weight = self.hparams.ctc_weight
        return weight * loss_ctc + (1 - weight) * loss_seq

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
        """As SpeechBrain's; Ctrl-C saves a checkpoint and raises `Interrupted`."""
        sampler = options["train_loader_kwargs"]["batch_sampler"]
        if not self.distributed_launch:
            # SpeechBrain calls set_epoch only on what it wrapped itself
            self.train_sampler = sampler
        self.steps_per_epoch = len(sampler)
        before = signal.signal(signal.SIGINT, self._request_stop)
        try:
            super().fit(epoch_counter, train_set, valid_set, **options)
            if self._stop_requested:
                raise Interrupted(
                    "stopped after the last epoch, which is saved. The same command tests it"
                )
        finally:
            signal.signal(signal.SIGINT, before)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # a checkpoint amid an accumulation would lose its gradients
        due = super()._should_save_intra_epoch_ckpt(last_ckpt_time, steps_since_ckpt)
        self._stop_requested = on_any(self._stop_requested, self.device)
        return (due or self._stop_requested) and self.step % self.grad_accumulation_factor == 0

    def _save_intra_epoch_ckpt(self):
        super()._save_intra_epoch_ckpt()
        if self._stop_requested:
            raise Interrupted(
                f"stopped in epoch {self.hparams.epoch_counter.current} after optimiser step "
                f"{self.optimizer_step}, saved in {self.checkpointer.checkpoints_dir}. "
                "The same command goes on from there"
            )

    def _request_stop(self, signum, frame):
        if self._stop_requested:
            raise KeyboardInterrupt
        logger.info("Ctrl-C: saving after this batch; once more stops at once")
        self._stop_requested = True

    def on_fit_start(self):
        """Sets the schedule's length before the newest checkpoint is loaded."""
        processes, batches = number_of_processes(), self.steps_per_epoch
        if self.distributed_launch and batches <= processes:
            raise UserError(
                f"an epoch has {batches} batches for {processes} processes, but each must get two "
                "or more: start fewer processes or lower --batch_seconds"
            )
        # batches are repeated until each process has as many; gradients left over are dropped
        steps = -(-batches // processes) // self.grad_accumulation_factor
        total = max(1, self.hparams.number_of_epochs * steps)
        cooldown = max(1, round(self.hparams.cooldown_fraction * total))
        self.lr_schedule = self.hparams.lr_schedule(total_steps=total, cooldown=cooldown)
        super().on_fit_start()
        if self.distributed_launch:  # else each process draws the same dropout and augmentation
            torch.manual_seed(self.hparams.seed + self.rank)

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
        """Starts the stage's clock and word error counts."""
        self._stage_began = time.monotonic()
        if stage != sb.Stage.TRAIN:
            self.wer_stats = ErrorRateStats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Logs; after validation also saves a checkpoint and draws the curves."""
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
            "valid_WER": self.wer_stats.summarize("WER"),
            "train_seconds": round(self.train_seconds, 1),
        }
        for train_logger in self.train_loggers:  # they write on the main process alone
            train_logger.log_stats(
                stats_meta={k: row[k] for k in ("epoch", "steps", "lr", "train_seconds")},
                train_stats={"loss": row["train_loss"]},
                valid_stats={"loss": valid_loss, "WER (greedy CTC)": row["valid_WER"]},
            )
        if if_main_process():
            curves.record(Path(self.hparams.output_folder), row)
        self.checkpointer.save_and_keep_only(
            meta={"WER": row["valid_WER"], "epoch": epoch},
            min_keys=["WER"],
            num_to_keep=self.hparams.averaged_checkpoints,
            name=f"epoch-{epoch:04d}",
        )

    # ---- test

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Loads the average of the best checkpoints."""
        super().on_evaluate_start(min_key="WER")
        checkpoints = self.checkpointer.find_checkpoints(
            min_key="WER", max_num_checkpoints=self.hparams.averaged_checkpoints
        )
        if not checkpoints:
            raise UserError(
                f"{self.checkpointer.checkpoints_dir} holds no checkpoint of a finished epoch, "
                "so there is nothing to test: train first (without --test_only)"
            )
        average = average_checkpoints(checkpoints, recoverable_name="model")
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
