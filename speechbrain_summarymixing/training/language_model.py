"""Training of a Transformer language model on text, for a recogniser's beam search."""

import gzip
import io
import json
import logging
import math
import os
import shutil
from pathlib import Path

import numpy
import ruamel.yaml
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import ReproducibleRandomSampler
from speechbrain.utils.distributed import if_main_process
from torch.utils.data import BatchSampler, Dataset

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import atomically, made_once, write_atomically
from speechbrain_summarymixing.training import curves, data, experiment, sets
from speechbrain_summarymixing.training.brain import ExperimentBrain
from speechbrain_summarymixing.training.processes import number_of_processes, on_main

logger = logging.getLogger(__name__)

INTERFACE = """
model: !ref <lm_model>

tokenizer: !new:sentencepiece.SentencePieceProcessor

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        lm: !ref <lm_model>
        tokenizer: !ref <tokenizer>
"""


def run(argv):
    """Trains, tests and exports a language model, as a YAML file and options say.

    Arguments
    ---------
    argv : list of str
        A hyperparameter file, then ``--key value`` for its keys and SpeechBrain's run options.
    """
    with experiment.errors_reported():
        hparams, run_opts = experiment.start(argv)
        if hparams["shards"] is not None:
            raise UserError("--shards is for recognisers: give --train_csv, and --lm_text for more")
        train, valid, tests = sets.manifests(hparams, training=not run_opts["test_only"])
        tokenizer = sets.spelling(hparams, train, {**valid, **tests}, open_audio=False)
        folder = Path(hparams["output_folder"])
        brain = LanguageModel(
            modules={"lm_model": hparams["lm_model"]},
            opt_class=hparams["optimizer"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        brain.train_loggers = experiment.train_loggers(hparams)
        texts = {}
        for name, rows, files in (
            ("train", train, sets.names(hparams["lm_text"])),
            ("valid", valid, []),
            ("test", tests, []),
        ):
            words = [u.wrd for part in rows.values() for u in part]
            path = folder / f"{name}.txt"
            if name != "train" or not (sets.has_begun(hparams) and path.is_file()):
                on_main(write_sentences, path, words, files)
            texts[name] = Sentences(path, tokenizer, max_tokens=hparams["max_tokens"])
        logger.info("language model: %d sentences to train on", len(texts["train"]))
        options = {"collate_fn": PaddedBatch, "num_workers": hparams["num_workers"]}
        batches = ShuffledBatches(
            ReproducibleRandomSampler(texts["train"], seed=hparams["seed"]),
            hparams["batch_sentences"],
            drop_last=False,
        )
        evaluation = {**options, "batch_size": hparams["batch_sentences"]}
        brain.fit(
            hparams["epoch_counter"],
            texts["train"],
            texts["valid"],
            train_loader_kwargs={**options, "batch_sampler": batches},
            valid_loader_kwargs=evaluation,
        )
        brain.evaluate(texts["test"], test_loader_kwargs=evaluation)
        if if_main_process():
            last = curves.read(folder)[-1]
            results = {
                "test": {"perplexity": brain.validation_metric(), "sentences": len(texts["test"])},
                "parameters": sum(p.numel() for p in hparams["lm_model"].parameters()),
                "train_sentences": len(texts["train"]),
                "train_seconds": float(last["train_seconds"]),
                "optimizer_steps": int(last["steps"]),
                "processes": number_of_processes(),
                "device": brain.device,
            }
            write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
            export(brain.hparams)


class LanguageModel(ExperimentBrain):
    """SpeechBrain's Brain for a model of the next token; perplexity is that of a token."""

    metric = "perplexity"
    batch_option = "batch_sentences"

    def on_stage_start(self, stage, epoch=None):
        """Starts the stage's clock and counts."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self._nats, self._tokens = 0.0, 0

    def validation_metric(self):
        """Returns the perplexity of a token."""
        return math.exp(min(self._nats / max(1, self._tokens), 100.0))

    def compute_forward(self, batch, stage):
        """Returns scores (B, U, V) of each token after those before."""
        batch = batch.to(self.device)
        self._batch_ids = batch.id
        return self.modules.lm_model(batch.tokens_bos.data)

    def compute_objectives(self, predictions, batch, stage):
        """Returns the mean cross-entropy of a token, in nats."""
        targets, lengths = batch.tokens_eos
        valid = sb.dataio.dataio.length_to_mask((lengths * targets.size(1)).round()).bool()
        summed = torch.nn.functional.cross_entropy(
            predictions.float().flatten(0, 1),
            targets.masked_fill(~valid, -100).flatten(),
            reduction="sum",
        )
        tokens = valid.sum()
        if stage != sb.Stage.TRAIN:
            self._nats += float(summed)
            self._tokens += int(tokens)
        return summed / tokens


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
        with open(path, "rb") as file:
            lengths = numpy.fromiter((len(line) for line in file), dtype=numpy.int64)
        self.starts = numpy.concatenate([[0], lengths.cumsum()])

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


class ShuffledBatches(BatchSampler):
    """Batches of a random sampler, which are others in each epoch."""

    def set_epoch(self, epoch):
        """Sets the epoch, from which the order follows."""
        self.sampler.set_epoch(epoch)


def write_sentences(path, transcripts, files):
    """Writes a text file of transcripts and of the lines of other text files.

    Arguments
    ---------
    path : Path
        Left alone if it was made from the same.
    transcripts : list of str
    files : list of str
        Text, UTF-8, one sentence a line, or the same compressed by gzip (.gz).

    Raises
    ------
    UserError
        If a file cannot be read or there is no sentence.
    """
    source = {"transcripts": data.digest(transcripts), "files": []}
    for name in files:
        try:
            status = os.stat(name)
        except OSError as error:
            raise UserError(
                f"--lm_text {name}: cannot be read ({error.strerror}): give the path of a text file"
            ) from error
        source["files"].append([os.path.abspath(name), status.st_size, status.st_mtime_ns])
    made_once(path, source, lambda: _write_sentences(path, transcripts, files))


def _write_sentences(path, transcripts, files):
    written = 0
    with atomically(path) as temporary, open(temporary, "w", encoding="utf-8") as target:
        for text in transcripts:
            written += target.write(text + "\n")
        for name in files:
            try:
                with (gzip.open if name.endswith(".gz") else open)(
                    name, "rt", encoding="utf-8"
                ) as f:
                    for line in f:
                        if line.strip():
                            written += target.write(line.strip() + "\n")
            except (OSError, EOFError, UnicodeDecodeError) as error:
                raise UserError(
                    f"--lm_text {name}: cannot be read as UTF-8 text, plain or .gz ({error})"
                ) from error
        if not written:
            raise UserError(f"{path}: no sentence to write: give transcripts or --lm_text")


def export(hparams):
    """Writes hyperparams.yaml, lm.ckpt and tokenizer.ckpt to the output folder's ``pretrained``.

    Arguments
    ---------
    hparams : namespace
        With the trained ``lm_model``, and ``output_folder``.
    """
    output_folder = Path(hparams.output_folder)
    folder = output_folder / "pretrained"
    folder.mkdir(exist_ok=True)
    yaml = ruamel.yaml.YAML()
    tree = yaml.load((output_folder / "hyperparams.yaml").read_text(encoding="utf-8"))
    text = io.StringIO()
    yaml.dump({"lm_model": tree["lm_model"]}, text)
    write_atomically(folder / "hyperparams.yaml", text.getvalue() + INTERFACE)
    weights = io.BytesIO()
    torch.save({key: value.cpu() for key, value in hparams.lm_model.state_dict().items()}, weights)
    write_atomically(folder / "lm.ckpt", weights.getvalue())
    shutil.copy(output_folder / "tokenizer.model", folder / "tokenizer.ckpt")
