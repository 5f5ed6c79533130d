"""Data sets of Hugging Face's datasets, from its hub or a folder; their audio by our own reader."""

import re
from functools import partial
from pathlib import Path

from tqdm import tqdm

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import made_once, placed, write_atomically

AUDIO = "audio"
TEXTS = ("text", "sentence", "transcription")
WRITTEN = "written"  # in a folder of audio that is whole
SPEAKERS = ("speaker_id", "speaker", "client_id")


def prepare(data_folder, save_folder, *, splits, workers=None, progress=True):
    """Makes the manifests of a data set.

    Audio that the data set holds itself is written to files once.

    Arguments
    ---------
    data_folder : str or Path
        A folder that ``save_to_disk`` wrote, or what ``load_dataset`` takes: a folder, or a name on
        the hub, where a configuration may follow after a colon.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned; audio goes to ``<split>-audio``.
    splits : sequence of str
        As the data set names them.

    Raises
    ------
    UserError
        If datasets is not installed, a data set, split or column is missing, or an utterance has no
        audio.
    """
    manifests = {}
    for split in splits:
        data = _load(str(data_folder), split)
        columns = _columns(data, f"{data_folder}, {split}")
        name = re.sub(r"[^\w-]+", "-", split).strip("-")  # of files and IDs
        folder = Path(save_folder).absolute() / f"{name}-audio"
        rows, within = _rows(data, columns, folder, name)
        source = {"fingerprint": data._fingerprint, "columns": columns}
        if within:
            written = partial(_write, data, within, folder, progress)
            made_once(folder / WRITTEN, source, written)
        manifests[split] = remade(
            Path(save_folder) / f"{name}.csv",
            [row[1] for row in rows],
            partial(probe, rows, workers=workers, progress=progress, description=split),
            source,
        )
    return manifests


def _load(name, split):
    try:
        from datasets import Audio, load_dataset, load_from_disk
    except ImportError as error:
        raise UserError(
            "--corpus huggingface needs datasets, which is not installed: "
            'pip install "speechbrain-summarymixing[datasets]"'
        ) from error
    saved = sorted(path.parent.name for path in Path(name).glob("*/state.json"))
    if saved and split not in saved:
        raise UserError(f"{name}: no split {split}; it holds {', '.join(saved)}: name one of them")
    try:
        if saved:
            data = load_from_disk(str(Path(name) / split))
        elif Path(name).is_dir():
            data = load_dataset(name, split=split)
        else:
            name, _, configuration = name.partition(":")
            data = load_dataset(name, configuration or None, split=split)
        # its own decoder needs torchcodec
        return data.cast_column(AUDIO, Audio(decode=False)) if AUDIO in data.features else data
    except Exception as error:  # of the hub's client, pyarrow and datasets
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"--data_folder {name}: split {split} cannot be loaded by datasets "
            f"({reason_of(cause)}): give a folder that save_to_disk wrote, or what load_dataset "
            "takes, as owner/name or owner/name:configuration"
        ) from error


def _columns(data, where):
    """Columns of audio, transcript and speaker, which is None where there is none."""
    found = list(data.features)
    text = next((name for name in TEXTS if name in found), None)
    if AUDIO not in found or text is None:
        raise UserError(
            f"{where}: has the columns {', '.join(found)}, but must have {AUDIO} and one of "
            f"{', '.join(TEXTS)}: rename them (rename_column)"
        )
    return [AUDIO, text, next((name for name in SPEAKERS if name in found), None)]


def _rows(data, columns, folder, name):
    """(ID, path, speaker, transcript) of each utterance, and which are written, by index."""
    import pyarrow.compute

    audio, text, speaker = columns
    rows, within, without = [], {}, []
    for table in data.select_columns(list(filter(None, columns))).with_format("arrow").iter(1000):
        paths = pyarrow.compute.struct_field(table[audio], "path").to_pylist()
        held = pyarrow.compute.struct_field(table[audio], "bytes").is_valid().to_pylist()
        texts = table[text].to_pylist()
        speakers = table[speaker].to_pylist() if speaker is not None else [None] * len(texts)
        for path, is_held, said, who in zip(paths, held, texts, speakers):
            key = f"{name}-{len(rows):07d}"
            if is_held:
                wav = within[len(rows)] = str(folder / f"{key}{Path(path or '').suffix or '.wav'}")
            elif path is not None:
                wav = placed(path)
            else:
                wav = ""
                without.append(key)
            rows.append((key, wav, "" if who is None else str(who), said or ""))
    if without or not rows:
        raise UserError(
            listed(f"{name}: {len(without)} of {len(rows)} utterances have no audio", without)
            + "\nleave these out (filter), or take another split"
        )
    return rows, within


def _write(data, within, folder, progress):
    """Writes the audio that a data set holds."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = tqdm(data.select_columns([AUDIO]), "writing audio", unit="file", disable=not progress)
    for index, entry in enumerate(entries):
        if index in within:
            Path(within[index]).write_bytes(entry[AUDIO]["bytes"])
    write_atomically(folder / WRITTEN, f"{len(within)} files\n")


CORPUS = Corpus("huggingface", prepare, ["train"], ["validation"], ["test"])
