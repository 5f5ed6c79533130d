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
PAUSE_LEVEL = 1e-3  # of the noise in a pause: -60 dB of full scale, since no room is quite silent


def join(
    manifest,
    folder,
    *,
    seconds=(10.0, 30.0),
    pause=(0.2, 0.6),
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
        The shortest and the longest pause between two utterances, in seconds, of white noise at
        -60 dB of full scale.
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
        The new manifest. A recording of one speaker has its spk_id, others have none.

    Raises
    ------
    UserError
        If a range or the rate cannot be, the folder exists, an utterance cannot be used or the
        disk is full.
    """
    for name, (low, high), least in (("--seconds", seconds, 0.1), ("--pause", pause, 0.0)):
        if not least <= low <= high < float("inf"):
            raise UserError(
                f"{name} is {low} {high}, but must be two numbers of {least} or more seconds, the "
                "smaller first"
            )
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
                file = Path("audio") / f"joined-{index:06d}.flac"
                noise = numpy.random.default_rng([seed, index])
                samples = _samples(group, pauses, sample_rate, noise)
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


def _samples(group, pauses, sample_rate, noise):
    parts = []
    for utterance, gap in zip(group, [*pauses, 0.0]):
        parts.append(read_audio(utterance.wav, sample_rate, **utterance.part).numpy())
        quiet = noise.normal(scale=PAUSE_LEVEL, size=round(gap * sample_rate))
        parts.append(quiet.astype(numpy.float32))
    return numpy.concatenate(parts)


def _row(group, path, duration):
    speakers = {utterance.spk_id for utterance in group}
    return Utterance(
        path.stem,
        round(duration, 4),
        str(path),
        speakers.pop() if len(speakers) == 1 else "",
        " ".join(utterance.wrd for utterance in group if utterance.wrd),
    )
