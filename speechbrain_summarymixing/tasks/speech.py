"""What the training of every task on speech shares: loading and features."""

from functools import partial

import speechbrain as sb
import torch

from speechbrain_summarymixing.corpora.shards import urls_of
from speechbrain_summarymixing.data import loading, shards, tokens
from speechbrain_summarymixing.data.augment import DrawnByUtterance, drawn_from
from speechbrain_summarymixing.data.sets import limits, scanned_amount, to_train_on
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.brain import ExperimentBrain


class SpeechTask(ExperimentBrain):
    """SpeechBrain's Brain for an encoder of speech; a task adds its head, loss and measures.

    Expects the features, normalisation and augmentation of ``hparams/parts/asr.yaml`` as
    hyperparameters.
    """

    target_names = ()  # of the targets, as the batch has them

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.hparams.compute_features.to(self.device)  # it has no weights, so it is in no modules

    def targets_of(self):
        """Returns a function from the manifest's column wrd to the targets of an utterance.

        Workers that are spawned get it, so it must be possible to pickle it.
        """
        raise NotImplementedError

    def train_loading(self, train):
        """Returns the dataset of the training sets, or of shards, and its loader's options.

        Raises
        ------
        UserError
            If nothing is left to train on; of shards, if the length of an epoch is not known, or
            there are too few.
        """
        hparams = vars(self.hparams)
        if hparams["shards"] is not None:
            return self._shard_loading(hparams)
        self.augmentation = augmentation(hparams)
        dataset = self._dataset(to_train_on(hparams, train), augment=self.augmentation)
        options = loading.train_loader_options(
            dataset,
            **batch_limits(hparams),
            num_buckets=hparams["num_buckets"],
            seed=hparams["seed"],
            **self.workers(),
        )
        return dataset, options

    def eval_loading(self, part, sets):
        """Returns one dataset of some sets, the shortest utterance first, and loader options."""
        dataset = self._dataset(sets)
        size = getattr(self.hparams, f"{part}_batch_size")
        options = loading.eval_loader_options(
            dataset, batch_size=size, **self.place(), **self.workers()
        )
        return dataset, options

    def encoder(self):
        """Returns the encoder, without the front-end."""
        return self.hparams.transformer.encoder

    def amount(self, dataset):
        """Returns how many utterances and hours a dataset holds, in words."""
        hparams = vars(self.hparams)
        if not hasattr(dataset, "utterances"):
            urls = urls_of(hparams["shards"])
            amount = scanned_amount(hparams) or shards.amount_beside(urls)
            told = f"{len(urls)} shards"
            return told if amount is None else f"{told}, {amount.seconds / 3600:.2f} h"
        seconds = sum(dataset.lengths())
        return f"{len(dataset)} utterances, {seconds / 3600:.2f} h"

    def _dataset(self, sets, augment=None):
        utterances = [utterance for rows in sets.values() for utterance in rows]
        return loading.Utterances(
            sorted(utterances, key=lambda u: (u.duration, u.ID)),
            self.targets_of(),
            self.target_names,
            **reading(vars(self.hparams)),
            augment=augment,
        )

    def _shard_loading(self, hparams):
        urls, place = urls_of(hparams["shards"]), self.place()
        processes = place["processes"]
        steps = hparams["shard_epoch_steps"]
        if steps is None:
            amount = scanned_amount(hparams) or shards.amount_beside(urls)
            if amount is None:
                raise UserError(
                    f"no shards.json lies beside {urls[0]}, so the length of an epoch is not "
                    "known: give --shard_epoch_steps"
                )
            steps = shards.epoch_steps(amount, **batch_limits(hparams), processes=processes)
        elif not isinstance(steps, int) or steps < 1:
            raise UserError(f"--shard_epoch_steps is {steps}, but must be 1 or more")
        options = shards.train_loader_options(
            urls, steps=steps, processes=processes, **self.workers()
        )
        spell = tokens.unspellable([], self.targets)
        self.shard_reader = shards.ShardReader(
            urls,
            self.targets,
            **batch_limits(hparams),
            num_buckets=hparams["num_buckets"],
            seed=hparams["seed"],
            check=partial(shards.unfit, spell=spell),
            **limits(hparams),
            **place,
            **reading(hparams),
            augment=augmentation(hparams),
        )
        return self.shard_reader.dataset(), options

    def features(self, batch, stage):
        """Returns the normalised features (B, T, F) of a batch, and relative lengths (B,)."""
        self._batch_ids = batch.id
        wavs, lengths = batch.sig
        hparams = self.hparams
        features = hparams.compute_features(wavs, lengths)
        epoch = hparams.epoch_counter.current
        features = self.modules.normalize(features, lengths, epoch=epoch)
        if stage == sb.Stage.TRAIN and hparams.feature_augment is not None:
            with drawn_from("features", hparams.seed, epoch, *batch.id, device=self.device):
                features, lengths = hparams.feature_augment(features, lengths)
        return features, lengths


def batch_limits(hparams):
    """Audio in one batch, in seconds, and utterances, at most."""
    return {key: hparams[key] for key in ("batch_seconds", "max_batch_size")}


def augmentation(hparams):
    """Returns the `DrawnByUtterance` of hparams["wav_augment"], or None where there is none.

    Raises
    ------
    UserError
        If a folder of what is added has no recordings.
    """
    augment = hparams["wav_augment"]
    for part in augment.modules() if isinstance(augment, torch.nn.Module) else ():
        if getattr(part, "recordings", None) is not None:
            part.recordings.find()
    return None if augment is None else DrawnByUtterance(augment, hparams["seed"])


def reading(hparams):
    """How audio is read, for training and evaluation alike."""
    return {
        "sample_rate": hparams["sample_rate"],
        "whole_samples": hparams["compute_features"].samples,
    }
