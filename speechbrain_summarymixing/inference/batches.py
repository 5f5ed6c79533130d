"""Audio files, cut into segments where they are long, in batches of like size."""

import itertools
import math
import queue
import threading
from dataclasses import dataclass

import numpy
from numpy.lib.stride_tricks import sliding_window_view

from speechbrain_summarymixing.audio import audio_info, read_samples, read_segments
from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.errors import UserError, lacks_memory

STEADY = 2.0  # power of the loudest 50 ms to that of the quietest; 40 and more where one speaks
BLOCK_SECONDS = 10.0  # of a file, that are read at once
SILENCE = 1e-8  # power, -80 dB of full scale
WINDOW = 4  # batches whose segments are sorted by length
PATIENCE = 0.1  # s, after which a reader looks whether anybody still waits


@dataclass
class _Segment:
    """Audio of a file, (T,) from a sample on to another, and what is answered.

    The last of a file has none, but tells where the file ends, or its error. ``new`` are the
    samples that no segment before has.
    """

    file: str
    waveform: numpy.ndarray | None = None
    start: int = 0
    end: int = 0
    new: int = 0
    last: bool = False
    error: str | None = None
    answer: object = None


def has_speech(waveform, sample_rate=16000):
    """Whether a waveform is anything but silence or steady noise, in which no speech can be.

    Arguments
    ---------
    waveform : numpy.ndarray or torch.Tensor
        (T,), or several (B, T), of the CPU.
    sample_rate : int
        In Hz.

    Returns
    -------
    numpy.ndarray
        (), or (B,), bool; where it is too short to tell, whether it is more than silence.
    """
    waveform, frame = numpy.asarray(waveform), sample_rate // 20
    if waveform.shape[-1] < 2 * frame:
        return numpy.square(waveform).sum(-1) > SILENCE * waveform.shape[-1]
    frames = sliding_window_view(numpy.square(waveform), frame, -1)[..., :: frame // 2, :]
    power = frames.mean(-1) + SILENCE
    return power.max(-1) > STEADY * power.min(-1)


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
    cut=None,
    only_speech=True,
    batch_seconds=None,
    batch_files=16,
    progress=None,
):
    """Reads files and asks a model about them, or their segments, in batches.

    A thread reads ahead while the model answers. Batches are of like lengths, among the segments of
    `WINDOW` batches; of so many as three times these are in memory at most.

    Arguments
    ---------
    model : Pretrained or OnnxGreedy
    files : iterable of str, Path or Utterance
        An `Utterance` that is a segment of its file is not cut.
    answer : callable
        From waveforms (B, T), each of whole frames, and their relative lengths (B,), arrays of
        float32, to an answer for each.
    segment_seconds : float
        As for `transcribe`; infinite: files are not cut.
    cut : callable or None
        How a longer file is cut, as by `segments.spoken`; None: by `read_segments`.
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
        With file, seconds and answers, a list of (seconds at which a segment starts and ends, its
        answer), or with file and error; one for each file, in their order.
    """
    rate = model.hparams.sample_rate
    if batch_seconds is None:
        batch_seconds = 40.0 if str(model.device) == "cpu" else 120.0
    of_file = []  # segments of the file that is being answered
    segments = _segments(files, rate, segment_seconds, cut)
    limits = rate * batch_seconds, batch_files
    for window in _ahead(segments, *(WINDOW * limit for limit in limits)):
        heard = sorted(filter(_samples, window), key=_samples)
        for batch in _batched(heard, *limits):
            _answer(model, batch, answer, only_speech)
            for segment in batch:
                segment.waveform = None  # of an hour they are 230 MB
            if progress is not None:
                progress(sum(segment.new for segment in batch) / rate)
        unheard = sum(segment.new for segment in window) - sum(segment.new for segment in heard)
        if progress is not None and unheard:
            progress(unheard / rate)
        for segment in window:
            of_file.append(segment)
            if segment.last:
                yield _together(of_file, rate)
                of_file = []


def _samples(segment):
    return 0 if segment.waveform is None else segment.waveform.size


def _ahead(segments, most_samples, most):
    """Yields lists of segments, in their order, while a thread reads the next."""
    read, left = queue.Queue(maxsize=1), threading.Event()

    def hand(window, error=None):
        while not left.is_set():
            try:
                return read.put((window, error), timeout=PATIENCE)
            except queue.Full:
                pass

    def run():
        try:
            wanted = itertools.takewhile(lambda _: not left.is_set(), segments)
            for window in _batched(wanted, most_samples, most, padded=False):
                hand(window)
            hand(None)
        except BaseException as error:  # is raised where it is waited for
            hand(None, error)

    threading.Thread(target=run, name="reads audio ahead", daemon=True).start()
    try:
        while True:
            window, error = read.get()
            if error is not None:
                raise error
            if window is None:
                return
            yield window
            del window  # before the next is waited for
    finally:
        left.set()


def _together(segments, rate):
    file, end = segments[-1].file, segments[-1].end
    errors = [segment.error for segment in segments if segment.error is not None]
    if errors:
        return {"file": file, "error": errors[0]}
    answers = [(s.start / rate, s.end / rate, s.answer) for s in segments if s.answer is not None]
    return {"file": file, "seconds": end / rate, "answers": answers}


def _segments(files, rate, longest, cut):
    """The segments of all files in their order, and after those of each its last."""
    for item in files:
        file, end, done = _path(item), 0, 0

        def counted(blocks):
            nonlocal end
            for block in blocks:
                end += block.size
                yield block

        try:
            blocks, cut_up = _blocks(item, rate, longest, cut)
            for start, waveform in cut_up(counted(blocks), rate, longest=longest):
                stop = start + waveform.size
                yield _Segment(file, waveform, start, stop, max(0, stop - done))
                done = max(done, stop)
            yield _Segment(file, end=end, new=end - done, last=True)
        except UserError as error:
            yield _Segment(file, error=str(error), last=True)


def _path(item):
    return item.wav if isinstance(item, Utterance) else str(item)


def _blocks(item, rate, longest, cut):
    """The audio of a file in blocks, and how these are cut in segments."""
    if isinstance(item, Utterance) and item.is_segment:
        return [read_samples(item.wav, rate, **item.part)], _as_they_are
    path = _path(item)
    if cut is None or audio_info(path).seconds <= longest:
        return read_segments(path, rate, longest=longest), _as_they_are
    return read_segments(path, rate, longest=BLOCK_SECONDS), cut


def _as_they_are(blocks, rate, *, longest):
    start = 0
    for block in blocks:
        yield start, block
        start += block.size


def _batched(segments, most_samples, most, *, padded=True):
    """Lists of segments whose audio, padded to the longest or not, is so much at most."""
    batch, sizes = [], []
    for segment in segments:
        if size := _samples(segment):
            longest = max([size, *sizes])
            amount = longest * (len(sizes) + 1) if padded else sum(sizes) + size
            if sizes and (amount > most_samples or len(sizes) == most):
                yield batch
                batch, sizes = [], []
            sizes.append(size)
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
        for segment, said in zip(heard, answer(*_padded([s.waveform for s in heard], whole))):
            segment.answer = said
        return
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator has no kind of its own
        if not (isinstance(error, MemoryError) or lacks_memory(error)):
            raise
    # not above, where the error still holds what was made of all of them
    if len(heard) > 1:
        for segment in heard:
            _answer(model, [segment], answer, only_speech)
        return
    (segment,) = heard
    segment.error = (
        f"{segment.file}: no memory for {segment.waveform.size / rate:.1f} s at once: cut "
        "it, or take a machine with more"
    )


def _padded(waveforms, whole):
    """Waveforms (B, T) of a multiple of ``whole`` samples each, and relative lengths (B,)."""
    sizes = numpy.array([-(-waveform.size // whole) * whole for waveform in waveforms])
    batch = numpy.zeros((len(sizes), sizes.max()), numpy.float32)
    for row, waveform in zip(batch, waveforms):
        row[: waveform.size] = waveform
    return batch, (sizes / sizes.max()).astype(numpy.float32)
