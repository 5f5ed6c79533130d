"""What the token mixers of a model do, by layer and head, and what it costs to take it away."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import torch
from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from speechbrain_summarymixing.analysis.analysis_page import write_page
from speechbrain_summarymixing.analysis.attention_rows import ATTENTION, AttentionRows
from speechbrain_summarymixing.analysis.comparison import paired_difference
from speechbrain_summarymixing.analysis.evaluate import AUDIO, COUNTS, read_reference, words_beside
from speechbrain_summarymixing.analysis.probe import Change, Probe
from speechbrain_summarymixing.analysis.subjects import load_subject
from speechbrain_summarymixing.analysis.summary_parts import SelectiveParts, SummaryParts
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora.manifest import Utterance, listed
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.transcribe import OPTION
from speechbrain_summarymixing.tasks.metrics import word_error_rate

KINDS = (AttentionRows, SelectiveParts, SummaryParts)
UNCHANGED = Change("nothing")
COPIES = 16  # of one utterance in a batch, at most
WEIGHTS = 2**26  # of a layer in a batch, at most: 256 MB


@dataclass
class Analysis:
    """What was found.

    Arguments
    ---------
    model : str
    utterances : int
        That were heard.
    seconds : float
        Of audio in them.
    frame_seconds : float
        Between two frames of the encoder.
    parts : list of Part
        By layer, with their tables, profiles and the rows of one utterance.
    replaced : list of dict
        For each change ``layer`` and ``head`` (None: all), ``change``, ``output``, the relative
        change of the encoder's output, and perhaps ``WER`` and its difference with an interval.
    words : int
        Of the transcripts.
    WER : float or None
        Of the model as it is, in percent.
    """

    model: str
    utterances: int
    seconds: float
    frame_seconds: float
    parts: list
    replaced: list = field(default_factory=list)
    words: int = 0
    WER: float | None = None


def analyse(
    model,
    audio,
    output,
    *,
    data_root=None,
    most=None,
    device=None,
    trust=False,
    progress=True,
    command=None,
):
    """Analyses a model and writes tables, pictures and a page.

    Arguments
    ---------
    model : str or Path
        As for `load_subject`.
    audio : list of str or Path
        Audio files, beside which ``<name>.txt`` may have their words, and what `read_reference`
        takes.
    output : str or Path
        Folder for heads.csv, replaced.csv, profiles.csv, pictures and README.md.
    data_root : str or Path or None
        As for `read_manifest`.
    most : int or None
        Of more utterances so many are taken, at equal steps.
    device : str or None
    trust : bool
        As for `load_subject`.
    progress : bool
    command : str or None
        Which the page names.

    Returns
    -------
    int
        How many utterances could not be read; standard error names them.

    Raises
    ------
    UserError
        If the model has no mixer that is known, no utterance can be read, or an argument cannot be
        used.
    """
    if Path(output).exists() and not Path(output).is_dir():
        raise UserError(f"--output is {output}, a file: give a folder")
    if most is not None and most < 1:
        raise UserError(f"--utterances is {most}, but must be 1 or more")
    utterances = _spread(_utterances(audio, data_root), most)
    subject = load_subject(model, device, trust=trust)
    with torch.no_grad(), Probe(subject.module, KINDS) as probe:
        heard, failed = _observe(subject, probe, utterances, progress)
        if failed:
            rows = [f"{key}: {reason}" for key, reason in failed.items()]
            print(
                f"error: {listed(f'{len(failed)} utterances cannot be read', rows)}",
                file=sys.stderr,
            )
        if not heard:
            raise UserError("no utterance can be read: mend what is named above")
        found = _changed(subject, probe, utterances, heard, progress)
        analysis = _together(str(model), probe.parts, heard, *found)
    write_page(analysis, Path(output), command)
    return len(failed)


def _utterances(audio, data_root):
    """Utterances of files and of manifests or folders."""
    found = []
    for source in map(Path, audio):
        if source.is_file() and source.suffix.lower() in AUDIO:
            found.append(Utterance(str(source), 0.0, str(source), "", words_beside(source)))
        else:
            found += read_reference(source, data_root=data_root)
    twice = [key for key, count in Counter(u.ID for u in found).items() if count > 1]
    if twice:
        raise UserError(listed(f"AUDIO: {len(twice)} IDs occur more than once", twice))
    return found


def _spread(utterances, most):
    if most is None or most >= len(utterances):
        return utterances
    return [utterances[place * len(utterances) // most] for place in range(most)]


def _observe(subject, probe, utterances, progress):
    """Hears all once; the (seconds, frames) of each ID that was heard, and why others were not."""
    heard, failed = {}, {}
    for u in tqdm(utterances, "observing", unit="utt", disable=not progress or None):
        try:
            waveform = read_audio(u.wav, subject.sample_rate, **u.part)
            with probe.recording():
                frames = subject.encode(waveform).size(1)
        except UserError as error:
            failed[u.ID] = str(error)
            continue
        if not probe.parts:
            names = ", ".join(kind.__name__ for kind in (*ATTENTION, *_cells()))
            raise UserError(
                f"{OPTION}: no token mixer that is known has run in its encoder; known are {names} "
                "and the attention of transformers: give another model"
            )
        if frames < 2:
            failed[u.ID] = f"{u.wav}: is {frames} frame long, but rows need 2 or more"
            continue
        for part in probe.parts:
            part.observe()
        heard[u.ID] = len(waveform) / subject.sample_rate, frames
    if heard:
        for part in probe.parts:
            part.fit()
    return heard, failed


def _cells():
    return SelectiveParts.cell, SummaryParts.cell


def _changes(parts):
    """All changes: of all layers at once, of each layer, and of each of its heads."""
    names = dict.fromkeys(name for part in parts for name in part.changes)
    changes = [UNCHANGED, *map(Change, names)]
    for part in parts:
        for head in (None, *(range(part.heads) if part.heads > 1 else ())):
            changes += [Change(name, part.layer, head) for name in part.changes]
    return changes


def _changed(subject, probe, utterances, heard, progress):
    """All changes, how much each moves the output (changes, utterances), and its words' errors."""
    changes, moved, stats = _changes(probe.parts), [], {}
    utterances = [u for u in utterances if u.ID in heard]
    heads = max(part.heads for part in probe.parts)
    for u in tqdm(utterances, "changing", unit="utt", disable=not progress or None):
        waveform = read_audio(u.wav, subject.sample_rate, **u.part)
        copies = min(max(WEIGHTS // (heads * heard[u.ID][1] ** 2), 1), COPIES)
        norms, texts = [], []
        for start in range(0, len(changes), copies):
            batch = changes[start : start + copies]
            with probe.changing(batch):
                encoded = subject.encode(waveform, len(batch))
            if not norms:
                own = encoded[0].float()
            difference = (encoded.float() - own).flatten(1).norm(dim=1)
            norms += (difference / own.norm()).tolist()
            if subject.has_words and u.wrd.strip():
                texts += subject.words(encoded)
        moved.append(norms)
        for change, text in zip(changes, texts):
            stats.setdefault(change, ErrorRateStats()).append(
                [u.ID], [text.split()], [u.wrd.split()]
            )
    return changes, numpy.array(moved).mean(0).tolist(), stats


def _together(model, parts, heard, changes, moved, stats):
    seconds, frames = map(sum, zip(*heard.values()))
    analysis = Analysis(model, len(heard), seconds, seconds / frames, parts)
    if stats:
        own = _counts(stats[UNCHANGED])
        analysis.words = int(sum(own[1][0]))
        analysis.WER = word_error_rate(stats[UNCHANGED].scores)
    for change, output in zip(changes, moved):
        row = {"layer": change.layer, "head": change.head, "change": change.name, "output": output}
        if stats:
            counts = _counts(stats[change])
            difference, (low, high) = 0.0, (0.0, 0.0)  # most single heads: the same errors
            if counts != own:
                difference, (low, high) = paired_difference(counts, own)
            row |= {
                "WER": word_error_rate(stats[change].scores),
                "WER_difference": difference,
                "low": low,
                "high": high,
            }
        if change != UNCHANGED:
            analysis.replaced.append(row)
    return analysis


def _counts(stats):
    return [[[score[key] for score in stats.scores]] for key in COUNTS]
