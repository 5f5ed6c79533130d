"""Where long recordings are cut: in their pauses, or in windows that overlap."""

from dataclasses import replace
from functools import partial

import numpy
from numpy.lib.stride_tricks import sliding_window_view

from speechbrain_summarymixing.errors import UserError

WAYS = ("pauses", "vad", "windows")
FRAME_SECONDS = 0.032  # in which there is speech or not: silero-vad's
BEGIN, END = 0.5, 0.35  # probability from which speech begins, and below which it ends
PAUSE = 0.1  # of a segment's length: so long a pause ends one
PADDING = 0.2  # s of a pause, at most, that stay with the speech beside it
QUIET = 1e-6  # power, -60 dB of full scale: no speech is as quiet
LOUDER = 4.0  # than the quietest frame around is what is as probably speech as not
AROUND_SECONDS = 5.0
DIP_FRAMES = 9  # 0.3 s, whose quietest is looked for where there is no pause
OVERLAP = 1 / 3  # of a window
SAME_SECONDS = 0.3  # between the middles of what is one word in two windows
SILERO_RATE = 16000  # Hz


def cutter(way, sample_rate):
    """Returns how a recording is cut: from blocks, rate and longest to segments, as `spoken`.

    Arguments
    ---------
    way : str
        One of `WAYS`.
    sample_rate : int
        In Hz.

    Raises
    ------
    UserError
        If it is none, or silero-vad is not installed.
    """
    if way == "windows":
        return windows
    if way == "vad":
        return partial(spoken, detector=Silero(sample_rate))
    if way == "pauses":
        return partial(spoken, detector=Loudness(sample_rate))
    raise UserError(f"--segments is {way}, but must be one of {', '.join(WAYS)}")


class Loudness:
    """Whether there is speech, by how loud it is over the quietest of the seconds around.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    """

    def __init__(self, sample_rate):
        self.frame, self.around = (
            round(FRAME_SECONDS * sample_rate),
            round(AROUND_SECONDS / FRAME_SECONDS),
        )
        self.reset()

    def reset(self):
        """Begins with another recording."""
        self._rest = self._past = numpy.empty(0, numpy.float32)

    def __call__(self, samples):
        """Returns the probability of speech of each frame that a block completes.

        Arguments
        ---------
        samples : numpy.ndarray
            (T,), float32.

        Returns
        -------
        list of float
        """
        samples = numpy.concatenate([self._rest, samples])
        count = samples.size // self.frame
        frames, self._rest = samples[: count * self.frame], samples[count * self.frame :]
        if not count:
            return []
        power = numpy.square(frames.reshape(count, -1)).mean(1) + QUIET
        known = numpy.concatenate([self._past, power])
        around = numpy.pad(known, self.around, constant_values=numpy.inf)
        floor = sliding_window_view(around, 2 * self.around + 1).min(1)[-count:]
        self._past = known[-self.around :]
        return (power / (power + LOUDER * floor)).tolist()


class Silero:
    """As `Loudness`, by the network of silero-vad, whose weights come with its package.

    Arguments
    ---------
    sample_rate : int
        In Hz.

    Raises
    ------
    UserError
        If silero-vad is not installed.
    """

    def __init__(self, sample_rate):
        import torch

        threads = torch.get_num_threads()
        try:
            from silero_vad import load_silero_vad
        except ImportError as error:
            raise UserError(
                "--segments vad needs silero-vad, which is not installed: "
                'pip install "speechbrain-summarymixing[vad]"'
            ) from error
        finally:
            torch.set_num_threads(threads)  # its import leaves the process one
        self.sample_rate, self.network = sample_rate, load_silero_vad()
        self.reset()

    def reset(self):
        """Begins with another recording."""
        self.network.reset_states()
        self._rest = numpy.empty(0, numpy.float32)

    def __call__(self, samples):
        """Returns the probability of speech of each frame that a block completes, as `Loudness`."""
        import torch
        import torchaudio

        samples = numpy.concatenate([self._rest, samples])
        size = round(FRAME_SECONDS * self.sample_rate)
        count = samples.size // size
        frames, self._rest = samples[: count * size], samples[count * size :]
        frames = torch.tensor(frames).view(count, size)
        if self.sample_rate != SILERO_RATE and count:  # frame by frame, so that none drifts
            wanted = round(FRAME_SECONDS * SILERO_RATE)
            frames = torchaudio.functional.resample(frames, self.sample_rate, SILERO_RATE)
            frames = torch.nn.functional.pad(frames, (0, wanted - frames.size(1)))
        with torch.no_grad():
            return [float(self.network(frame.unsqueeze(0), SILERO_RATE)) for frame in frames]


def windows(blocks, sample_rate, *, longest):
    """Cuts a recording in windows that overlap by `OVERLAP`.

    Arguments
    ---------
    blocks, sample_rate, longest
        As for `spoken`; all windows are as long.

    Yields
    ------
    tuple
        First sample, and samples (T,).
    """
    size = round(longest * sample_rate)
    hop = max(1, round(size * (1 - OVERLAP)))
    past = held = numpy.empty(0, numpy.float32)
    first = 0
    for block in blocks:
        held = numpy.concatenate([held, block])
        while held.size > size:
            yield first, held[:size]
            past, held, first = held[:hop], held[hop:], first + hop
    last = numpy.concatenate([past, held])[-size:]
    yield first + held.size - last.size, last


def spoken(blocks, sample_rate, *, longest, detector):
    """Cuts what is spoken out of a recording, with a little of the pauses around.

    A pause ends a segment. One that would be too long ends in its longest pause, or where speech
    is least probable. No more than a block and a segment are held.

    Arguments
    ---------
    blocks : iterable of numpy.ndarray
        (T,), float32, one after another.
    sample_rate : int
        In Hz.
    longest : float
        A segment's duration in seconds, at most, and 10 times the pause that ends one.
    detector : Loudness or Silero

    Yields
    ------
    tuple
        First sample, and samples (T,).
    """
    size = round(FRAME_SECONDS * sample_rate)
    most = max(2, int(longest / FRAME_SECONDS))
    pause = max(2, round(PAUSE * most))
    held, first = numpy.empty(0, numpy.float32), 0
    probable, speech = [], []  # of the frames from `first` on
    detector.reset()

    def complete(whole):
        nonlocal held, first
        while (cut := _cut(speech, probable, most, pause, whole)) is not None:
            start, stop = cut
            if stop > start:
                yield (first + start) * size, held[start * size : stop * size]
            held, first = held[stop * size :], first + stop
            del speech[:stop], probable[:stop]

    for block in blocks:
        held = numpy.concatenate([held, block])
        for probability in detector(block):
            speech.append(probability >= (END if speech and speech[-1] else BEGIN))
            probable.append(probability)
        yield from complete(False)
    missing = -(-held.size // size) - len(speech)  # the end is no whole frame
    speech += [bool(speech) and speech[-1]] * missing
    probable += [0.0] * missing
    yield from complete(True)


def _cut(speech, probable, most, pause, whole):
    """Start and stop of the first segment of frames, which begin anew at stop.

    None: more frames are needed, or none is left. A segment of none: so many are silent.
    """
    padding = min(round(PADDING / FRAME_SECONDS), pause // 2)
    if True not in speech:
        silent = len(speech) - (0 if whole else padding)
        return (silent, silent) if silent > 0 else None
    begin = speech.index(True)
    start = max(0, begin - padding)
    latest, pauses, since = start + most, [], None
    for frame in range(begin, min(len(speech), latest)):
        if speech[frame]:
            if since is not None:
                pauses.append((frame - since, (since + frame) // 2))
            since = None
            continue
        since = frame if since is None else since
        if frame + 1 - since == pause:
            return start, since + padding
    if len(speech) <= latest:
        return (start, len(speech)) if whole else None
    if since is not None:
        pauses.append((latest - since, (since + latest) // 2))
    if pauses:
        return start, max(pauses)[1]
    return start, _dip(probable, (start + latest) // 2, latest)


def _dip(probable, start, stop):
    """The frame in the middle of those where speech is least probable."""
    around = numpy.array(probable[start:stop])
    width = min(DIP_FRAMES, around.size)
    means = sliding_window_view(around, width).mean(1)
    return start + int(means.argmin()) + max(1, width // 2)


def merge(before, after, begin, end):
    """Returns the words of two segments that overlap, each word once, in the order of their times.

    Where both have the same word at the same time, the one goes over to the other, as near to the
    middle of the overlap as can be; else in its middle. What the second has within the last word
    of the first is left out.

    Arguments
    ---------
    before, after : list of Word
        Of the segments.
    begin, end : float
        Of the overlap, in seconds.
    """
    middle = (begin + end) / 2
    same = [
        (abs(_middle(a) + _middle(b) - 2 * middle), i, j)
        for i, a in enumerate(before)
        if a.end > begin
        for j, b in enumerate(after)
        if b.begin < end
        if a.word == b.word and abs(_middle(a) - _middle(b)) < SAME_SECONDS
    ]
    if same:
        _, i, j = min(same)
        before, after = before[: i + 1], after[j + 1 :]
    else:
        before = [word for word in before if _middle(word) < middle]
        after = [word for word in after if _middle(word) >= middle]
    if not before:
        return after
    last = before[-1]
    return before + [
        replace(word, begin=max(word.begin, last.end))
        for word in after
        if word.begin >= _middle(last) and word.end > last.end
    ]


def _middle(word):
    return (word.begin + word.end) / 2
