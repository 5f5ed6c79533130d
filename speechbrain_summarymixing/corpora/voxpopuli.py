"""VoxPopuli's layout: transcribed_data/<language> with asr_<split>.tsv and <year>/<ID>.ogg.

That of its copy on the Hugging Face hub is known too: <split>/<split>_part_<N>/<ID>.wav.
"""

from functools import partial
from pathlib import Path

from speechbrain_summarymixing.corpora import text
from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_tsv

SPLITS = ("train", "dev", "test")
COLUMNS = ("id", "normalized_text", "speaker_id")
UNKNOWN = "None"  # as a speaker


def prepare(data_folder, save_folder, *, splits=SPLITS, language, workers=None, progress=True):
    """Makes the manifests of a language of VoxPopuli's transcribed data.

    What stands in normalized_text, in which numbers are words, is normalised (see `text`); lines of
    which no word is left, as those without any, are left out, and told.

    Arguments
    ---------
    data_folder : str or Path
        ``transcribed_data/<language>``: holds ``asr_<split>.tsv`` (or ``<split>.tsv``) and a folder
        of ogg files for each year, as VoxPopuli's ``get_asr_data`` writes them; or the hub's
        ``data/<language>``, which holds a folder for each split, whose archives are unpacked in it.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned; ``<split>.dropped.json`` has the characters
        that were dropped.
    splits : sequence of str
        Of train, dev and test.
    language : str
        Such as "en".

    Raises
    ------
    UserError
        If a split, a column or audio is missing, a line cannot be used, or nothing is left of a
        split.
    """
    folder = Path(data_folder).absolute()

    def tables():
        for split in splits:
            table = _table(folder, split)
            yield split, table, partial(_rows, table, folder / split)

    options = {"workers": workers, "progress": progress}
    return text.normalized_manifests(tables(), save_folder, language, **options)


def _table(folder, split):
    for table in (folder / f"asr_{split}.tsv", folder / f"{split}.tsv"):
        if table.is_file():
            return table
    found = sorted(path.stem.removeprefix("asr_") for path in folder.glob("*.tsv"))
    raise UserError(
        f"{folder / f'asr_{split}.tsv'}: no such file; the folder has the splits "
        f"{', '.join(found) or '(none)'}: ask for these, or give the folder of a language, "
        "transcribed_data/<language>, as --data_folder"
    )


def _rows(table, hub):
    """(ID, path, speaker, normalized_text) of each line of a split; hub: its folder on the hub."""
    rows, wavs = [], {path.stem: path for path in hub.rglob("*.wav")}
    for line in read_tsv(table, COLUMNS, filled=("id",)):
        key, speaker = line["id"], line["speaker_id"]
        wav = wavs.get(key, table.parent / key[:4] / f"{key}.ogg")  # an ID begins with the day
        speaker = "" if speaker == UNKNOWN else speaker
        rows.append((key, str(wav), speaker, line["normalized_text"]))
    if missing := [row[1] for row in rows if not Path(row[1]).is_file()]:
        packed = sorted(path.name for path in hub.glob("*.tar.gz"))
        do = "the corpus is not whole: run VoxPopuli's get_asr_data again"
        if packed:
            do = f"unpack it: cd {hub} && for f in *.tar.gz; do tar xzf $f; done"
        raise UserError(
            listed(f"{table}: {len(missing)} of {len(rows)} audio files are missing", missing)
            + f"\n{do}"
        )
    return rows


CORPUS = Corpus("voxpopuli", prepare, ["train"], ["dev"], ["test"], {"language": "language"})
