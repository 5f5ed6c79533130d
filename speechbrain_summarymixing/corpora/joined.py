"""Long recordings made of short ones: the utterances of a manifest joined, with pauses between."""

import random
from pathlib import Path

import numpy
from tqdm import tqdm

from speechbrain_summarymixing.audio import flac_of, read_audio
from speechbrain_summarymixing.corpora.checks import read_checked
from speechbrain_summarymixing.corpora.manifest import Utterance, write_manifest
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import new_folder

MAX_RATE = 655350  # of flac, in Hz
QUIET_DB = -60.0  # of full scale, of the noise in a pause, since no room is quite silent


def join(
    manifest,
    folder,
    *,
    seconds=(10.0, 30.0),
    pause=(0.2, 0.6),
    noise_db=None,
    seed=1234,
    sample_rate=16000,
    data_root=None,
    progress=True,
):
    """Joins the utterances of a manifest, shuffled, to recordings of a drawn length; all or none.

    Each utterance is in one recording. A recording ends before the utterance that would make it
    longer than what was drawn, so it is longer only if its first one is, and the last may be
    shorter. The same manifest, audio and seed make the same samples.

    Arguments
    ---------
    manifest : str or Path
        As for `corpora.manifest.read_manifest`.
    folder : str or Path
        Made anew: ``<name of the manifest>.csv`` and the recordings, flac, in ``audio``.
    seconds : tuple of float
        The shortest and the longest length that is drawn, in seconds.
    pause : tuple of float
        The shortest and the longest pause between two utterances, in seconds.
    noise_db : float or None
        White noise in pauses and under speech, in dB of full scale; None: in pauses alone, of -60.
    seed : int
    sample_rate : int
        In Hz, of the recordings.
    data_root : str or Path or None
        What ``$data_root`` in the manifest stands for.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        The new manifest, whose IDs begin with its name, so that splits can be used together. A
        recording of one speaker has its spk_id, others have none.

    Raises
    ------
    UserError
        If a range, the rate or the noise cannot be, the folder exists, an utterance cannot be used
        or the disk is full.
    """
    for name, (low, high), least in (("--seconds", seconds, 0.1), ("--pause", pause, 0.0)):
        if not least <= low <= high < float("inf"):
            raise UserError(
                f"{name} is {low} {high}, but must be two numbers of {least} or more seconds, the "
                "smaller first"
            )
    if noise_db is not None and not noise_db <= 0:
        raise UserError(f"--noise-db is {noise_db}, but full scale is 0: give 0 or less, as -40")
    if not 1 <= sample_rate <= MAX_RATE:
        raise UserError(
            f"--sample-rate is {sample_rate}, but must be 1 to {MAX_RATE} Hz, which flac can hold"
        )
    folder, csv = Path(folder), Path(manifest).with_suffix(".csv").name
    with new_folder(folder) as new:
        utterances = read_checked(manifest, data_root=data_root, progress=progress)
        groups = list(_groups(utterances, seconds, pause, random.Random(seed)))
        (new / "audio").mkdir()
        rows = []
        with tqdm(total=len(utterances), unit="utt", disable=not progress) as bar:
            for index, (group, pauses) in enumerate(groups):
                file = Path("audio") / f"{Path(manifest).stem}-joined-{index:06d}.flac"
                noise = numpy.random.default_rng([seed, index])
                samples = _samples(group, pauses, sample_rate, noise, noise_db)
                (new / file).write_bytes(flac_of(samples, sample_rate))
                rows.append(_row(group, folder.absolute() / file, len(samples) / sample_rate))
                bar.update(len(group))
        write_manifest(new / csv, rows)
    return folder / csv


def _groups(utterances, seconds, pause, drawn):
    """Lists of utterances, each with the pauses between them in seconds."""
    utterances = drawn.sample(utterances, len(utterances))
    group, pauses, length, longest = [], [], 0.0, drawn.uniform(*seconds)
    for utterance in utterances:
        gap = drawn.uniform(*pause)
        if group and length + gap + utterance.duration > longest:
            yield group, pauses
            group, pauses, length, longest = [], [], 0.0, drawn.uniform(*seconds)
        elif group:
            pauses.append(gap)
            length += gap
        group.append(utterance)
        length += utterance.duration
    yield group, pauses


def _samples(group, pauses, sample_rate, noise, noise_db):
    scale, parts = 10 ** ((QUIET_DB if noise_db is None else noise_db) / 20), []
    for utterance, gap in zip(group, [*pauses, 0.0]):
        speech = read_audio(utterance.wav, sample_rate, **utterance.part).numpy()
        if noise_db is not None:
            speech = speech + noise.normal(scale=scale, size=speech.size)
        parts += [speech, noise.normal(scale=scale, size=round(gap * sample_rate))]
    return numpy.concatenate(parts, dtype=numpy.float32)


def _row(group, path, duration):
    speakers = {utterance.spk_id for utterance in group}
    return Utterance(
        path.stem,
        round(duration, 4),
        str(path),
        speakers.pop() if len(speakers) == 1 else "",
        " ".join(utterance.wrd for utterance in group if utterance.wrd),
    )
