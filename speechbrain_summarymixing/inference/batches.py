"""Audio files, cut into segments where they are long, in batches of like size."""

import math
from dataclasses import dataclass

import torch
from speechbrain.utils.data_utils import batch_pad_right

from speechbrain_summarymixing.audio import audio_info, read_audio, read_segments
from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.errors import UserError, lacks_memory
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple

STEADY = 2.0  # power of the loudest 50 ms to that of the quietest; 40 and more where one speaks
SILENCE = 1e-8  # power, -80 dB of full scale


@dataclass
class _Segment:
    """Audio of a file (T,) from a sample on, or why there is none; whether it is the last."""

    file: str
    waveform: torch.Tensor | None = None
    start: int = 0
    error: str | None = None
    last: bool = False
    answer: object = None


def has_speech(waveform, sample_rate=16000):
    """Whether a waveform is anything but silence or steady noise, in which no speech can be.

    Arguments
    ---------
    waveform : torch.Tensor
        (T,), or several (B, T).
    sample_rate : int
        In Hz.

    Returns
    -------
    torch.Tensor
        (), or (B,), bool; True where it is too short to tell.
    """
    frame = sample_rate // 20
    if waveform.size(-1) < 2 * frame:
        return torch.ones(waveform.shape[:-1], dtype=torch.bool, device=waveform.device)
    power = waveform.square().unfold(-1, frame, frame // 2).mean(-1) + SILENCE
    return power.amax(-1) > STEADY * power.amin(-1)


def seconds_of(files):
    """Returns how much audio files hold in all, in seconds, as far as they can be read."""
    seconds = 0.0
    for file in files:
        try:
            seconds += audio_info(file).seconds
        except UserError:
            pass  # reading it tells the error
    return seconds


def in_batches(
    model,
    files,
    answer,
    *,
    segment_seconds=math.inf,
    only_speech=True,
    batch_seconds=None,
    batch_files=16,
    progress=None,
):
    """Reads files and asks a model about them, or their segments, in batches.

    Arguments
    ---------
    model : Pretrained
        From `load_model`.
    files : iterable of str, Path or Utterance
        An `Utterance` that is a segment of its file is not cut.
    answer : callable
        From waveforms (B, T) and relative lengths (B,) to an answer for each.
    segment_seconds : float
        As for `transcribe`; infinite: files are not cut.
    only_speech : bool
        Silence and steady noise are not answered.
    batch_seconds : float or None
        Padded audio in one batch, at most, in seconds; a longer segment is a batch alone. None:
        120 on a GPU, 40 on a CPU, where more takes memory and is not faster.
    batch_files : int
        Segments in one batch, at most.
    progress : callable or None
        Told the seconds of audio of each batch when it is answered.

    Yields
    ------
    dict
        With file, seconds and answers, a list of (second at which a segment starts, its answer),
        or with file and error; one for each file, in their order.
    """
    rate = model.hparams.sample_rate
    if batch_seconds is None:
        batch_seconds = 40.0 if torch.device(model.device).type == "cpu" else 120.0
    samples, answers = 0, []  # of the file that is being answered
    for batch in _batched(
        _segments(files, rate, segment_seconds), rate * batch_seconds, batch_files
    ):
        _answer(model, batch, answer, only_speech)
        heard = sum(s.waveform.numel() for s in batch if s.waveform is not None)
        if progress is not None:
            progress(heard / rate)
        for segment in batch:
            if segment.waveform is not None:
                samples += segment.waveform.numel()
            answers.append(segment)
            if segment.last:
                yield _together(answers, samples, rate)
                samples, answers = 0, []


def _together(segments, samples, rate):
    file = segments[0].file
    errors = [segment.error for segment in segments if segment.error is not None]
    if errors:
        return {"file": file, "error": errors[0]}
    answers = [(s.start / rate, s.answer) for s in segments if s.answer is not None]
    return {"file": file, "seconds": samples / rate, "answers": answers}


def _segments(files, rate, longest):
    """The segments of all files in their order; the last of each says so."""
    for item in files:
        file, last, start = _path(item), None, 0
        try:
            for waveform in _waveforms(item, rate, longest):
                if last is not None:
                    yield last
                last = _Segment(file, waveform, start)
                start += waveform.numel()
            last.last = True
        except UserError as error:
            last = _Segment(file, error=str(error), last=True)
        yield last


def _path(item):
    return item.wav if isinstance(item, Utterance) else str(item)


def _waveforms(item, rate, longest):
    if isinstance(item, Utterance) and item.is_segment:
        return [read_audio(item.wav, rate, **item.part)]
    return read_segments(_path(item), rate, longest=longest)


def _batched(segments, most_samples, most):
    """Lists of segments that make one batch."""
    batch, longest = [], 0
    for segment in segments:
        samples = 0 if segment.waveform is None else segment.waveform.numel()
        longest = max(longest, samples)
        if batch and (longest * (len(batch) + 1) > most_samples or len(batch) == most):
            yield batch
            batch, longest = [], samples
        batch.append(segment)
    if batch:
        yield batch


def _answer(model, segments, answer, only_speech):
    """Answers segments together, or, where the memory does not suffice, each alone."""
    rate, whole = model.hparams.sample_rate, model.hparams.compute_features.samples
    heard = [
        segment
        for segment in segments
        if segment.waveform is not None and (has_speech(segment.waveform, rate) or not only_speech)
    ]
    if not heard:
        return
    try:
        padded = batch_pad_right([pad_to_multiple(segment.waveform, whole) for segment in heard])
        for segment, said in zip(heard, answer(*padded)):
            segment.answer = said
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator has no kind of its own
        if not (isinstance(error, MemoryError) or lacks_memory(error)):
            raise
        if len(heard) > 1:
            for segment in heard:
                _answer(model, [segment], answer, only_speech)
            return
        (segment,) = heard
        segment.error = (
            f"{segment.file}: no memory for {segment.waveform.numel() / rate:.1f} s at once: cut "
            "it, or take a machine with more"
        )
