"""Manifests: CSV files with a line for each utterance, as SpeechBrain's recipes have them."""

import csv
import hashlib
import io
import json
import math
import os
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from tqdm import tqdm

from speechbrain_summarymixing.audio import audio_info
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import made_once, write_atomically

REQUIRED = ("ID", "duration", "wav", "wrd")
SHOWN = 20  # utterances named of each kind of problem
STATS_AT_ONCE = 32  # of a disk behind a network
PROBED = 2  # raised when files are looked at in another way: manifests are made anew
NEAR = 0.1, 0.02  # seconds, and part of the audio, by which a written duration may be off


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
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or (
            f"{error}: is a quotation mark open?" if isinstance(error, csv.Error) else "not UTF-8"
        )
        raise UserError(f"{path}: cannot read this manifest ({reason})") from error
    if not rows:
        raise UserError(f"{path}: has no utterance: give a manifest with at least one line")
    return rows


def _utterance(row, path, line, data_root):
    values = {name: row.get(name) for name in REQUIRED}
    for name, value in values.items():
        if value is None or (name in ("ID", "wav") and not value.strip()):
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
    """Opens audio files and reads their durations, in parallel.

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
    files = sorted(files)
    seconds = durations(
        [wav for _, wav, _, _ in files],
        workers=workers,
        progress=progress,
        description=description,
    )
    if problems := [found for found in seconds if isinstance(found, str)]:
        raise UserError(listed(f"{len(problems)} of {len(files)} files are no audio", problems))
    return [
        Utterance(key, duration, str(wav), speaker, words)
        for (key, wav, speaker, words), duration in zip(files, seconds)
    ]


def durations(paths, *, workers=None, progress=True, description="reading durations"):
    """Opens audio files, in parallel.

    Arguments
    ---------
    paths : list of str or Path
    workers, progress, description
        As in `probe`.

    Returns
    -------
    list of float or str
        Of each file its seconds, or why it cannot be used.
    """

    def read(path):
        try:
            return audio_info(path, to_the_end=True).seconds
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(workers or 2 * (os.cpu_count() or 1)) as pool:
        found = pool.map(read, paths)
        hidden = not (progress and paths)
        return list(tqdm(found, description, total=len(paths), unit="utt", disable=hidden))


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
    source = {"version": PROBED, "input": _digest(files, settings)}
    made_once(path, source, lambda: write_manifest(path, make()))
    return Path(path)


def fingerprint(manifests):
    """Returns a text that changes with every line of manifests, and with their audio files.

    Arguments
    ---------
    manifests : dict
        From each split to its utterances.
    """
    rows = {u for part in manifests.values() for u in part}
    return _digest({u.wav for u in rows}, sorted(map(astuple, rows)))


def _status(file):
    """A file's size and time of change, or None where there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _digest(files, settings):
    digest = hashlib.sha256()
    files = sorted(map(str, files))
    with ThreadPoolExecutor(STATS_AT_ONCE) as pool:
        for file, status in zip(files, pool.map(_status, files)):
            if status is not None:
                size, changed = status
                digest.update(os.fsencode(f"{file}\0{size}\0{changed}\n"))
    if settings is not None:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def check_manifests(
    manifests, *, spell=None, training_splits=("train",), open_audio=False, progress=True
):
    """Checks all utterances of an experiment before it starts.

    Arguments
    ---------
    manifests : dict
        From each split to its utterances.
    spell : callable or None
        Returns why a transcript cannot be written in the tokens, or None.
    training_splits : sequence of str
    open_audio : bool
        Open each file, and compare its duration: for manifests that `probe` did not make.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of str
        Warnings: transcripts beside training that cannot be written in the tokens, and speakers of
        a training split that occur in another.

    Raises
    ------
    UserError
        One report of all missing and unreadable files, wrong durations, empty transcripts, training
        transcripts that cannot be spelled, and IDs that occur twice.
    """
    kinds, unspelled = {}, {}

    def problem(kind, split, utterance, detail):
        kinds.setdefault(kind, []).append(f"{split}: {utterance.ID}: {detail}")

    counts = Counter(u.ID for rows in manifests.values() for u in rows)
    for split, rows in manifests.items():
        there = [os.path.isfile(u.wav) for u in rows]
        paths = [u.wav for u, is_there in zip(rows, there) if is_there and open_audio]
        found = iter(durations(paths, progress=progress, description=f"checking {split}"))
        for u, is_there in zip(rows, there):
            seconds = next(found) if is_there and open_audio else u.duration
            if not is_there:
                problem("missing audio files", split, u, u.wav)
            elif isinstance(seconds, str):
                problem("unreadable audio files", split, u, seconds)
            elif abs(u.duration - seconds) > NEAR[0] + NEAR[1] * seconds:
                detail = f"{u.duration:g} s, but the audio has {seconds:g} s by its header"
                problem("durations that are not the audio's", split, u, detail)
            if not (math.isfinite(u.duration) and u.duration > 0):
                problem("durations that are not above 0", split, u, f"{u.duration:g} s")
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
            + "\nmend these lines or leave them out"
        )
    warnings = [
        listed(f"{len(rows)} transcripts of {split} that no hypothesis can equal", rows)
        for split, rows in unspelled.items()
    ]
    return warnings + _shared_speakers(manifests, training_splits)


def read_checked(path, *, data_root=None, progress=True):
    """Reads a manifest whose utterances can all be used: their audio is opened.

    Arguments
    ---------
    path, data_root
        As for `read_manifest`.
    progress : bool
        Show a progress bar.

    Returns
    -------
    list of Utterance

    Raises
    ------
    UserError
        As `read_manifest` and `check_manifests`.
    """
    rows = read_manifest(path, data_root=data_root)
    check_manifests({Path(path).stem: rows}, training_splits=(), open_audio=True, progress=progress)
    return rows


def sensible(rows, *, min_seconds, max_seconds):
    """Leaves out utterances that are too short or too long to train on.

    Arguments
    ---------
    rows : list of Utterance
    min_seconds, max_seconds : float
        Of the shortest and the longest that stay.

    Returns
    -------
    list of Utterance
        Those that stay.
    str or None
        A report of the others.
    """
    kept, out = [], []
    for u in rows:
        (kept if min_seconds <= u.duration <= max_seconds else out).append(u)
    if not out:
        return kept, None
    hours = sum(u.duration for u in out) / 3600
    title = (
        f"{len(out)} of {len(rows)} utterances ({hours:.2f} h) are left out of training: outside "
        f"{min_seconds:g} to {max_seconds:g} s (--min_seconds, --max_seconds)"
    )
    return kept, listed(title, [f"{u.ID}: {u.duration:g} s" for u in out])


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
