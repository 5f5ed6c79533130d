"""How late a stream tells its words, and how many streams are heard in time."""

import difflib
from itertools import islice

import numpy
import torch

from speechbrain_summarymixing.analysis.measuring import (
    resident_mb,
    seconds_of,
    wall_and_cpu_seconds_of,
)
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import transcribe

LATENCY_COLUMNS = (
    *("system", "chunk_ms", "look_ahead_ms", "files", "audio_s", "words", "told", "mean_ms"),
    *("median_ms", "p90_ms", "waiting_ms", "computing_ms"),
)
THROUGHPUT_COLUMNS = (
    *("system", "chunk_ms", "streams", "rounds", "median_ms", "p99_ms", "most_ms", "cpu_ms"),
    *("real_time_factor", "for_each", "in_time", "resident_MB", "state_bytes"),
)
STREAMS = (1, 5, 10, 20, 40)
PIECE_SECONDS = 0.01  # of audio that a stream gets at once


def latency(name, model, aligner, files, *, chunk_ms):
    """Measures when the words of files are told, from their end in the audio on.

    A word's end is that of its last token in the CTC alignment of what the aligner recognised. It
    is told with the first event that has it as it stays, when so much audio was there, and the
    computing for that event is done. Words that not both have are left out.

    Arguments
    ---------
    name : str
        In tables.
    model : EncoderASR or EncoderDecoderASR
        As for `StreamingModel`.
    aligner : EncoderASR or EncoderDecoderASR
        With a CTC head; it hears the whole file.
    files : sequence of str or Path
    chunk_ms : int

    Returns
    -------
    dict
        A row with the `LATENCY_COLUMNS`: words that the aligner has, and those of them that the
        stream told; the mean, median and 90th percentile of their latency; the medians of its
        parts, waiting for audio and computing.

    Raises
    ------
    UserError
        If the aligner has no CTC head, a file cannot be read, or no word was told.
    """
    stream = StreamingModel(model, chunk_ms=chunk_ms)
    late, aligned_words, seconds = [], 0, 0.0
    for file in files:
        samples = read_audio(file, stream.sample_rate)
        seconds += len(samples) / stream.sample_rate
        aligned, told = word_ends(aligner, file), told_words(stream, samples)
        aligned_words += len(aligned)
        matcher = difflib.SequenceMatcher(
            None, [word for word, _ in aligned], [word for word, *_ in told], autojunk=False
        )
        for one, other, count in matcher.get_matching_blocks():
            ends, times = islice(aligned, one, one + count), islice(told, other, other + count)
            late += [(heard - end, computed) for (_, end), (_, heard, computed) in zip(ends, times)]
    if not late:
        raise UserError(
            f"{name}: told none of the {aligned_words} words that --aligner has in --audio: give "
            "speech of the kind that both were trained on"
        )
    waited, computed = (numpy.array(part) * 1e3 for part in zip(*late))
    total = waited + computed
    windows = stream.encoder.windows()
    values = (
        *(name, chunk_ms, 1e3 * windows.after / stream.sample_rate, len(files), seconds),
        *(aligned_words, len(late), total.mean(), numpy.median(total), numpy.percentile(total, 90)),
        *(numpy.median(waited), numpy.median(computed)),
    )
    values = (float(v) if isinstance(v, numpy.floating) else v for v in values)
    return dict(zip(LATENCY_COLUMNS, values))


def told_words(model, samples):
    """Returns the words of a stream, and when each was told as it stays.

    Arguments
    ---------
    model : StreamingModel
    samples : torch.Tensor
        (N,).

    Returns
    -------
    list of tuple
        Word, seconds of audio that were there, seconds of computing.
    """
    words, final = [], 0
    with model.open() as stream:
        heard = 0
        pieces = samples.split(round(PIECE_SECONDS * model.sample_rate))
        for hear in (*(lambda p=p: stream.accept(p) for p in pieces), stream.finish):
            events = []
            computed = seconds_of(lambda: events.extend(hear()), model.device)  # noqa: B023
            heard = min(heard + len(pieces[0]), len(samples))
            for event in events:
                known = [word for word, *_ in words[final:]]
                for index, word in enumerate(event.words):
                    if known[index : index + 1] != [word.word]:
                        at = final + index
                        words[at : at + 1] = [(word.word, heard / model.sample_rate, computed)]
                final += len(event.words) if event.final else 0
    return words


def word_ends(model, file):
    """Returns the words that a model recognises in a file, and where each ends, in seconds.

    Arguments
    ---------
    model : EncoderASR or EncoderDecoderASR
        With a CTC head.
    file : str or Path

    Returns
    -------
    list of tuple
        Word, seconds.
    """
    if not hasattr(model.hparams, "ctc_lin"):
        raise UserError(
            "--aligner has no CTC head, whose alignment is needed: give a model with one, such as "
            "examples/sumformer-mini"
        )
    (transcript,) = transcribe(model, [file])
    if transcript.error is not None:
        raise UserError(transcript.error)
    return [(word.word, word.end) for word in transcript.words]


def throughput(name, model, *, chunk_ms, streams=STREAMS, rounds=30, samples=None):
    """Measures streams that all get a chunk at the same time.

    Arguments
    ---------
    name : str
        In tables.
    model : EncoderASR or EncoderDecoderASR
        As for `StreamingModel`.
    chunk_ms : int
    streams : sequence of int
        Numbers of streams.
    rounds : int
        Timed chunks of each stream.
    samples : torch.Tensor or None
        (N,), what they hear, again and again, each from another place on; None is noise.

    Yields
    ------
    dict
        A row with the `THROUGHPUT_COLUMNS`: the time in which a chunk of every stream is
        recognised, and the median of the CPU time; the median over the chunk's length, and that for
        each stream; the share of rounds that were done before the next chunk; resident memory in
        MB; the state of all streams in bytes.
    """
    for count in streams:
        hearing = StreamingModel(model, chunk_ms=chunk_ms)
        chunk = hearing.encoder.chunk_frames * hearing.encoder.frame_samples
        if samples is None:
            samples = 0.1 * torch.randn(20 * chunk)
        opened = [hearing.open() for _ in range(count)]
        times = []
        for turn in range(1 + rounds):
            for index, stream in enumerate(opened):
                begin = (turn + 7 * index) * chunk
                places = torch.arange(begin, begin + chunk) % len(samples)
                stream.put(samples[places])
                if turn == 0:  # what the filterbank looks ahead
                    stream.put(samples[: hearing.encoder.windows().after])
            times.append(wall_and_cpu_seconds_of(hearing.advance, hearing.device))
        times, cpus = numpy.array(times[1:]).T * 1e3
        median = float(numpy.median(times))
        factor = median / chunk_ms
        values = (
            *(name, chunk_ms, count, rounds, median, float(numpy.percentile(times, 99))),
            *(float(times.max()), float(numpy.median(cpus)), factor, factor / count),
            *(float((times <= chunk_ms).mean()), resident_mb(hearing.device)),
            count * hearing.state_bytes,
        )
        for stream in opened:
            stream.close()
        yield dict(zip(THROUGHPUT_COLUMNS, values))
