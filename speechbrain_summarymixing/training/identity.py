"""One output folder holds one run: the same settings at every start."""

import hashlib
import json
import os
from pathlib import Path

from speechbrain.utils.distributed import if_main_process

from speechbrain_summarymixing.data.sets import names
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.lobes.mixers import mixer_name

SETTINGS_FILE = "settings.json"
UTTERANCES_FILE = "utterances.json"
# What may differ when a run goes on: how long it trains, how it decodes, how fast it reads, and
# where its data lie and by which options they are found, since `check_utterances` compares them.
FREE_SETTINGS = {
    "output_folder",
    "data_folder",
    "manifest_folder",
    "corpus",
    "train_splits",
    "valid_splits",
    "train_csv",
    "valid_csv",
    "language",
    "words",
    "fold",
    "hf_streaming",
    "mini_train_utterances",
    "mini_test_large_utterances",
    "number_of_epochs",
    "num_workers",
    "ckpt_interval_minutes",
    "nonfinite_patience",
    "valid_batch_size",
    "test_batch_size",
    "test_decoder",
    "ngram",
    "test_beam_size",
    "ctc_weight_decode",
    "temperature",
    "max_decode_ratio",
    "max_symbols",
    "lm_folder",
    "trust",
    "lm_weight",
    "lm_temperature",
    "activation_checkpointing",
    "averaged_checkpoints",
    "test_chunks",
    "test_csv",
    "test_splits",
    "check",
    "early_stop_patience",
    "valid_every_steps",
    "log_every_steps",
    "tensorboard",
    "wandb",
    "size_option",
}
# Folders that weights depend on, which are compared by what this file in them holds.
COMPARED_BY = {
    "tokenizer_folder": "tokenizer.ckpt",
    "encoder_folder": "model.ckpt",
    # what is drawn from them depends on which files they hold
    "noise_folder": None,
    "rir_folder": None,
}
DIGEST = " sha256:"


def check_output_folder(
    output_folder, settings, *, free=(), new_with_default=(), begun=True, overwrite_hint, name=None
):
    """Makes sure that a folder is new or holds a run with the same settings, and stores them.

    Arguments
    ---------
    output_folder : str or Path
        Made if it does not exist.
    settings : dict
        Plain values, as JSON has them; a path counts as its text.
    free : iterable of str
        Keys that may differ when a run is resumed; the latest values are stored.
    new_with_default : iterable of str
        Keys that nobody gave: a run from before there was such an option passes.
    begun : bool
        False: the folder's run has saved nothing yet, and other settings replace its own.
    overwrite_hint : str
        What else to do than to take another folder, as in "delete it to start anew".
    name : str or None
        What errors call the folder; None: its path.

    Raises
    ------
    UserError
        If the folder holds a run with other settings, or cannot be made, read or written.
    TypeError
        If a setting is no plain value.
    """
    file = Path(output_folder) / SETTINGS_FILE
    new = json.loads(_text(settings))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if old is not None and begun:
            if isinstance(old, dict):
                old = {**{key: new[key] for key in new.keys() & set(new_with_default)}, **old}
            _compare(old, new, set(free), name or output_folder, overwrite_hint)
        if old != new and if_main_process():
            write_atomically(file, _text(new))
    except ValueError as error:
        raise UserError(
            f"{file}: these are not the settings of a run ({error}): take another "
            f"--output_folder, or {overwrite_hint}"
        ) from error
    except OSError as error:
        raise UserError(
            f"{output_folder}: cannot be used as the output folder ({error.strerror}): take "
            "another --output_folder"
        ) from error


def _compare(old, new, free, output_folder, overwrite_hint):
    if not isinstance(old, dict):
        raise ValueError("not a JSON object")
    differing = [
        f"  {key}: {_shown(old, key)} there, {_shown(new, key)} now"
        for key in sorted((old.keys() | new.keys()) - free)
        if key not in old or key not in new or not _equal(key, old[key], new[key])
    ]
    if differing:
        raise UserError(
            f"{output_folder}: holds a run with other settings:\n"
            + "\n".join(differing)
            + f"\nTake another --output_folder, or {overwrite_hint}."
        )


def _equal(key, a, b):
    if key in ("shards", "lm_text"):  # wherever they lie
        a, b = ([Path(name).name for name in names(value)] for value in (a, b))
    if key in COMPARED_BY:
        (path, _, digest), (other, _, theirs) = (str(value).partition(DIGEST) for value in (a, b))
        # a run of before, and a folder that has gone, have no digest
        return digest == theirs if digest and theirs else path == other
    return a == b or json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # NaN


def _shown(settings, key):
    text = json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _text(settings):
    return json.dumps(settings, indent=2, sort_keys=True, default=_plain) + "\n"


def _plain(value):
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a setting is {value!r}: settings must be plain values, as JSON has them")


def check_utterances(output_folder, train, valid, *, begun):
    """Makes sure that a run that goes on has the utterances that it began with, and notes them.

    Where the files lie does not matter, nor in what order they are listed.

    Arguments
    ---------
    output_folder : str or Path
    train, valid : dict
        From a set's name to its list of utterances.
    begun : bool
        False: the folder's run has saved nothing yet.

    Raises
    ------
    UserError
        If an utterance's ID, transcript or duration is another, or one is missing or new, or what
        was noted cannot be read.
    """
    file = Path(output_folder) / UTTERANCES_FILE
    new = {"train": _digest(train), "valid": _digest(valid)}
    try:
        old = json.loads(file.read_text(encoding="utf-8"))
        old = {part: (old[part]["utterances"], old[part]["sha256"]) for part in new}
    except FileNotFoundError:  # a run from before they were noted
        begun = False
    except (OSError, ValueError, KeyError, TypeError) as error:
        if begun:
            raise UserError(
                f"{file}: does not tell a run's utterances ({error!r}): take another "
                "--output_folder, or delete this file, if they are the same"
            ) from error
    for part, what in (("train", "train"), ("valid", "validate")):
        count, _ = now = new[part]["utterances"], new[part]["sha256"]
        if begun and old[part] != now:
            raise UserError(
                f"{output_folder}: holds a run with other utterances to {what} on ({old[part][0]} "
                f"there, {count} now, or with other IDs, transcripts or durations): give its own "
                f"--{part}_csv, splits or options of the corpus, or take another --output_folder"
            )
    if if_main_process():
        write_atomically(file, json.dumps(new) + "\n")


def _digest(sets):
    rows = sorted((u.ID, u.wrd, f"{u.duration:.2f}") for rows in sets.values() for u in rows)
    return {
        "utterances": len(rows),
        "sha256": hashlib.sha256(repr(rows).encode()).hexdigest(),
        "longest_seconds": max((u.duration for rows in sets.values() for u in rows), default=None),
    }


def longest_seconds(output_folder):
    """Returns the seconds of the longest utterance that a run trains on, or None if unknown."""
    try:
        noted = json.loads((Path(output_folder) / UTTERANCES_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return noted["train"].get("longest_seconds")


def settings(hparams):
    """The plain values among hyperparameters, and the mixer, by which two runs are compared."""
    chosen = {k: v for k, v in hparams.items() if isinstance(v, (str, int, float, list, tuple))}
    if (mixer := hparams.get("token_mixer")) is not None:
        options = ", ".join(f"{k}={v}" for k, v in getattr(mixer, "keywords", {}).items())
        chosen["token_mixer"] = f"{mixer_name(mixer)}({options})"
    for key, name in COMPARED_BY.items():
        if (content := _content_of(chosen.get(key), name)) is not None:
            chosen[key] = f"{chosen[key]}{DIGEST}{hashlib.sha256(content).hexdigest()}"
    return {k: v for k, v in chosen.items() if _is_plain(v)}


def _content_of(folder, name):
    """Of a folder a file's content or, without a name, what files it holds; None: it is none."""
    if not folder or not Path(folder).is_dir():
        return None
    if name is not None:
        file = Path(folder) / name
        return file.read_bytes() if file.is_file() else None
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    held = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
    return json.dumps(held).encode()


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float))
