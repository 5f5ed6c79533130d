"""Common Voice's layout: the folder of a language with <split>.tsv and clips/*.mp3."""

import csv
import json
import logging
from collections import Counter
from pathlib import Path

from speechbrain_summarymixing.corpora import text
from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
COLUMNS = ("client_id", "path", "sentence")


def prepare(data_folder, save_folder, *, splits=SPLITS, language, workers=None, progress=True):
    """Makes the manifests of splits, or takes those already made from the same files.

    Sentences are normalised (see `text`); those of which no word is left are left out. The log
    tells them and every character dropped.

    Arguments
    ---------
    data_folder : str or Path
        A language's folder: holds ``<split>.tsv`` and ``clips``.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned; ``<split>.dropped.json`` has the characters
        that were dropped.
    splits : sequence of str
        Such as "train", "dev", "test" or "validated".
    language : str
        The corpus's locale, such as "nl", "fa" or "sv-SE".

    Raises
    ------
    UserError
        If a split, a column or a clip is missing, the corpus is of another language, or nothing is
        left of a split.
    """
    folder, save_folder = Path(data_folder).absolute(), Path(save_folder)
    settings = text.settings(language)
    manifests = {}
    for split in splits:
        table = folder / f"{split}.tsv"
        rows = _rows(table, language)

        def make(split=split, table=table, rows=rows):
            rows = _normalised(rows, language, table, save_folder / f"{split}.dropped.json")
            return probe(rows, workers=workers, progress=progress, description=split)

        manifests[split] = remade(
            save_folder / f"{split}.csv", [table, *(row[1] for row in rows)], make, settings
        )
    return manifests


def _rows(table, language):
    """(ID, path, speaker, sentence) of each line of a split."""
    rows, others = [], Counter()
    for line in _lines(table):
        clip = table.parent / "clips" / line["path"]
        if not clip.suffix:  # of old releases
            clip = clip.with_suffix(".mp3")
        rows.append((clip.stem, str(clip), line["client_id"], line["sentence"]))
        others[line.get("locale") or language] += 1
    del others[language]
    if others:
        raise UserError(
            f"language is {language}, but {others.total()} of {len(rows)} lines of {table} have "
            f"the locale {', '.join(sorted(others))}: give that as --language, or another "
            "--data_folder"
        )
    if missing := [row[1] for row in rows if not Path(row[1]).is_file()]:
        raise UserError(
            listed(f"{table}: {len(missing)} of {len(rows)} clips are missing", missing)
            + "\nthe corpus is not whole: unpack it again"
        )
    return rows


def _lines(table):
    """The lines of a table, each a dict of its columns."""
    if not table.is_file():
        found = sorted(path.stem for path in table.parent.glob("*.tsv"))
        raise UserError(
            f"{table}: no such file; the folder holds "
            f"{', '.join(f'{name}.tsv' for name in found) or 'no .tsv'}: "
            + (f"ask for splits of these ({', '.join(found)}), or " if found else "")
            + "give the folder of a language, with train.tsv and clips, as --data_folder"
        )
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = reader.fieldnames or []
            if absent := [name for name in COLUMNS if name not in names]:
                raise UserError(
                    f"{table}: no column {', '.join(absent)}: the first line must name the columns "
                    f"{', '.join(COLUMNS)}; it is {', '.join(names) or 'empty'}"
                )
            for line in reader:
                if not line["path"] or line["sentence"] is None:
                    lacking = "sentence" if line["path"] else "path"
                    raise UserError(
                        f"{table}, line {reader.line_num}: no value for {lacking}: mend the line, "
                        "or unpack the corpus again"
                    )
                yield line
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{table}: cannot read this file ({reason})") from error


def _normalised(rows, language, table, report):
    """The rows of which words are left; what is dropped is told and written to a report."""
    kept, left_out, dropped = [], [], Counter()
    for key, clip, speaker, sentence in rows:
        words, lost = text.normalize_text(sentence, language)
        dropped += lost
        if words:
            kept.append((key, clip, speaker, words))
        else:
            left_out.append(f"{key}: {sentence!r}")
    characters = text.described(dropped)
    content = {"left_out": left_out, "characters": characters}
    write_atomically(report, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    if left_out:
        title = f"{table}: {len(left_out)} of {len(rows)} utterances are left out: no word in them"
        logger.info(listed(title, left_out))
    if characters:
        lines = [f"{c['code']} {c['name']} {c['character']!r}: {c['count']}" for c in characters]
        title = f"{table}: {dropped.total()} characters are dropped (all in {report})"
        logger.info(listed(title, lines))
    if not kept:
        raise UserError(
            f"{table}: none of its {len(rows)} sentences has a word: leave this split out, or "
            "unpack the corpus again"
        )
    return kept


CORPUS = Corpus("commonvoice", prepare, ["train"], ["dev"], ["test"], {"language": "language"})
