"""Training of a Transformer language model on text, for a recogniser's beam search."""

import gzip
import io
import logging
import math
import os
import shutil
import zlib
from pathlib import Path

import numpy
import ruamel.yaml
import speechbrain as sb
import torch
from speechbrain.dataio.dataio import length_to_mask
from torch.utils.data import Dataset, Sampler

from speechbrain_summarymixing.data import loading
from speechbrain_summarymixing.data.sets import has_begun, names, spelling
from speechbrain_summarymixing.data.tokens import digest, unspellable
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import atomically, made_once, write_atomically
from speechbrain_summarymixing.inference.provenance import CONFIG, write_config
from speechbrain_summarymixing.processes import on_main
from speechbrain_summarymixing.tasks import metrics
from speechbrain_summarymixing.training.brain import ExperimentBrain

logger = logging.getLogger(__name__)

INTERFACE = """
model: !ref <lm_model>

tokenizer: !new:sentencepiece.SentencePieceProcessor

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        lm: !ref <lm_model>
        tokenizer: !ref <tokenizer>
"""


class LanguageModel(ExperimentBrain):
    """SpeechBrain's Brain for a model of the next token; perplexity is that of a token.

    Learns the transcripts of the training sets and the lines of ``lm_text``. Expects the keys of
    ``recipes/LibriSpeech/LM/hparams/transformer.yaml`` as hyperparameters.
    """

    name = "language model"
    metric = "perplexity"
    unit = ""
    batch_option = "batch_sentences"
    speed = "sentences_per_second"

    @classmethod
    def prepare(cls, hparams, train, others):
        """Returns the tokenizer; see `sets.spelling`."""
        return spelling(hparams, train, others, open_audio=False)

    def train_loading(self, train):
        """Returns the sentences to learn, of the training sets and ``lm_text``, and options."""
        hparams = self.hparams
        path = Path(hparams.output_folder) / "train.txt"
        if not (has_begun(vars(hparams)) and path.is_file()):
            words = [utterance.wrd for rows in train.values() for utterance in rows]
            spell = unspellable([], self.targets)
            on_main(write_sentences, path, words, names(hparams.lm_text), spell)
        dataset = self._sentences(path)
        logger.info("language model: %d sentences to train on", len(dataset))
        batches = LengthBuckets(dataset.lengths(), hparams.batch_sentences, seed=hparams.seed)
        return dataset, {"batch_sampler": batches, **loading.worker_options(**self.workers())}

    def eval_loading(self, part, sets):
        """Returns the sentences of some sets and options of a loader."""
        name = "valid" if part == "valid" else f"test_{'-'.join(sets)}"
        path = Path(self.hparams.output_folder) / f"{name}.txt"
        rows = [utterance for rows in sets.values() for utterance in rows]
        on_main(write_sentences, path, [row.wrd for row in rows])
        dataset = self._sentences(path)
        size = self.hparams.batch_sentences
        options = loading.eval_loader_options(
            dataset, batch_size=size, **self.place(), **self.workers()
        )
        return dataset, options

    def encoder(self):
        """Returns the Transformer's layers."""
        return self.hparams.lm_model.encoder

    def amount(self, dataset):
        """Returns how many sentences a dataset holds, in words."""
        return f"{len(dataset)} sentences"

    def amount_of(self, batch):
        """Returns the number of sentences."""
        return len(batch.id)

    def _sentences(self, path):
        on_main(index_sentences, path)
        return Sentences(path, self.targets, max_tokens=self.hparams.max_tokens)

    def validation_metric(self):
        """Returns the perplexity of a token."""
        nats, tokens = map(sum, zip(*self.measured.values()))
        return math.exp(min(nats / tokens, 100.0))

    def compute_forward(self, batch, stage):
        """Returns scores (B, U, V) of each token after those before."""
        batch = batch.to(self.device)
        self._batch_ids = batch.id
        return self.modules.lm_model(batch.tokens_bos.data)

    def compute_objectives(self, predictions, batch, stage):
        """Returns the mean cross-entropy of a token, in nats."""
        targets, lengths = batch.tokens_eos
        valid = length_to_mask((lengths * targets.size(1)).round(), targets.size(1)).bool()
        nats = torch.nn.functional.cross_entropy(
            predictions.float().transpose(1, 2), targets, reduction="none"
        ).masked_fill(~valid, 0.0)  # (B, U)
        if stage != sb.Stage.TRAIN:
            # of each sentence its nats and tokens
            counts = zip(nats.sum(1, dtype=torch.float64).tolist(), valid.sum(1).tolist())
            self.measured.update(zip(batch.id, counts))
        return nats.sum() / valid.sum()

    def scores(self, rows):
        """Returns the perplexity of a token of a test set, its 95% interval, and sentences."""

        def perplexity(counts):
            return numpy.exp(numpy.minimum(counts[0] / counts[1], 100.0))

        return {
            "perplexity": self.validation_metric(),
            "perplexity_95": metrics.bootstrap_interval(list(self.measured.values()), perplexity),
            "sentences": len(self.measured),
        }

    def errors(self, rows):
        """Returns (ID, nats, tokens) of each utterance of a test set."""
        return [(row.ID, *self.measured[str(index)]) for index, row in enumerate(rows)]

    def export(self, results):
        """Writes the folder ``pretrained``: YAML, lm.ckpt, tokenizer.ckpt and config.json."""
        output_folder = Path(self.hparams.output_folder)
        folder = output_folder / "pretrained"
        folder.mkdir(exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)  # of other weights
        yaml = ruamel.yaml.YAML()
        tree = yaml.load((output_folder / "hyperparams.yaml").read_text(encoding="utf-8"))
        text = io.StringIO()
        yaml.dump({"lm_model": tree["lm_model"]}, text)
        write_atomically(folder / "hyperparams.yaml", text.getvalue() + INTERFACE)
        weights, state = io.BytesIO(), self.hparams.lm_model.state_dict()
        torch.save({key: value.cpu() for key, value in state.items()}, weights)
        write_atomically(folder / "lm.ckpt", weights.getvalue())
        shutil.copy(output_folder / "tokenizer.model", folder / "tokenizer.ckpt")
        write_config(folder)


class Sentences(Dataset):
    """Lines of a text file as tokens; the file stays on disk.

    Arguments
    ---------
    path : str or Path
        UTF-8, one sentence a line.
    tokenizer : sentencepiece.SentencePieceProcessor
    max_tokens : int
        What a longer sentence is cut to.
    """

    def __init__(self, path, tokenizer, *, max_tokens):
        self.path, self.tokenizer, self.max_tokens = Path(path), tokenizer, max_tokens
        self._starts = None

    def __getstate__(self):
        """What a worker that is spawned gets: it opens the index itself."""
        return {**vars(self), "_starts": None}

    @property
    def starts(self):
        """Where each sentence begins, in bytes, and the last one ends: an array on the disk."""
        if self._starts is None:
            self._starts = numpy.load(_index(self.path), mmap_mode="r")
        return self._starts

    def lengths(self):
        """Bytes of each sentence (N,), int32."""
        return numpy.diff(self.starts).astype(numpy.int32)

    def __len__(self):
        """The number of sentences."""
        return len(self.starts) - 1

    def __getitem__(self, index):
        """A sentence's line number, from 0, as ``id``, and its tokens."""
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            line = file.read(self.starts[index + 1] - self.starts[index]).decode()
        tokens = self.tokenizer.encode(line.strip())[: self.max_tokens]
        return {
            "id": str(index),
            "tokens_bos": torch.LongTensor([self.tokenizer.bos_id(), *tokens]),
            "tokens_eos": torch.LongTensor([*tokens, self.tokenizer.eos_id()]),
        }


class LengthBuckets(Sampler):
    """Random batches of sentences of like length, which are others in each epoch.

    Arguments
    ---------
    lengths : numpy.ndarray
        (N,).
    batch_size : int
        Sentences in a batch; the last may have fewer.
    seed : int
    batches : int
        So many are sorted by length together.
    """

    def __init__(self, lengths, batch_size, *, seed, batches=100):
        self.lengths, self.batch_size, self.seed, self.batches = lengths, batch_size, seed, batches
        self.epoch = 0

    def set_epoch(self, epoch):
        """Sets the epoch, from which the order follows."""
        self.epoch = epoch

    def __len__(self):
        """The number of batches."""
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self):
        """Yields lists of indices."""
        random = numpy.random.default_rng([self.seed, self.epoch])
        order = random.permutation(len(self.lengths))
        for start in range(0, len(order), self.batches * self.batch_size):
            some = order[start : start + self.batches * self.batch_size]
            some = some[self.lengths[some].argsort(kind="stable")]
            batches = range(0, len(some), self.batch_size)
            for first in random.permutation(batches):
                yield some[first : first + self.batch_size].tolist()


def write_sentences(path, transcripts, files=(), spell=None):
    """Writes a text file of transcripts and of the lines of other text files.

    Arguments
    ---------
    path : Path
        Left alone if it was made from the same.
    transcripts : list of str
    files : list of str
        Text, UTF-8, one sentence a line, or the same compressed by gzip (.gz).
    spell : callable or None
        Says why a line of a file cannot be written in the tokens, or None: it is left out.

    Raises
    ------
    UserError
        If a file cannot be read, none of its lines can be written, or there is no sentence.
    """
    source = {"transcripts": digest(transcripts), "files": []}
    for name in files:
        try:
            status = os.stat(name)
        except OSError as error:
            raise UserError(
                f"--lm_text {name}: cannot be read ({error.strerror}): give the path of a text file"
            ) from error
        source["files"].append([os.path.abspath(name), status.st_size, status.st_mtime_ns])
    made_once(path, source, lambda: _write_sentences(path, transcripts, files, spell))


def index_sentences(path):
    """Writes where each line of a text begins, unless that was done since the text was written."""
    index = _index(path)
    if index.is_file() and index.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return
    with open(path, "rb") as file:
        lengths = numpy.fromiter((len(line) for line in file), dtype=numpy.int64)
    with atomically(index) as temporary, open(temporary, "wb") as target:
        numpy.save(target, numpy.concatenate([[0], lengths.cumsum()]))


def _copy_lines(name, target, spell):
    """Writes the lines of a text file, but for those that have no tokens; returns characters."""
    written, unwritable, first = 0, 0, ""
    try:
        with (gzip.open if name.endswith(".gz") else open)(name, "rt", encoding="utf-8") as file:
            for number, line in enumerate(map(str.strip, file), 1):
                if line and spell is not None and (reason := spell(line)) is not None:
                    unwritable += 1
                    first = first or f"line {number} has {reason}"
                elif line:
                    written += target.write(line + "\n")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(
            f"--lm_text {name}: cannot be read as UTF-8 text, plain or .gz ({error})"
        ) from error
    if unwritable:
        told = f"--lm_text {name}: {unwritable} lines cannot be written in the tokens ({first})"
        if not written:
            raise UserError(f"{told}: write all as the transcripts are, in capitals or not")
        logger.warning("%s: they are left out", told)
    return written


def _index(path):
    return path.with_name(f"{path.name}.index.npy")


def _write_sentences(path, transcripts, files, spell):
    written = 0
    with atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as target:
        for text in transcripts:
            written += target.write(" ".join(text.split()) + "\n")
        for name in files:
            written += _copy_lines(name, target, spell)
        if not written:
            raise UserError(f"{path}: no sentence to write: give transcripts or --lm_text")
