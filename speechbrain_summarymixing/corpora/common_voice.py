"""Common Voice's layout: the folder of a language with <split>.tsv and clips/*.mp3."""

from collections import Counter
from functools import partial
from pathlib import Path

from speechbrain_summarymixing.corpora import text
from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_tsv

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
    files = {split: Path(data_folder).absolute() / f"{split}.tsv" for split in splits}
    tables = ((split, table, partial(_rows, table, language)) for split, table in files.items())
    options = {"workers": workers, "progress": progress}
    return text.normalized_manifests(tables, save_folder, language, **options)


def _rows(table, language):
    """(ID, path, speaker, sentence) of each line of a split."""
    rows, others = [], Counter()
    for line in _table(table):
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


def _table(table):
    if not table.is_file():
        found = sorted(path.stem for path in table.parent.glob("*.tsv"))
        raise UserError(
            f"{table}: no such file; the folder holds "
            f"{', '.join(f'{name}.tsv' for name in found) or 'no .tsv'}: "
            + (f"ask for splits of these ({', '.join(found)}), or " if found else "")
            + "give the folder of a language, with train.tsv and clips, as --data_folder"
        )
    return read_tsv(table, COLUMNS, filled=("path",))


CORPUS = Corpus("commonvoice", prepare, ["train"], ["dev"], ["test"], {"language": "language"})
