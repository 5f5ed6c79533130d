"""Where an experiment's utterances come from, and the tokens that spell them."""

import json
from dataclasses import asdict
from pathlib import Path

import sentencepiece
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
from speechbrain_summarymixing.corpora.manifest import check_manifests, read_manifest
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


def manifests(hparams):
    """Prepares the corpus, or reads the CSV files, that the hyperparameters name.

    Arguments
    ---------
    hparams : dict

    Returns
    -------
    tuple of dict
        Training, validation and test sets: from a set's name to its list of utterances.

    Raises
    ------
    UserError
        If the corpus is unknown, or only some of the three CSV files are given.
    """
    on_shards = hparams["shards"] is not None  # then there is no training set
    parts = ("train", "valid", "test")
    csvs = [hparams[f"{part}_csv"] for part in parts]
    if on_shards and csvs[0]:
        raise UserError(f"--shards and --train_csv {csvs[0]} are both given: give one of them")
    root = hparams["data_folder"]
    if any(csvs):
        if not all(csvs[on_shards:]):
            raise UserError(
                f"--train_csv, --valid_csv and --test_csv are {', '.join(map(str, csvs))}: "
                "give all three (with --shards the latter two), or none and a --corpus"
            )
        return tuple(
            {Path(csv).stem: read_manifest(csv, data_root=root) for csv in names(value)}
            for value in csvs
        )
    corpus = hparams["corpus"]
    if corpus not in CORPORA:
        raise UserError(
            f"--corpus is {corpus}, but must be one of {', '.join(CORPORA)}: "
            "for another corpus give --train_csv, --valid_csv and --test_csv"
        )
    prepare, *defaults = CORPORA[corpus]
    splits = [names(hparams[f"{part}_splits"]) or default for part, default in zip(parts, defaults)]
    if on_shards:
        splits[0] = []
    options = {name: hparams[key] for name, key in CORPUS_OPTIONS.get(corpus, {}).items()}
    every = list(dict.fromkeys(name for part in splits for name in part))
    paths = on_main(prepare, root, hparams["manifest_folder"], splits=every, **options)
    return tuple({name: read_manifest(paths[name]) for name in part} for part in splits)


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
        From a set's name to its list of utterances.
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
    if hparams["shards"] is not None:
        return shard_spelling(hparams, others)
    texts = [utterance.wrd for rows in train.values() for utterance in rows]
    path = Path(hparams["output_folder"]) / "tokenizer.model"
    tokenizer = None
    if hparams["tokenizer_folder"] is not None:
        tokenizer = data.take_tokenizer(
            hparams["tokenizer_folder"], path, vocab_size=hparams["vocab_size"]
        )
    warnings = on_main(
        check_manifests,
        {**train, **others},
        **limits(hparams),
        spell=data.unspellable(texts, tokenizer),
        training_splits=tuple(train),
    )
    for warning in warnings:
        logger.warning(warning)
    if tokenizer is not None:
        return tokenizer
    options = {
        "vocab_size": hparams["vocab_size"],
        "token_type": hparams["token_type"],
        "symbols": symbols,
    }
    on_main(data.train_tokenizer, texts, path, **options)
    return data.train_tokenizer(texts, path, **options)


def shard_spelling(hparams, others):
    """As `spelling`, where training is on shards, which are read for it once in a run's life.

    Arguments
    ---------
    hparams : dict
    others : dict
        From each set that is not on shards to its list of utterances.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        As `spelling`.
    """
    folder = Path(hparams["output_folder"])
    path, size = folder / "tokenizer.model", hparams["vocab_size"]
    urls = urls_of(hparams["shards"])

    def train():
        if scanned_amount(hparams) is None or not path.is_file():
            texts, amount = shards.scan(urls, **limits(hparams))
            data.train_tokenizer(texts, path, vocab_size=size, token_type=hparams["token_type"])
            found = {"settings": scan_settings(hparams), "amount": asdict(amount)}
            write_atomically(folder / SCANNED, json.dumps(found) + "\n")

    if hparams["tokenizer_folder"] is not None:
        tokenizer = data.take_tokenizer(hparams["tokenizer_folder"], path, vocab_size=size)
    else:
        on_main(train)
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    on_main(
        check_manifests,
        others,
        **limits(hparams),
        spell=data.unspellable([], tokenizer),
        training_splits=(),
    )
    return tokenizer


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
    """Shortest and longest sensible duration, in seconds."""
    return {key: hparams[key] for key in ("min_seconds", "max_seconds")}
