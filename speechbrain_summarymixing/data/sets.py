"""Where an experiment's utterances come from, and the tokens that spell them."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.corpora.checks import check_manifests, sensible
from speechbrain_summarymixing.corpora.corpus import declared
from speechbrain_summarymixing.corpora.manifest import fingerprint, read_manifest
from speechbrain_summarymixing.corpora.shards import urls_of
from speechbrain_summarymixing.data import shards, tokens
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.processes import on_main

logger = get_logger(__name__)

PARTS = ("train", "valid", "test")
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
    csvs = [names(hparams[f"{part}_csv"]) for part in PARTS]
    if on_shards and csvs[0]:
        raise UserError(f"--shards and --train_csv {csvs[0][0]} are both given: give one of them")
    if any(csvs) and not all(csvs[on_shards:]):
        raise UserError(
            "--train_csv, --valid_csv and --test_csv are "
            f"{', '.join(str(hparams[f'{part}_csv']) for part in PARTS)}: "
            "give all three (with --shards the latter two), or none and a --corpus"
        )
    parts, find = _csv_files(csvs) if any(csvs) else _corpus(hparams)
    train, valid, tests = parts
    both = [name for name in train if name in valid + tests]
    if both and training:
        raise UserError(
            f"{', '.join(both)} is to train on and to validate or test on: its error rates would "
            "say nothing; name other sets"
        )
    if on_shards or not training:
        train.clear()
    paths = find(list(dict.fromkeys(train + valid + tests)))
    rows = {name: read_manifest(path, data_root=hparams["data_folder"]) for name, path in paths}
    return tuple({name: rows[name] for name in part} for part in parts)


def _csv_files(csvs):
    """Names of the sets of each part, and what finds (name, path) of some of them."""
    parts = [[Path(csv).absolute() for csv in part] for part in csvs]
    files = {path for part in parts for path in part}
    stems = Counter(path.stem for path in files)

    def name(path):
        return path.stem if stems[path.stem] == 1 else f"{path.parent.name}_{path.stem}"

    paths = {name(path): path for path in files}
    if unnamed := sorted(map(str, files - set(paths.values()))):
        raise UserError(
            f"{', '.join(unnamed)}: another set is called {name(Path(unnamed[0]))} too, by which "
            "results are written: rename one file"
        )
    parts = [[name(path) for path in part] for part in parts]
    return parts, lambda wanted: [(name, paths[name]) for name in wanted]


def _corpus(hparams):
    """As `_csv_files`, of the splits of a corpus, which finding them prepares."""
    corpus = hparams["corpus"]
    if corpus not in declared():
        raise UserError(
            f"--corpus is {corpus}, but must be one of {', '.join(declared())}: "
            "for another corpus give --train_csv, --valid_csv and --test_csv"
        )
    chosen = declared()[corpus]
    parts = [list(names(hparams[f"{part}_splits"]) or getattr(chosen, part)) for part in PARTS]

    def find(wanted):
        options = {name: hparams[key] for name, key in chosen.options.items()}
        folders = hparams["data_folder"], hparams["manifest_folder"]
        return list(on_main(chosen.prepare, *folders, splits=wanted, **options).items())

    return parts, find


def names(value):
    """Returns a list of names from a list or from text such as "dev-clean,dev-other"."""
    if value is None:
        return []
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def spelling(hparams, train, others, symbols=(), *, open_audio=True):
    """Checks all manifests in one report, and trains the tokenizer or takes a trained one.

    Arguments
    ---------
    hparams : dict
    train, others : dict
        From a set's name to its list of utterances. Without a training set, and with ``shards``,
        the tokenizer is that of the run; shards are read for it once in a run's life.
    symbols : sequence of str
        Text that is one token, in a tokenizer that is trained here.
    open_audio : bool
        As for `check`.

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
        if has_begun(hparams) and path.is_file():  # weights depend on it
            tokenizer = tokens.load_tokenizer(path)
        else:
            tokenizer = tokens.take_tokenizer(hparams["tokenizer_folder"], path, vocab_size=size)
    elif hparams["shards"] is not None:
        on_main(_spelling_of_shards, hparams, path)
        tokenizer = tokens.load_tokenizer(path)
    elif not train:
        tokenizer = tokens.load_tokenizer(path)
    else:
        tokenizer = None
    spell = tokens.unspellable(texts, tokenizer)
    check(hparams, train, others, spell=spell, open_audio=open_audio)
    if tokenizer is not None:
        return tokenizer
    on_main(
        tokens.train_tokenizer,
        texts,
        path,
        vocab_size=size,
        token_type=hparams["token_type"],
        symbols=symbols,
        fixed=has_begun(hparams),
    )
    return tokens.load_tokenizer(path)


def check(hparams, train, others, *, spell=None, open_audio=True, transcripts=True):
    """Checks all sets in one report; the log tells warnings. See `check_manifests`.

    Arguments
    ---------
    hparams : dict
    train, others : dict
        From a set's name to its list of utterances.
    spell : callable or None
        Returns why a transcript cannot be written in the tokens, or None.
    open_audio : bool
        Open the audio of CSV files, once until a file or line changes.
    transcripts : bool
        False: they may be empty.
    """
    sets = {**train, **others}
    stamp = Path(hparams["manifest_folder"]) / "opened.json"

    def attempt():
        opened = fingerprint(sets) if open_audio and hparams["test_csv"] is not None else None
        unknown = opened is not None and not (stamp.is_file() and stamp.read_text() == opened)
        warnings = check_manifests(
            sets,
            spell=spell,
            training_splits=tuple(train),
            open_audio=unknown,
            transcripts=transcripts,
        )
        if unknown:
            write_atomically(stamp, opened)
        return warnings

    for warning in on_main(attempt):
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
    tokens.train_tokenizer(texts, path, **settings, fixed=has_begun(hparams))
    found = {"settings": scan_settings(hparams), "amount": asdict(amount)}
    write_atomically(path.with_name(SCANNED), json.dumps(found) + "\n")


def scan_settings(hparams):
    """What the scan of shards, and the tokenizer trained on it, depend on."""
    keys = ("shards", "vocab_size", "token_type", "min_seconds", "max_seconds")
    return {key: str(hparams[key]) for key in keys}


def scanned_amount(hparams):
    """Returns the `shards.Amount` that a scan has found and left in the output folder, or None."""
    file = Path(hparams["output_folder"]) / SCANNED
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    fits = scan_settings(hparams).items() >= found["settings"].items()
    return shards.Amount(**found["amount"]) if fits else None


def limits(hparams):
    """Of the shortest and the longest utterance to train on, in seconds."""
    return {key: hparams[key] for key in ("min_seconds", "max_seconds")}
