"""Manifests: CSV files with a line for each utterance, as SpeechBrain's recipes have them."""

import csv
import hashlib
import io
import json
import math
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from speechbrain_summarymixing.audio import audio_info
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically

REQUIRED = ("ID", "duration", "wav", "wrd")
SHOWN = 20  # utterances named of each kind of problem


@dataclass(frozen=True)
class Utterance:
    """A line of a manifest.

    Arguments
    ---------
    ID : str
    duration : float
        In seconds.
    wav : str
        Path of the audio.
    spk_id : str
        Speaker, "" if unknown.
    wrd : str
        Transcript: words and spaces.
    """

    ID: str
    duration: float
    wav: str
    spk_id: str
    wrd: str


COLUMNS = tuple(field.name for field in fields(Utterance))


def write_manifest(path, utterances):
    """Writes utterances to a CSV file, whole or not at all.

    Arguments
    ---------
    path : str or Path
    utterances : iterable of Utterance
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(utterance) for utterance in utterances)
    write_atomically(path, text.getvalue())


def read_manifest(path, *, data_root=None):
    """Reads a CSV file with the columns ID, duration, wav, wrd and perhaps spk_id.

    Arguments
    ---------
    path : str or Path
    data_root : str or Path or None
        What ``$data_root`` in the column wav stands for.

    Returns
    -------
    list of Utterance

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column or a value, or has no line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            missing = [name for name in REQUIRED if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(
                    f"{path}: no column {', '.join(missing)}: the first line must name the columns "
                    f"{', '.join(REQUIRED)} (and spk_id, if known); it is "
                    f"{', '.join(reader.fieldnames or []) or 'empty'}"
                )
            rows = [_utterance(row, path, reader.line_num, data_root) for row in reader]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"{path}: cannot read this manifest ({reason})") from error
    if not rows:
        raise UserError(f"{path}: has no utterance: give a manifest with at least one line")
    return rows


def _utterance(row, path, line, data_root):
    values = {name: row.get(name) for name in REQUIRED}
    for name, value in values.items():
        if value is None:
            raise UserError(f"{path}, line {line}: no value for {name}: add it")
    try:
        duration = float(values["duration"])
    except ValueError as error:
        raise UserError(
            f"{path}, line {line}: duration is {values['duration']!r}, but must be seconds"
        ) from error
    wav = values["wav"]
    if "$data_root" in wav:
        if data_root is None:
            raise UserError(f"{path}, line {line}: wav has $data_root: give --data_folder")
        wav = wav.replace("$data_root", str(data_root))
    return Utterance(values["ID"], duration, wav, row.get("spk_id") or "", values["wrd"])


def probe(files, *, workers=None, progress=True, description="reading durations"):
    """Reads the duration of audio files, in parallel.

    Arguments
    ---------
    files : list of tuple
        (ID, path, speaker, transcript).
    workers : int or None
        Threads; None: two for each core.
    progress : bool
        Show a progress bar.
    description : str

    Returns
    -------
    list of Utterance
        In the order of their IDs.

    Raises
    ------
    UserError
        If files cannot be read; it names them.
    """

    def read(row):
        key, wav, speaker, words = row
        try:
            return Utterance(key, audio_info(wav).seconds, str(wav), speaker, words)
        except UserError as error:
            return str(error)

    files = sorted(files)
    with ThreadPoolExecutor(workers or 2 * (os.cpu_count() or 1)) as pool:
        read_files = pool.map(read, files)
        rows = list(
            tqdm(read_files, description, total=len(files), unit="utt", disable=not progress)
        )
    problems = [row for row in rows if isinstance(row, str)]
    if problems:
        raise UserError(listed(f"{len(problems)} of {len(rows)} files are no audio", problems))
    return rows


def remade(path, files, make, settings=None):
    """Makes a manifest unless it is there and its input is unchanged.

    Arguments
    ---------
    path : str or Path
        The manifest; beside it stands a stamp of its input, ``<path>.json``.
    files : iterable of str or Path
        What it is made from: a file that is added, removed or changed makes it anew.
    make : callable
        Returns the utterances.
    settings : dict or None
        What else it is made from, of JSON's types: another makes it anew too.

    Returns
    -------
    Path
        path.
    """
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(map(str, files)):
        status = os.stat(file)
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    if settings is not None:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    stamp = path.with_name(path.name + ".json")
    content = json.dumps({"input": digest.hexdigest()})
    if not (path.is_file() and stamp.is_file() and stamp.read_text() == content):
        write_manifest(path, make())
        write_atomically(stamp, content)
    return path


def check_manifests(
    manifests, *, min_seconds=0.1, max_seconds=60.0, spell=None, training_splits=("train",)
):
    """Checks all utterances of an experiment before it starts.

    Arguments
    ---------
    manifests : dict
        From each split to its utterances.
    min_seconds, max_seconds : float
        Shortest and longest sensible duration.
    spell : callable or None
        Returns why a transcript cannot be written in the tokens, or None.
    training_splits : sequence of str

    Returns
    -------
    list of str
        Warnings: transcripts beside training that cannot be written in the tokens, and speakers of
        a training split that occur in another.

    Raises
    ------
    UserError
        One report of all missing files, wrong durations, empty transcripts, training transcripts
        that cannot be spelled, and IDs that occur twice.
    """
    kinds, unspelled = {}, {}

    def problem(kind, split, utterance, detail):
        kinds.setdefault(kind, []).append(f"{split}: {utterance.ID}: {detail}")

    counts = Counter(u.ID for rows in manifests.values() for u in rows)
    for split, rows in manifests.items():
        for u in rows:
            if not os.path.isfile(u.wav):
                problem("missing audio files", split, u, u.wav)
            if not (math.isfinite(u.duration) and min_seconds <= u.duration <= max_seconds):
                rule = f"outside {min_seconds:g} to {max_seconds:g} s"
                problem(f"durations {rule}", split, u, f"{u.duration:g} s")
            if not u.wrd.strip():
                problem("empty transcripts", split, u, repr(u.wrd))
            elif spell is not None and (reason := spell(u.wrd)):
                if split in training_splits:
                    problem("transcripts that cannot be spelled", split, u, reason)
                else:
                    unspelled.setdefault(split, []).append(f"{u.ID}: {reason}")
            if counts[u.ID] > 1:
                problem("IDs that occur more than once", split, u, u.wav)
    empty = [f"{split}: no utterance" for split, rows in manifests.items() if not rows]
    if empty:
        kinds["empty manifests"] = empty
    if kinds:
        report = [listed(f"{len(rows)} {kind}", rows) for kind, rows in kinds.items()]
        raise UserError(
            "the manifests cannot be used:\n"
            + "\n".join(report)
            + "\nmend these lines or leave them out; --min_seconds and --max_seconds set the limits"
        )
    warnings = [
        listed(f"{len(rows)} transcripts of {split} that no hypothesis can equal", rows)
        for split, rows in unspelled.items()
    ]
    return warnings + _shared_speakers(manifests, training_splits)


def _shared_speakers(manifests, training_splits):
    def speakers(split):
        return {u.spk_id for u in manifests[split] if u.spk_id}

    known = set().union(*(speakers(split) for split in training_splits))
    return [
        f"{len(shared)} speakers of {split} occur in training too, so its error rates flatter: "
        + ", ".join(sorted(shared)[:SHOWN])
        for split in manifests
        if split not in training_splits and (shared := speakers(split) & known)
    ]


def listed(title, lines):
    """Returns a title and the first of its lines, and how many more there are."""
    more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *more])
