"""Kaldi's data folders: <split>/wav.scp and text, perhaps segments and utt2spk."""

import math
from functools import partial
from pathlib import Path

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, part_of, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import placed, read_lines

NEEDED, OPTIONAL = ("wav.scp", "text"), ("segments", "utt2spk")
TO_THE_END = ("-1", "-1.0")  # of a segment


def prepare(data_folder, save_folder, *, splits, workers=None, progress=True):
    """Makes the manifests of data folders.

    Arguments
    ---------
    data_folder : str or Path
        Holds a data folder for each split.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Names of data folders, such as "train".

    Raises
    ------
    UserError
        If a file is missing or has a line that cannot be, audio comes from a command, or the files
        do not name the same utterances.
    """
    folder = Path(data_folder).absolute()
    manifests = {}
    for split in splits:
        part = folder / split
        rows = rows_of(part)
        files = [*(part / name for name in (*NEEDED, *OPTIONAL)), *(row[1] for row in rows)]
        manifests[split] = remade(
            Path(save_folder) / f"{split}.csv",
            files,
            partial(probe, rows, workers=workers, progress=progress, description=split),
        )
    return manifests


def rows_of(folder):
    """Reads one data folder.

    Arguments
    ---------
    folder : Path

    Returns
    -------
    list of tuple
        (ID, path, speaker, transcript, start, stop, channel) of each utterance.

    Raises
    ------
    UserError
        As `prepare`; audio is not looked at.
    """
    if missing := [name for name in NEEDED if not (folder / name).is_file()]:
        raise UserError(
            f"{folder}: no {' and no '.join(missing)}: give the folder of Kaldi's data folders "
            "as --data_folder, and names of these as --train_splits, --valid_splits and "
            "--test_splits"
        )
    return _rows(folder, {name: _table(folder / name) for name in (*NEEDED, *OPTIONAL)})


def _table(path):
    """From the first word of each line to (file and line, the rest of it)."""
    table, double = {}, []
    for number, line in enumerate(read_lines(path) if path.is_file() else [], 1):
        key, *rest = line.split(maxsplit=1) or [""]
        if key in table:
            double.append(f"line {number}: {key}")
        elif key:
            table[key] = (f"{path}, line {number}", "".join(rest).strip())
    if double:
        raise UserError(
            listed(f"{path}: {len(double)} lines of what stands before", double)
            + "\nkeep one line of each: utils/fix_data_dir.sh may"
        )
    return table


def _rows(folder, tables):
    recordings, texts, segments, speakers = (
        tables[name] for name in ("wav.scp", "text", "segments", "utt2spk")
    )
    parts = {key: _segment(key, *line) for key, line in segments.items()}
    if not segments:
        parts = {key: (key, 0.0, math.inf, None) for key in recordings}
    lone = [f"{key}: no line in text" for key in sorted(parts.keys() - texts.keys())]
    lone += [
        f"{key}: no line in {'segments' if segments else 'wav.scp'}"
        for key in sorted(texts.keys() - parts.keys())
    ]
    lone += [
        f"{key}: no line in wav.scp for its recording, {recording}"
        for key, (recording, *_) in parts.items()
        if recording not in recordings
    ]
    if lone or not parts:
        raise UserError(
            listed(f"{folder}: {len(lone)} of {len(parts)} utterances are not in all files", lone)
            + "\nadd or take out their lines, as utils/fix_data_dir.sh does"
        )
    used = {recording: recordings[recording] for recording, *_ in parts.values()}
    wavs = _paths(folder, used)
    return [
        (key, wavs[recording], speakers.get(key, ("", ""))[1], texts[key][1], *part)
        for key, (recording, *part) in parts.items()
    ]


def _segment(key, where, text):
    fields = text.split()
    if len(fields) not in (3, 4):
        raise UserError(
            f"{where}: {key} {text!r} is not '<utterance> <recording> <start> <end>', perhaps with "
            "a channel behind: mend it"
        )
    recording, start, stop, *channel = fields
    stop = None if stop in TO_THE_END else stop
    return recording, *part_of(where, key, start, stop, *channel)


def _paths(folder, recordings):
    pipes = [f"{where}: {text}" for where, text in recordings.values() if text.endswith("|")]
    if pipes:
        raise UserError(
            listed(f"{folder}: audio of {len(pipes)} recordings comes from commands", pipes)
            + "\nwrite their output to files once and name these in wav.scp; sph, flac, mp3 and "
            "ogg files, which a command would convert, are read as they are: name these themselves"
        )
    if empty := [where for where, text in recordings.values() if not text]:
        raise UserError(listed(f"{len(empty)} recordings have no path", empty) + "\nadd them")
    return {key: placed(text, folder.parent, folder) for key, (_, text) in recordings.items()}


CORPUS = Corpus("kaldi", prepare, ["train"], ["dev"], ["test"])
