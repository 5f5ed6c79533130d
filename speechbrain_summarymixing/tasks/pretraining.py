"""Pre-training of an encoder without transcripts: BEST-RQ (arXiv 2202.01855)."""

from collections import Counter
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.data import sets
from speechbrain_summarymixing.data.augment import drawn_from
from speechbrain_summarymixing.data.masking import MaskedBatches
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.export import ENCODING, export
from speechbrain_summarymixing.tasks import metrics
from speechbrain_summarymixing.tasks.speech import SpeechTask

logger = get_logger(__name__)


class Pretraining(SpeechTask):
    """SpeechBrain's Brain for an encoder that learns the codes of frames that it does not hear.

    Masked frames are noise to the encoder; a frozen random projection of what they were gives the
    codes. Expects the keys of ``hparams/parts/pretraining.yaml`` as hyperparameters.
    """

    name = "pretraining"
    metric = "masked_error"

    @classmethod
    def prepare(cls, hparams, train, others):
        """Checks masks and utterances, which need no transcript; there are no targets to return.

        Arguments, and what is raised, are those of `SpeechTask.prepare`.
        """
        length, stride = hparams["mask_length"], hparams["frame_multiple"]
        if length % stride:
            raise UserError(
                f"--mask_length is {length}, but must be a multiple of {stride} frames of 10 ms, "
                f"which make one of the encoder: give for example {stride}"
            )
        if (masked := hparams["mask_prob"] * length) >= 1:
            raise UserError(
                f"--mask_prob is {hparams['mask_prob']} and --mask_length {length}, which would "
                f"mask {masked:.0%} of an utterance, but their product must be below 1: the part "
                "of frames at which a mask begins, and how long it is"
            )
        if (more := hparams["transformer"].encoder.stride) != 1:
            raise UserError(
                f"--encoder_module is {hparams['encoder_module']}, which makes one frame of {more} "
                "of the front-end's, but each has a code to learn: take another"
            )
        sets.check(hparams, train, others, transcripts=False)

    def targets_of(self):
        """Returns what gives no targets of a transcript."""
        return _no_targets

    def train_loading(self, train):
        """As `SpeechTask`'s, with masks that are others in each epoch."""
        dataset, options = super().train_loading(train)
        masks = self._masks()
        if self.augmentation is not None:
            masks.epoch = self.augmentation.epoch  # one, seen by the workers of both
        self.augmentation = masks  # whose epoch is set as that of an augmentation
        return dataset, {**options, "collate_fn": masks}

    def eval_loading(self, part, sets):
        """As `SpeechTask`'s, with masks that are always the same."""
        dataset, options = super().eval_loading(part, sets)
        return dataset, {**options, "collate_fn": self._masks()}

    def _masks(self):
        hparams = self.hparams
        return MaskedBatches(
            probability=hparams.mask_prob,
            length=hparams.mask_length,
            stride=hparams.frame_multiple,
            samples=hparams.compute_features.samples,
            seed=hparams.seed,
        )

    def compute_forward(self, batch, stage):
        """Returns scores (N, codes) of the N masked frames of a batch, and their codes (N,)."""
        masked = batch.mask.data.flatten().nonzero().squeeze(1)  # before the batch leaves the host
        batch = batch.to(self.device)
        features, lengths = self.features(batch, stage)
        noise = self._noise(features, batch, stage)
        return self.predict(features, lengths, noise, batch.mask.data, masked.to(self.device))

    def predict(self, features, lengths, noise, mask, masked):
        """Returns scores and codes, as `compute_forward`.

        Arguments
        ---------
        features, noise : torch.Tensor
            (B, T S, F), of S feature frames in one of the encoder.
        lengths : torch.Tensor
            (B,), relative.
        mask : torch.Tensor
            (B, T), True where the encoder hears the noise alone.
        masked : torch.Tensor
            (N,), where it is, of B T.
        """
        stride = self.hparams.frame_multiple
        stacked = features.unflatten(1, (-1, stride)).flatten(2)  # (B, T, S F)
        codes = self.modules.quantizer(stacked.flatten(0, 1).index_select(0, masked))
        heard = torch.where(mask.repeat_interleave(stride, 1).unsqueeze(2), noise, features)
        encoded = self.modules.transformer(self.modules.front_end(heard, lengths), None, lengths)[0]
        scores = self.modules.code_lin(encoded.flatten(0, 1).index_select(0, masked))
        return scores, codes

    def _noise(self, features, batch, stage):
        hparams = self.hparams
        epoch = hparams.epoch_counter.current if stage == sb.Stage.TRAIN else 0
        with drawn_from("noise", hparams.seed, epoch, *batch.id, device=self.device):
            return torch.randn_like(features) * hparams.noise_std + hparams.noise_mean

    def compute_objectives(self, predictions, batch, stage):
        """Returns the mean cross-entropy of the masked frames; 0 where none is masked."""
        scores, codes = predictions
        losses = torch.nn.functional.cross_entropy(scores.float(), codes, reduction="none")
        if stage != sb.Stage.TRAIN:
            counts = batch.mask.data.sum(1).tolist()
            parts = (t.split(counts) for t in (codes, scores.argmax(-1), losses))
            for key, *measured in zip(batch.id, *parts):
                self.measured[key] = tuple(values.tolist() for values in measured)
        return losses.sum() / max(1, len(losses))

    def validation_metric(self):
        """Returns the masked frames whose code is missed, in percent; tells how codes are used."""
        summary = self._summary(self.measured.values())
        logger.info(
            "masked frames: %.2f%% right (%.2f%% with the most frequent code alone); of %d codes "
            "they have %d, of which %d were found",
            *(summary["accuracy"], summary["most_frequent_code"], self.hparams.codes),
            *(summary["codes"], summary["codes_found"]),
        )
        return 100.0 - summary["accuracy"]

    def _summary(self, measured):
        """What is told of utterances: percentages, the mean loss and the numbers of codes."""
        codes, found, losses = (
            [value for values in column for value in values] for column in zip(*measured)
        )
        frames = max(1, len(codes))
        right = sum(code == guess for code, guess in zip(codes, found))
        most = max(Counter(codes).values(), default=0)
        return {
            "accuracy": 100.0 * right / frames,
            "most_frequent_code": 100.0 * most / frames,
            "loss": sum(losses) / frames,
            "codes": len(set(codes)),
            "codes_found": len({guess for code, guess in zip(codes, found) if code == guess}),
            "masked_frames": len(codes),
        }

    def scores(self, rows):
        """Returns the masked accuracy of a test set, its 95% interval, loss and use of codes."""
        counts = [(total - missed, total) for _, missed, total in self.errors(rows)]
        return {
            **self._summary([self.measured[row.ID] for row in rows]),
            "accuracy_95": metrics.bootstrap_interval(counts, metrics.percentage),
            "utterances": len(rows),
        }

    def errors(self, rows):
        """Returns (ID, masked frames whose code is missed, masked frames) of each utterance."""
        found = []
        for row in rows:
            codes, guesses, _ = self.measured[row.ID]
            missed = sum(code != guess for code, guess in zip(codes, guesses))
            found.append((row.ID, missed, len(codes)))
        return found

    def export(self, results):
        """Writes the folder ``pretrained``: for ``encoder_folder``, and `WaveformEncoder`."""
        state = {key: value.cpu() for key, value in self.hparams.quantizer.state_dict().items()}
        torch.save(state, Path(self.hparams.output_folder) / "quantizer.ckpt")
        export(self.hparams, results, ENCODING)


def _no_targets(wrd):
    return ()
