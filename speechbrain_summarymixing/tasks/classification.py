"""Training of classes of utterances, such as keywords."""

from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.dataio.encoder import CategoricalEncoder

from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.data import sets
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_table
from speechbrain_summarymixing.inference.export import CLASSIFICATION, export
from speechbrain_summarymixing.processes import on_main
from speechbrain_summarymixing.tasks import metrics
from speechbrain_summarymixing.tasks.speech import SpeechTask


class Classification(SpeechTask):
    """SpeechBrain's Brain for a pooled encoder and a classifier.

    The class of an utterance is what its manifest has in the column wrd. Expects the keys of
    ``hparams/parts/classification.yaml`` as hyperparameters.
    """

    name = "classification"
    metric = "error"
    target_names = ("label",)

    @classmethod
    def prepare(cls, hparams, train, others):
        """Returns the classes of the training sets, as SpeechBrain's `CategoricalEncoder`.

        Arguments, and what is raised, are those of `SpeechTask.prepare`.
        """
        file = Path(hparams["output_folder"]) / "label_encoder.txt"
        begun = sets.has_begun(hparams)
        labels = sorted({row.wrd for rows in train.values() for row in rows})
        if begun or not train:
            labels = _known(file, labels)
        strange = [
            f"{name}: {row.ID}: {row.wrd}"
            for name, rows in others.items()
            for row in rows
            if row.wrd not in labels
        ]
        if strange:
            raise UserError(
                listed(f"{len(strange)} utterances of classes that training does not have", strange)
                + f"\nits classes are {', '.join(labels)}: leave these utterances out"
            )
        sets.check(hparams, train, others)
        if hparams["classes"] != len(labels):
            raise UserError(
                f"--classes is {hparams['classes']}, but the training set has {len(labels)}, "
                f"{', '.join(labels[:40])}: give --classes {len(labels)}"
            )
        encoder = CategoricalEncoder()
        encoder.update_from_iterable(labels)
        encoder.expect_len(len(labels))
        if not begun:
            on_main(encoder.save, file)
        return encoder

    def targets_of(self):
        """Returns what gives the index (1,) of a class, in a tuple."""
        return partial(_index, self.targets)

    def validation_metric(self):
        """Returns the error rate in percent."""
        right = [label == found for label, found, _ in self.measured.values()]
        return 100.0 * (1 - sum(right) / len(right))

    def compute_forward(self, batch, stage):
        """Returns log-probabilities (B, C)."""
        batch = batch.to(self.device)
        embeddings = self.modules.embedding_model(*self.features(batch, stage))
        return self.modules.classifier(embeddings).squeeze(1)

    def compute_objectives(self, predictions, batch, stage):
        """Returns the cross-entropy."""
        labels = batch.label.data.squeeze(1)
        if stage != sb.Stage.TRAIN:
            scores, found = predictions.max(-1)
            names = self.targets.decode_torch(found)
            # the class, the one found and its probability
            answers = zip(batch.wrd, names, scores.exp().tolist())
            self.measured.update(zip(batch.id, answers))
        smoothing = self.hparams.label_smoothing if stage == sb.Stage.TRAIN else 0.0
        return torch.nn.functional.cross_entropy(
            predictions.float(), labels, label_smoothing=smoothing
        )

    def scores(self, rows):
        """Returns the accuracy of a test set, its 95% interval, and that of each class."""
        right = {row.ID: int(row.wrd == self.measured[row.ID][1]) for row in rows}
        classes = sorted({row.wrd for row in rows})
        of_class = {name: [right[row.ID] for row in rows if row.wrd == name] for name in classes}
        counts = [(value, 1) for value in right.values()]
        return {
            "accuracy": float(metrics.percentage([sum(column) for column in zip(*counts)])),
            "accuracy_95": metrics.bootstrap_interval(counts, metrics.percentage),
            "accuracy_by_class": {k: 100.0 * sum(v) / len(v) for k, v in of_class.items()},
            "utterances": len(right),
        }

    def errors(self, rows):
        """Returns (ID, 1 where another class was found, 1) of each utterance."""
        return [(row.ID, int(row.wrd != self.measured[row.ID][1]), 1) for row in rows]

    def write_details(self, name, rows):
        """Writes ``predictions_<set>.csv``: each utterance's class and the one found."""
        path = Path(self.hparams.output_folder) / f"predictions_{name}.csv"
        columns = ("ID", "class", "found", "probability")
        answers = [(row.ID, *self.measured[row.ID]) for row in rows]
        write_table(path, columns, [(*answer[:3], f"{answer[3]:.4f}") for answer in answers])

    def export(self, results):
        """Writes the folder ``pretrained``, which SpeechBrain's `EncoderClassifier` loads."""
        export(self.hparams, results, CLASSIFICATION)


def _index(encoder, label):
    return (torch.LongTensor([encoder.encode_label(label)]),)


def _known(file, labels):
    """Returns the classes that the weights were trained with, in their order."""
    encoder = CategoricalEncoder()
    if not encoder.load_if_possible(file):
        raise UserError(
            f"{file}: no such file, so there is nothing to test: train first (without --test_only)"
        )
    known = [encoder.ind2lab[index] for index in range(len(encoder))]
    if labels and labels != known:
        raise UserError(
            f"{file}: the weights there were trained with the classes {', '.join(known)}, not "
            f"{', '.join(labels)}: give those again, or take another --output_folder"
        )
    return known
