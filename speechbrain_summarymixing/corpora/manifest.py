"""Manifests: a line for each utterance, CSV as SpeechBrain's recipes have it, or JSON as NeMo's."""

import csv
import hashlib
import json
import logging
import math
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from tqdm import tqdm

from speechbrain_summarymixing.audio import audio_info
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import made_once, write_table

logger = logging.getLogger(__name__)

REQUIRED = ("ID", "duration", "wav", "wrd")
NEMO = {"audio_filepath": "wav", "text": "wrd", "duration": "duration"}  # keys of its manifests
JSON_LINES = (".json", ".jsonl")
SHOWN = 20  # utterances named of each kind of problem
STATS_AT_ONCE = 32  # of a disk behind a network
PROBED = 2  # raised when files are looked at in another way: manifests are made anew
NEAR = 0.1, 0.02  # seconds, and part of the audio, by which what is written may be off


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
    start, stop : float
        Of its segment of the audio, in seconds; 0 and infinity: all of it.
    channel : int or None
        Of the audio, from 0 on; None: the mean of all.
    """

    ID: str
    duration: float
    wav: str
    spk_id: str
    wrd: str
    start: float = 0.0
    stop: float = math.inf
    channel: int | None = None

    @property
    def part(self):
        """What `audio.read_audio` is told to read of its audio."""
        return {name: getattr(self, name) for name in PART}

    @property
    def is_segment(self):
        """Whether it is a part of its audio, in time or by channel."""
        return tuple(self.part.values()) != (0.0, math.inf, None)

    def seconds_in(self, audio):
        """Its seconds in audio with this `AudioInfo`, or why it is not in there."""
        whole = audio.seconds
        if self.channel is not None and self.channel >= audio.channels:
            return (
                f"{self.wav}: has no channel {self.channel}, but {audio.channels}, which are "
                "counted from 0"
            )
        if self.start >= whole or whole + NEAR[0] < self.stop < math.inf:
            return (
                f"{self.wav}: ends at {whole:g} s, but start and stop, in seconds, are "
                f"{self.start:g} and {self.stop:g}"
            )
        return min(self.stop, whole) - self.start


COLUMNS = tuple(field.name for field in fields(Utterance))
PART = ("start", "stop", "channel")  # columns where an utterance is a part of its file


def write_manifest(path, utterances):
    """Writes utterances to a CSV file, whole or not at all.

    Arguments
    ---------
    path : str or Path
    utterances : list of Utterance
    """
    rows = [["" if v in (math.inf, None) else v for v in astuple(u)] for u in utterances]
    columns = COLUMNS
    if all(u.channel is None for u in utterances):
        segments = any(u.is_segment for u in utterances)
        columns = COLUMNS[:-1] if segments else COLUMNS[: -len(PART)]
    write_table(path, columns, [row[: len(columns)] for row in rows])


def read_manifest(path, *, data_root=None):
    """Reads a CSV file, or the JSON lines of NeMo's manifests.

    Columns are ID, duration, wav, wrd and perhaps spk_id, start, stop and channel. NeMo's keys are
    audio_filepath, which is relative to the manifest, duration, text and perhaps speaker, channel
    and, of a segment, offset; an ID is made of the path, the segment and the channel.

    Arguments
    ---------
    path : str or Path
        Of JSON lines, if it ends in .json or .jsonl.
    data_root : str or Path or None
        What ``$data_root`` in the column wav stands for.

    Returns
    -------
    list of Utterance

    Raises
    ------
    UserError
        If the file cannot be read, lacks a column or a value, has a segment that cannot be, or has
        no line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if Path(path).suffix in JSON_LINES:
                lines = ((f"{path}, line {i}", line) for i, line in enumerate(file, 1))
                rows = [_of_nemo(where, line, Path(path)) for where, line in lines if line.strip()]
            else:
                rows = list(_of_csv(file, path, data_root))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or (
            f"{error}: is a quotation mark open?" if isinstance(error, csv.Error) else "not UTF-8"
        )
        raise UserError(f"{path}: cannot read this manifest ({reason})") from error
    if not rows:
        raise UserError(f"{path}: has no utterance: give a manifest with at least one line")
    return rows


def _of_csv(file, path, data_root):
    reader = csv.DictReader(file, skipinitialspace=True)
    missing = [name for name in REQUIRED if name not in (reader.fieldnames or [])]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}: the first line must name the columns "
            f"{', '.join(REQUIRED)} (and spk_id, if known); it is "
            f"{', '.join(reader.fieldnames or []) or 'empty'}"
        )
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if any(value.strip() for value in row.pop(None, ())):
            raise UserError(f"{where}: more values than columns: put what has commas in quotes")
        for name in REQUIRED:
            if row[name] is None or (name in ("ID", "wav") and not row[name].strip()):
                raise UserError(f"{where}: no value for {name}: add it")
        if "$data_root" in row["wav"]:
            if data_root is None:
                raise UserError(f"{where}: wav has $data_root: give --data_folder or --data-root")
            row["wav"] = row["wav"].replace("$data_root", str(data_root))
        yield _utterance(where, row)


def _of_nemo(where, line, path):
    try:
        entry = json.loads(line)
        texts = {ours: entry[theirs] for theirs, ours in NEMO.items()}
        if not (isinstance(texts["wav"], str) and isinstance(texts["wrd"], str)):
            raise TypeError
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: {line.strip()[:80]!r} is no JSON object with {', '.join(NEMO)}, as each "
            "line of NeMo's manifests: mend it"
        ) from error
    wav = os.path.normpath(path.parent / os.path.expanduser(texts["wav"]))
    place = os.path.relpath(os.path.splitext(wav)[0], path.parent.absolute().parent)
    key = re.sub(r"[./\\]+", "-", place).strip("-")
    speaker = entry.get("speaker")
    row = {**texts, "ID": key, "wav": wav, "spk_id": "" if speaker is None else str(speaker)}
    if (offset := entry.get("offset")) is not None:
        row["start"] = _seconds(where, key, "offset", offset)
        row["stop"] = row["start"] + _seconds(where, key, "duration", texts["duration"])
        row["ID"] += f"-{row['start']:.3f}-{row['stop']:.3f}".replace(".", "_")
    if (channel := _channel(where, key, entry.get("channel"))) is not None:
        row["channel"] = channel
        row["ID"] += f"-channel{channel}"
    return _utterance(where, row)


def _utterance(where, row):
    """An utterance of a row, whose values are text or numbers."""
    key = row["ID"]
    duration = _seconds(where, key, "duration", row["duration"])
    part = part_of(where, key, *(row.get(name) for name in PART))
    return Utterance(key, duration, row["wav"], row.get("spk_id") or "", row["wrd"], *part)


def part_of(where, key, start, stop, channel=None):
    """Reads where an utterance starts and stops in its file, and in which channel it is.

    Arguments
    ---------
    where : str
        File and line, for errors.
    key : str
        The utterance's ID.
    start, stop : str, float or None
        In seconds; None and "": where the file does.
    channel : str, int or None
        From 0 on; None and "": all.

    Returns
    -------
    tuple
        Of two floats, and an int or None.

    Raises
    ------
    UserError
        If one is no number, start is below 0, stop not after it, or channel no whole number.
    """
    start = 0.0 if start in (None, "") else _seconds(where, key, "start", start)
    stop = math.inf if stop in (None, "") else _seconds(where, key, "stop", stop)
    if not 0 <= start < stop:
        raise UserError(
            f"{where}: {key} starts at {start:g} and stops at {stop:g} s, but a segment starts at "
            "0 or later and stops after that: mend it"
        )
    return start, stop, _channel(where, key, channel)


def _channel(where, key, value):
    if value in (None, ""):
        return None
    try:
        number = float(value)  # pandas writes 1.0 where other lines have none
        if number < 0 or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where}: channel is {value!r} of {key}, but must be a whole number, from 0 on, or "
            "empty: mend it"
        ) from error
    return int(number)


def _seconds(where, key, name, value):
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {name} is {value!r} of {key}, but must be seconds") from error


def probe(
    files, *, workers=None, progress=True, description="reading durations", outside_left_out=False
):
    """Opens audio files and reads their durations, in parallel.

    Arguments
    ---------
    files : list of tuple
        (ID, path, speaker, transcript) and, of a part, start and stop in seconds and channel.
    workers : int or None
        Threads; None: two for each core.
    progress : bool
        Show a progress bar.
    description : str
    outside_left_out : bool
        Leave segments out that are not in their files, and tell, in place of an error.

    Returns
    -------
    list of Utterance
        In the order of their IDs.

    Raises
    ------
    UserError
        If files cannot be read, or segments are not in them; it names them.
    """
    rows = [
        Utterance(key, math.nan, str(wav), speaker, words, *part)
        for key, wav, speaker, words, *part in sorted(files)
    ]
    wholes = headers(
        [row.wav for row in rows], workers=workers, progress=progress, description=description
    )
    if problems := [found for found in wholes.values() if isinstance(found, str)]:
        raise UserError(listed(f"{len(problems)} of {len(wholes)} files are no audio", problems))
    seconds = [row.seconds_in(wholes[row.wav]) for row in rows]
    outside = [f"{u.ID}: {found}" for u, found in zip(rows, seconds) if isinstance(found, str)]
    if outside:
        told = listed(f"{len(outside)} segments are not in their audio", outside)
        if not outside_left_out:
            raise UserError(told)
        logger.warning("%s\nthey are left out", told)
    found = zip(rows, seconds)
    return [replace(u, duration=duration) for u, duration in found if not isinstance(duration, str)]


def headers(paths, *, workers=None, progress=True, description="reading durations"):
    """Opens audio files, each once, in parallel.

    Arguments
    ---------
    paths : iterable of str
        A file of several segments may occur several times.
    workers, progress, description
        As in `probe`.

    Returns
    -------
    dict
        From each path to its `AudioInfo`, or to why the file cannot be used (str).
    """
    paths = list(dict.fromkeys(paths))

    def read(path):
        try:
            return audio_info(path, to_the_end=True)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(workers or 2 * (os.cpu_count() or 1)) as pool:
        found = pool.map(read, paths)
        hidden = not (progress and paths)
        bar = tqdm(found, description, total=len(paths), unit="file", disable=hidden)
        return dict(zip(paths, bar))


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
    return _digest({u.wav for u in rows}, sorted(map(astuple, rows), key=repr))


def _status(file):
    """A file's size and time of change, or None where there is none."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # a name with a zero byte
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _digest(files, settings):
    digest = hashlib.sha256()
    files = sorted(set(map(str, files)))
    with ThreadPoolExecutor(STATS_AT_ONCE) as pool:
        for file, status in zip(files, pool.map(_status, files)):
            if status is not None:
                size, changed = status
                digest.update(os.fsencode(f"{file}\0{size}\0{changed}\n"))
    if settings is not None:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def listed(title, lines):
    """Returns a title and the first of its lines, and how many more there are."""
    more = [f"  … and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines[:SHOWN]), *more])
