"""What a task says of itself: its sets, what it learns, measures and exports."""

import speechbrain as sb

from speechbrain_summarymixing.data.sets import manifests
from speechbrain_summarymixing.processes import number_of_processes


class Task(sb.Brain):
    """SpeechBrain's Brain with the questions that `experiment.run` and `ExperimentBrain` ask."""

    reads_shards = False  # whether it can train on ``shards``
    name = None  # what a system's key ``task`` calls it
    targets = None  # what ``prepare`` returned
    metric = None  # what validation measures, the lower the better; a key of `curves.LABELS`
    unit = "%"  # of what the task measures
    batch_option = "batch_seconds"  # which bounds a training batch
    speed = "audio_per_second"  # what `amount_of` returns, by the second
    shard_reader = None  # a `shards.ShardReader`, where training is on shards
    augmentation = None  # an `augment.DrawnByUtterance` of the training set
    measured = {}  # of an utterance's ID, what the stage has measured of it; at its end, of all

    @classmethod
    def sets(cls, hparams, *, training=True):
        """Returns training, validation and test sets: of a set's name its list of utterances.

        Those of the corpus or the CSV files that the hyperparameters name; a task that is not on
        speech has its own, whose utterances have an ``ID``, ``wrd`` and ``duration``. Without
        ``training`` there need be no training sets.
        """
        return manifests(hparams, training=training)

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

    def train_loading(self, train):
        """Returns the dataset of the training sets, by name, and its loader's options."""
        raise NotImplementedError

    def eval_loading(self, part, sets):
        """Returns one dataset of some sets, by name, and its loader's options.

        ``part`` is "valid" or "test".
        """
        raise NotImplementedError

    def amount(self, dataset):
        """Returns what a dataset of `train_loading` or `eval_loading` holds, in words."""
        raise NotImplementedError

    def amount_of(self, batch):
        """Returns how much is learnt of in a batch: seconds of audio, or ``speed`` says what."""
        return float(sum(batch.duration))

    def validation_metric(self):
        """Returns the value of ``metric`` over the validation set."""
        raise NotImplementedError

    def workers(self):
        """Returns what `loading.worker_options` asks for."""
        return {"num_workers": self.hparams.num_workers, "device": self.device}

    def place(self):
        """Returns this process's number among those that share the work, and how many they are."""
        processes = number_of_processes()
        return {"rank": self.rank if processes > 1 else 0, "processes": processes}

    def encoder(self):
        """Returns the module that ``--compile`` compiles."""
        raise NotImplementedError

    def before_tests(self):
        """Prepares for the test sets, after training."""

    def scores(self, rows):
        """Returns what was measured on a test set of utterances ``rows``, for ``results.json``.

        A dict; a measure in percent, such as WER, has its 95% bootstrap interval in WER_95.
        """
        raise NotImplementedError

    def scores_anew(self, evaluate, rows):
        """Returns more of `scores`: what is measured on a test set in other ways.

        ``evaluate`` measures it again, into ``measured``.
        """
        return {}

    def errors(self, rows):
        """Returns (ID, errors, total) of each utterance ``rows`` of a test set, to compare systems.

        The sum of the errors over that of the totals is the task's error rate.
        """
        raise NotImplementedError

    def write_details(self, name, rows):
        """Writes what was measured of each utterance ``rows`` of the test set ``name``."""

    def export(self, results):
        """Writes the model to use, given what ``results.json`` holds."""
        raise NotImplementedError
