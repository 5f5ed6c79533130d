"""What the training of every task on speech shares: features, and what a task has to say."""

import speechbrain as sb

from speechbrain_summarymixing.training.augment import drawn_from
from speechbrain_summarymixing.training.brain import ExperimentBrain


class SpeechTask(ExperimentBrain):
    """SpeechBrain's Brain for an encoder of speech; a task adds its head, loss and measures.

    `experiment.run` asks a task for what stands here. Expects the features, normalisation and
    augmentation of ``hparams/parts/asr.yaml`` as hyperparameters.
    """

    targets = None  # what ``prepare`` returned
    target_names = ()  # of what ``provide_targets`` returns, as the batch has them

    @classmethod
    def prepare(cls, hparams, train, others):
        """Checks all utterances and returns what targets are made with, such as a tokenizer.

        Arguments
        ---------
        hparams : dict
        train, others : dict
            From a set's name to its list of utterances.

        Raises
        ------
        UserError
            If utterances cannot be used.
        """
        raise NotImplementedError

    def provide_targets(self, wrd):
        """Returns the targets of an utterance, given the manifest's column wrd."""
        raise NotImplementedError

    def before_tests(self):
        """Prepares for the test sets, after training."""

    def scores(self, rows):
        """Returns what was measured on a test set of utterances ``rows``, for ``results.json``.

        A dict; a measure in percent, such as WER, has its 95% bootstrap interval in WER_95.
        """
        raise NotImplementedError

    def errors(self, rows):
        """Returns (ID, errors, total) of each utterance ``rows`` of a test set, to compare systems.

        The sum of the errors over that of the totals is the task's error rate.
        """
        raise NotImplementedError

    def write_details(self, name, rows):
        """Writes what was measured of each utterance ``rows`` of the test set ``name``."""
        raise NotImplementedError

    def export(self, results):
        """Writes the model to use, given what ``results.json`` holds."""
        raise NotImplementedError

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
