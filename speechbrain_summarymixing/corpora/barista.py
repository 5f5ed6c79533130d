"""Spoken coffee orders: a folder with manifest.tsv (path, duration_s, semantics) and audio.

The target of an utterance is its meaning (see `semantics`), in the manifest's column wrd. There
are no official splits: utterances are dealt out to folds.
"""

import csv
import json
from pathlib import Path
from random import Random

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.corpora.semantics import Semantics, parse
from speechbrain_summarymixing.errors import UserError

SPLITS = ("train", "valid", "test")
COLUMNS = ("path", "duration_s", "semantics")


def prepare(
    data_folder,
    save_folder,
    *,
    splits=SPLITS,
    fold=0,
    folds=5,
    seed=1234,
    workers=None,
    progress=True,
):
    """Makes the manifests of one fold of a cross-validation.

    Arguments
    ---------
    data_folder : str or Path
        Holds ``manifest.tsv``.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Of train, valid and test.
    fold : int
        From 0: test has this fold, valid the next, train the others.
    folds : int
        Number of folds, at least 3.
    seed : int
        Of the shuffle before utterances are dealt out.

    Raises
    ------
    UserError
        If the folder is another, a split or fold is unknown, or a line or its audio is unfit.
    """
    table = Path(data_folder).absolute() / "manifest.tsv"
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise UserError(f"there is no split {', '.join(unknown)}: take {', '.join(SPLITS)}")
    rows = sorted(_rows(table))
    if not 3 <= folds <= len(rows):
        raise UserError(f"folds is {folds}, but must be 3 to {len(rows)}, the utterances there are")
    if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < folds:
        raise UserError(
            f"fold is {fold!r}, but must be 0 to {folds - 1}, a whole number: give another --fold"
        )
    Random(seed).shuffle(rows)
    dealt = [rows[number::folds] for number in range(folds)]
    test, valid, *train = dealt[fold:] + dealt[:fold]
    parts = {"train": [row for rows in train for row in rows], "valid": valid, "test": test}
    return {
        split: remade(
            Path(save_folder) / f"{split}.csv",
            [table, *(row[1] for row in parts[split])],
            lambda split=split: probe(
                parts[split], workers=workers, progress=progress, description=split
            ),
        )
        for split in splits
    }


def _rows(table):
    """(ID, path, speaker, meaning) of each line."""
    if not table.is_file():
        raise UserError(f"{table}: no such file: give the folder that holds it as --data_folder")
    rows = []
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if absent := [name for name in COLUMNS if name not in (reader.fieldnames or [])]:
                raise UserError(
                    f"{table}: no column {', '.join(absent)}: the first line must name the columns "
                    f"{', '.join(COLUMNS)}; it is {', '.join(reader.fieldnames or []) or 'empty'}"
                )
            for line in reader:
                try:
                    wav, words = _fields(line)
                except ValueError as error:
                    raise UserError(
                        f"{table}, line {reader.line_num}: {error}: mend the line"
                    ) from error
                rows.append((Path(wav).stem, str(table.parent / wav), "", words))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{table}: cannot read this file ({reason})") from error
    if missing := [row[1] for row in rows if not Path(row[1]).is_file()]:
        raise UserError(
            listed(f"{table}: {len(missing)} of {len(rows)} recordings are missing", missing)
            + "\nthe corpus is not whole: unpack it again"
        )
    return rows


def _fields(line):
    """Path and meaning of a line; a ValueError tells what is wrong with it."""
    if not line["path"] or not line["semantics"]:
        raise ValueError(f"no value for {'semantics' if line['path'] else 'path'}")
    try:
        content = json.loads(line["semantics"])
        slots = tuple((name, value.strip()) for name, value in content["slots"].items())
        meaning = Semantics({"intent": content["intent"]}, slots)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"semantics is {line['semantics'][:80]!r}, but must be JSON with an intent and slots"
        ) from error
    return line["path"], parse(meaning.text()).text()


CORPUS = Corpus("barista", prepare, ["train"], ["valid"], ["test"], {"fold": "fold"})
