"""How many errors a trained recogniser makes where the words are known, and how fast it is."""

import io
import json
import math
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rapidfuzz.distance import Levenshtein
from speechbrain.dataio.dataio import split_word
from speechbrain.utils.metric_stats import ErrorRateStats
from tqdm import tqdm

from speechbrain_summarymixing.analysis.comparison import paired_difference
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import kaldi, lhotse_cuts
from speechbrain_summarymixing.corpora.manifest import Utterance, listed, read_manifest
from speechbrain_summarymixing.corpora.text import normalize_text
from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import read_lines, write_atomically
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_recognizer, transcribe
from speechbrain_summarymixing.inference.transcripts import Transcript
from speechbrain_summarymixing.tasks.metrics import word_error_interval, word_error_rate

AUDIO = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".sph", ".aiff", ".au")
LHOTSE = ".jsonl.gz"
COUNTS = ("num_edits", "num_ref_tokens")


def evaluate(
    model,
    manifest,
    *,
    against=None,
    data_root=None,
    language=None,
    device=None,
    chunk_ms=None,
    alignments=None,
    as_json=False,
    progress=True,
    trust=False,
    **options,
):
    """Measures a recogniser, perhaps beside another, and prints what it finds.

    Arguments
    ---------
    model, against : str or Path
        As for `load_recognizer`; the difference from the second has an interval by a paired
        bootstrap.
    manifest, data_root
        As for `read_reference`.
    language : str or None
        Locale by which transcripts and what is recognised are normalised (`normalize_text`); None:
        they are compared as they are.
    device : str or None
    chunk_ms : int or None
        Each utterance is heard as a stream in chunks of so many milliseconds.
    alignments : str or Path or None
        File to write the alignment of each utterance of ``model`` to.
    as_json, progress : bool
    trust : bool
        As for `load_recognizer`.
    **options
        As for `transcribe`, or, of streams, for `StreamingModel`.

    Returns
    -------
    int
        How many utterances could not be measured; standard error names them.

    Raises
    ------
    UserError
        If no utterance can be measured, or models or manifest cannot be used.
    """
    if alignments is not None and not Path(alignments).absolute().parent.is_dir():
        raise UserError(f"--alignments is {alignments}: no such folder: make it, or give another")
    utterances = read_reference(manifest, data_root=data_root)
    twice = [key for key, count in Counter(u.ID for u in utterances).items() if count > 1]
    if twice:
        raise UserError(listed(f"{manifest}: {len(twice)} IDs occur more than once", twice))
    unfit = {u.ID: "no transcript" for u in utterances if not _normalised(u.wrd, language).split()}
    utterances = [u for u in utterances if u.ID not in unfit]
    sources = [source for source in (model, against) if source is not None]
    systems = [load_recognizer(source, device, trust=trust) for source in sources]
    # all options are known to fit before the first utterance is heard
    heard = [_hearing(system, utterances, chunk_ms, options) for system in systems]
    said = []
    for hearing in heard:
        found, seconds = _heard(hearing, utterances, progress)
        unfit |= {key: one.error for key, one in found.items() if one.error is not None}
        said.append((found, seconds))
    fit = [u for u in utterances if u.ID not in unfit]
    if unfit:
        rows = [f"{key}: {reason}" for key, reason in unfit.items()]
        title = f"{manifest}: {len(unfit)} utterances cannot be measured"
        print(f"error: {listed(title, rows)}", file=sys.stderr)
    if not fit:
        raise UserError(f"{manifest}: no utterance can be measured: mend what is named above")
    keys, words = [u.ID for u in fit], [_words(fit, found, language) for found, _ in said]
    measured = [measure(keys, *sides) for sides in words]
    results = []
    for source, (found, took), (_, scores) in zip((model, against), said, measured):
        audio = sum(one.seconds for one in found.values() if one.error is None)
        speed = {"audio_seconds": round(audio, 3), "real_time_factor": round(took / audio, 4)}
        results.append({"model": str(source), **scores, **speed})
    result = {"manifest": str(manifest), **results[0], "not_measured": unfit}
    if against is not None:
        result |= {"against": results[1], "difference": _difference(*(s for s, _ in measured))}
    print(json.dumps(result, ensure_ascii=False) if as_json else _in_words(result), flush=True)
    if alignments is not None:
        _write_alignments(alignments, keys, *words[0])
    return len(unfit)


def _write_alignments(path, keys, reference, recognised):
    stats, text = ErrorRateStats(), io.StringIO()
    stats.append(keys, recognised, reference)
    stats.write_stats(text)
    try:
        write_atomically(path, text.getvalue())
    except OSError as error:
        raise UserError(
            f"--alignments is {path}, which cannot be written ({reason_of(error)}): give another "
            "file"
        ) from error


def read_reference(source, *, data_root=None):
    """Reads audio files and their transcripts.

    Arguments
    ---------
    source : str or Path
        A manifest as for `read_manifest`, a cut set of lhotse (.jsonl.gz), a data folder of Kaldi,
        which has wav.scp, or a folder of audio with the words of each ``<name>.flac`` (wav, mp3, …)
        in ``<name>.txt`` beside it.
    data_root : str or Path or None
        As for `read_manifest`.

    Returns
    -------
    list of Utterance

    Raises
    ------
    UserError
        If it is none of these.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"MANIFEST is {source}: no such file: give a manifest, or a folder")
    if (source / "wav.scp").is_file():
        return [
            Utterance(key, math.nan, str(wav), speaker, words, *part)
            for key, wav, speaker, words, *part in kaldi.rows_of(source.absolute())
        ]
    if source.is_dir():
        return _beside(source)
    if not source.name.endswith(LHOTSE):
        return read_manifest(source, data_root=data_root)
    split = source.name[: -len(LHOTSE)]
    with tempfile.TemporaryDirectory() as folder:
        paths = lhotse_cuts.prepare(source.parent, folder, splits=[split], progress=False)
        return read_manifest(paths[split])


def _beside(folder):
    """Utterances of a folder of audio and texts."""
    utterances = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO:
            key = str(path.relative_to(folder))
            utterances.append(Utterance(key, math.nan, str(path), "", words_beside(path)))
    if not utterances:
        raise UserError(
            f"MANIFEST is {folder}, which has no audio ({', '.join(AUDIO)}) and no wav.scp: give "
            "another folder, or a manifest"
        )
    return utterances


def words_beside(path):
    """Returns the words of ``<name>.txt`` beside an audio file, "" where there is none."""
    text = path.with_suffix(".txt")
    lines = read_lines(text) if text.is_file() else []
    return " ".join(" ".join(lines).split())


def _hearing(model, utterances, chunk_ms, options):
    """An iterator of the `Transcript` of each utterance."""
    if chunk_ms is None:
        return transcribe(model, utterances, **options)
    return _streamed(StreamingModel(model, chunk_ms=chunk_ms, **options), utterances)


def _heard(hearing, utterances, progress):
    """The `Transcript` of each ID, and the seconds that it took to have them."""
    start = time.perf_counter()
    bar = tqdm(hearing, "recognising", len(utterances), unit="utt", disable=not progress or None)
    found = {u.ID: transcript for u, transcript in zip(utterances, bar)}
    return found, time.perf_counter() - start


def _streamed(model, utterances):
    chunk = model.encoder.chunk_frames * model.encoder.frame_samples
    for u in utterances:
        try:
            samples = read_audio(u.wav, model.sample_rate, **u.part)
        except UserError as error:
            yield Transcript(u.wav, error=str(error))
            continue
        with model.open() as stream:
            for start in range(0, len(samples), chunk):
                stream.accept(samples[start : start + chunk])
            stream.finish()
            yield Transcript(u.wav, len(samples) / model.sample_rate, text=stream.text)


def _words(utterances, found, language):
    """Words that were said, and those that were recognised, of each utterance."""
    texts = [u.wrd for u in utterances], [found[u.ID].text for u in utterances]
    return [[_normalised(text, language).split() for text in side] for side in texts]


def _normalised(text, language):
    return text if language is None else normalize_text(text, language)[0]


def _edits(keys, reference, said):
    """Counts as ``ErrorRateStats.scores`` has them, but without a table of length times length."""
    return [
        {"key": key, "num_edits": Levenshtein.distance(right, own), "num_ref_tokens": len(right)}
        for key, right, own in zip(keys, reference, said)
    ]


def measure(keys, reference, said):
    """Errors of what was recognised.

    Arguments
    ---------
    keys : sequence of str
        IDs of utterances.
    reference, said : list of list of str
        Words of each, right and recognised.

    Returns
    -------
    tuple
        Edits of each utterance by measure, and the rates of WER and CER in percent with their
        intervals.
    """
    scores = {"utterances": len(keys), "words": sum(map(len, reference))}
    characters = split_word(reference), split_word(said)
    edits = {"WER": _edits(keys, reference, said), "CER": _edits(keys, *characters)}
    for name, counts in edits.items():
        scores[name] = round(word_error_rate(counts), 4)
        scores[f"{name}_95"] = [round(x, 4) for x in word_error_interval(counts)]
    return edits, scores


def _difference(*systems):
    """Of each measure the first system's less the second's, in points, and its interval."""
    found = {}
    for name in systems[0]:
        counts = [[[[score[key] for score in edits[name]]] for key in COUNTS] for edits in systems]
        value, interval = paired_difference(*counts)
        found[name] = round(value, 4)
        found[f"{name}_95"] = [round(x, 4) for x in interval]
    return found


def _in_words(result):
    def rates(scores, sign=""):
        return ", ".join(
            f"{name} {scores[name]:{sign}.2f}{'' if sign else '%'} "
            f"({scores[f'{name}_95'][0]:{sign}.2f} to {scores[f'{name}_95'][1]:{sign}.2f})"
            for name in ("WER", "CER")
        )

    lines = [
        f"{one['model']}: {rates(one)}; {one['utterances']} utterances, {one['words']} words, "
        f"{one['audio_seconds']:.0f} s, real-time factor {one['real_time_factor']:.3f}"
        for one in (result, result.get("against"))
        if one is not None
    ]
    if "difference" in result:
        lines.append(f"difference in points: {rates(result['difference'], '+')}")
    return "\n".join(lines)
