"""What is checked of the manifests of an experiment before it starts."""

import math
import os
from collections import Counter
from pathlib import Path

from speechbrain_summarymixing.corpora.manifest import (
    NEAR,
    SHOWN,
    headers,
    listed,
    read_manifest,
)
from speechbrain_summarymixing.errors import UserError


def check_manifests(
    manifests,
    *,
    spell=None,
    training_splits=("train",),
    open_audio=False,
    transcripts=True,
    progress=True,
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
    transcripts : bool
        False: they may be empty.
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
        One report of all missing and unreadable files, wrong segments and durations, empty
        transcripts, training transcripts that cannot be spelled, and IDs that occur twice.
    """
    kinds, unspelled = {}, {}

    def problem(kind, split, utterance, detail):
        kinds.setdefault(kind, []).append(f"{split}: {utterance.ID}: {detail}")

    counts = Counter(u.ID for rows in manifests.values() for u in rows)
    wavs = dict.fromkeys(u.wav for rows in manifests.values() for u in rows)
    there = {wav: None for wav in wavs if os.path.isfile(wav)}
    if open_audio:
        there = headers(there, progress=progress, description="checking audio")
    for split, rows in manifests.items():
        for u in rows:
            audio = there.get(u.wav)
            if u.wav not in there:
                problem("missing audio files", split, u, u.wav)
            elif isinstance(audio, str):
                problem("unreadable audio files", split, u, audio)
            elif audio is not None and (misfit := _misfit(u, audio)) is not None:
                kind, detail = misfit
                problem(kind, split, u, detail)
            if not (math.isfinite(u.duration) and u.duration > 0):
                problem("durations that are not above 0", split, u, f"{u.duration:g} s")
            if transcripts and not u.wrd.strip():
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


def _misfit(utterance, audio):
    """The kind and detail of what is wrong in audio with this header, or None."""
    seconds, whole = utterance.seconds_in(audio), audio.seconds
    if isinstance(seconds, str):
        return "segments that are not in their audio", seconds
    if abs(utterance.duration - seconds) > NEAR[0] + NEAR[1] * seconds:
        has = f"the audio has {seconds:g} s by its header"
        if seconds != whole:
            has = f"its start and stop are {utterance.start:g} and {utterance.stop:g}"
        return "durations that are not the audio's", f"{utterance.duration:g} s, but {has}"
    return None


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
