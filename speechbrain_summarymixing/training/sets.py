"""Where an experiment's utterances come from, and the tokens that spell them."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.corpora import (
    an4,
    barista,
    common_voice,
    librispeech,
    mini,
    slurp,
    speech_commands,
)
from speechbrain_summarymixing.corpora.manifest import check_manifests, read_manifest, sensible
from speechbrain_summarymixing.corpora.shards import urls_of
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.training import data, shards
from speechbrain_summarymixing.training.processes import on_main

logger = get_logger(__name__)

# From a corpus to its preparation and the splits it trains, validates and tests on.
CORPORA = {
    "mini": (mini.prepare, ["train"], ["dev"], ["test"]),
    "an4": (an4.prepare, ["train"], ["valid"], ["test"]),
    "librispeech": (
        librispeech.prepare,
        ["train-clean-100", "train-clean-360", "train-other-500"],
        ["dev-clean"],
        ["test-clean", "test-other"],
    ),
    "commonvoice": (common_voice.prepare, ["train"], ["dev"], ["test"]),
    "slurp": (slurp.prepare, ["train"], ["devel"], ["test"]),
    "barista": (barista.prepare, ["train"], ["valid"], ["test"]),
    "speechcommands": (speech_commands.prepare, ["train"], ["valid"], ["test"]),
}
# Options of a corpus's preparation, from the hyperparameters.
CORPUS_OPTIONS = {
    "mini": {"train": "mini_train_utterances"},
    "commonvoice": {"language": "language"},
    "barista": {"fold": "fold"},
    "speechcommands": {"words": "words"},
}

SCANNED = "shards.json"  # in the output folder: what was found in the shards


def manifests(hparams, *, training=True):
    """Prepares the corpus, or reads the CSV files, that the hyperparameters name.

    Arguments
    ---------
    hparams : dict
    training : bool
        False: there is nothing to train, so training sets are not looked for.

    Returns
    -------
    tuple of dict
        Training, validation and test sets: from a set's name to its list of utterances.

    Raises
    ------
    UserError
        If the corpus is unknown, only some of the three CSV files are given, two of them have the
        same name, or a training set is also a validation or test set.
    """
    on_shards = hparams["shards"] is not None  # then there is no training set
    parts = ("train", "valid", "test")
    csvs = [names(hparams[f"{part}_csv"]) for part in parts]
    if on_shards and csvs[0]:
        raise UserError(f"--shards and --train_csv {csvs[0][0]} are both given: give one of them")
    root = hparams["data_folder"]
    if any(csvs):
        if not all(csvs[on_shards:]):
            raise UserError(
                "--train_csv, --valid_csv and --test_csv are "
                f"{', '.join(str(hparams[f'{part}_csv']) for part in parts)}: "
                "give all three (with --shards the latter two), or none and a --corpus"
            )
        _check_names([Path(csv) for part in csvs for csv in part])
        splits = [{Path(csv).stem: csv for csv in part} for part in csvs]
        read = partial(read_manifest, data_root=root)
    else:
        corpus = hparams["corpus"]
        if corpus not in CORPORA:
            raise UserError(
                f"--corpus is {corpus}, but must be one of {', '.join(CORPORA)}: "
                "for another corpus give --train_csv, --valid_csv and --test_csv"
            )
        prepare, *defaults = CORPORA[corpus]
        splits = [
            dict.fromkeys(names(hparams[f"{part}_splits"]) or default)
            for part, default in zip(parts, defaults)
        ]
        read = read_manifest
    train, valid, tests = splits
    if both := sorted(train.keys() & (valid.keys() | tests.keys())):
        raise UserError(
            f"{', '.join(both)} is to train on and to validate or test on: its error rates would "
            "say nothing; name other sets"
        )
    if on_shards or not training:
        train.clear()
    if not any(csvs):
        options = {name: hparams[key] for name, key in CORPUS_OPTIONS.get(corpus, {}).items()}
        every = list(train | valid | tests)
        paths = on_main(prepare, root, hparams["manifest_folder"], splits=every, **options)
        splits = [{name: paths[name] for name in part} for part in splits]
    known = {path: read(path) for part in splits for path in part.values()}
    return tuple({name: known[path] for name, path in part.items()} for part in splits)


def _check_names(csvs):
    """Sets are known by the name of their file, and so are the results."""
    for one in csvs:
        for other in csvs:
            if one.stem == other.stem and one.absolute() != other.absolute():
                raise UserError(
                    f"{one} and {other} are two sets of one name, {one.stem}, by which results "
                    "are written: rename one file"
                )


def names(value):
    """Returns a list of names from a list or from text such as "dev-clean,dev-other"."""
    if value is None:
        return []
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def spelling(hparams, train, others, symbols=()):
    """Checks all manifests in one report, and trains the tokenizer or takes a trained one.

    Arguments
    ---------
    hparams : dict
    train, others : dict
        From a set's name to its list of utterances. Without a training set, and with ``shards``,
        the tokenizer is that of the run; shards are read for it once in a run's life.
    symbols : sequence of str
        Text that is one token, in a tokenizer that is trained here.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        If utterances cannot be used, or vocab_size does not fit the text or the tokenizer.
    """
    texts = [utterance.wrd for rows in train.values() for utterance in rows]
    path = Path(hparams["output_folder"]) / "tokenizer.model"
    size = hparams["vocab_size"]
    if hparams["tokenizer_folder"] is not None:
        tokenizer = data.take_tokenizer(hparams["tokenizer_folder"], path, vocab_size=size)
    elif hparams["shards"] is not None:
        on_main(_spelling_of_shards, hparams, path)
        tokenizer = data.load_tokenizer(path)
    elif not train:
        tokenizer = data.load_tokenizer(path)
    else:
        tokenizer = None
    check(hparams, train, others, spell=data.unspellable(texts, tokenizer))
    if tokenizer is not None:
        return tokenizer
    on_main(
        data.train_tokenizer,
        texts,
        path,
        vocab_size=size,
        token_type=hparams["token_type"],
        symbols=symbols,
        fixed=has_begun(hparams),
    )
    return data.load_tokenizer(path)


def check(hparams, train, others, spell=None):
    """Checks all sets in one report; the log tells warnings. See `check_manifests`.

    Arguments
    ---------
    hparams : dict
    train, others : dict
        From a set's name to its list of utterances.
    spell : callable or None
        Returns why a transcript cannot be written in the tokens, or None.
    """
    warnings = on_main(
        check_manifests,
        {**train, **others},
        spell=spell,
        training_splits=tuple(train),
        open_audio=hparams["test_csv"] is not None,
    )
    for warning in warnings:
        logger.warning(warning)


def to_train_on(hparams, train):
    """Returns training sets without utterances that are too short or too long; the log tells them.

    Arguments
    ---------
    hparams : dict
    train : dict
        From a set's name to its list of utterances.

    Raises
    ------
    UserError
        If none is left of a set.
    """
    kept = {}
    for name, rows in train.items():
        kept[name], report = sensible(rows, **limits(hparams))
        if not kept[name]:
            raise UserError(f"{name}: nothing to train on: {report}")
        if report is not None:
            logger.warning(f"{name}: {report}")
    return kept


def has_begun(hparams):
    """Whether the run has saved weights, which depend on its tokens or classes."""
    return any(hparams["checkpointer"].checkpoints_dir.glob("CKPT*"))


def _spelling_of_shards(hparams, path):
    """Trains a tokenizer on the transcripts of shards, and notes how much they hold."""
    if scanned_amount(hparams) is not None and path.is_file():
        return
    texts, amount = shards.scan(urls_of(hparams["shards"]), **limits(hparams))
    settings = {key: hparams[key] for key in ("vocab_size", "token_type")}
    data.train_tokenizer(texts, path, **settings, fixed=has_begun(hparams))
    found = {"settings": scan_settings(hparams), "amount": asdict(amount)}
    write_atomically(path.with_name(SCANNED), json.dumps(found) + "\n")


def scan_settings(hparams):
    """What the scan of shards, and the tokenizer trained on it, depend on."""
    return {key: str(hparams[key]) for key in ("shards", "vocab_size", "token_type")}


def scanned_amount(hparams):
    """Returns the `shards.Amount` that a scan has found and left in the output folder, or None."""
    file = Path(hparams["output_folder"]) / SCANNED
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    fits = found["settings"] == scan_settings(hparams)
    return shards.Amount(**found["amount"]) if fits else None


def limits(hparams):
    """Of the shortest and the longest utterance to train on, in seconds."""
    return {key: hparams[key] for key in ("min_seconds", "max_seconds")}
