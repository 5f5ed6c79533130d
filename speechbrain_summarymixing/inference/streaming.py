"""Speech recognised as it comes: words while they are said, of many streams at once."""

import logging
import math
from collections import deque
from dataclasses import dataclass

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from speechbrain_summarymixing.audio import float_samples
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.batches import has_speech
from speechbrain_summarymixing.inference.confidence import spelled_words
from speechbrain_summarymixing.inference.decoding import stream_search
from speechbrain_summarymixing.inference.transcripts import text_of
from speechbrain_summarymixing.lobes.streaming import SpeechEncoder
from speechbrain_summarymixing.nnet.streaming import (
    join_rows,
    put_rows,
    reset_rows,
    state_bytes,
    take_rows,
)

logger = logging.getLogger(__name__)

CHUNK_MS = 640
ENDPOINT_MS = 1200  # without a token, after which what was said is final
LONGEST_SECONDS = 30.0  # without a pause, after which all words but the last are final
SOUND_SECONDS = 0.5  # before a token, in which there is more than silence or steady noise


@dataclass(frozen=True)
class StreamedWord:
    """A word of a stream, with its times.

    Arguments
    ---------
    word : str
    begin, end : float
        In seconds from the start of the stream, of the frames where its first and last token were
        found, which is when the model was sure, a little after they were said.
    confidence : float
        The lowest probability of one of its tokens.
    """

    word: str
    begin: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Event:
    """What is known of a part of a stream between two pauses.

    In silence and steady noise nothing is said, as in whole files.

    Arguments
    ---------
    final : bool
        True: it does not change any more, and what comes is another part. False: it goes on.
    text : str
    words : tuple of StreamedWord
    seconds : float
        Of audio that was heard so far, from the start of the stream.
    """

    final: bool
    text: str
    words: tuple[StreamedWord, ...]
    seconds: float


class StreamingModel:
    """A trained recogniser for streams, which come and go and are heard together, in batches.

    Arguments
    ---------
    model : EncoderASR or EncoderDecoderASR
        From `transcribe.load_recognizer`, trained on chunks (`chunk_frames`).
    chunk_ms : int
        Sound that is waited for before it is recognised: a multiple of the encoder's frame, 40 ms.
        With the 7.5 ms that the filterbank looks ahead it is the algorithmic latency.
    left_ms : int or None
        Sound before a chunk that the mixers see: a multiple of chunk_ms; None is all of the past.
    endpoint_ms : int
        After so long without a token, what was said is final.
    decoder, **search
        As for `stream_search`.

    Raises
    ------
    UserError
        If the model cannot be used for streams, or an option cannot be.

    Example
    -------
    >>> model = StreamingModel(load_model("pretrained"), chunk_ms=640)  # doctest: +SKIP
    >>> stream = model.open()  # doctest: +SKIP
    >>> for samples in microphone:  # doctest: +SKIP
    ...     for event in stream.accept(samples):
    ...         print(event.text)
    """

    def __init__(
        self,
        model,
        *,
        chunk_ms=CHUNK_MS,
        left_ms=None,
        endpoint_ms=ENDPOINT_MS,
        decoder=None,
        **search,
    ):
        hparams = model.hparams
        self.sample_rate, self.tokenizer = hparams.sample_rate, model.tokenizer
        self.device = torch.device(model.device)
        self.frame_seconds = hparams.compute_features.samples / hparams.sample_rate
        frame_ms = round(1000 * self.frame_seconds)  # 39.9 at 22050 Hz
        chunk = _count(chunk_ms, frame_ms, "chunk_ms", least=1)
        left = None if left_ms is None else _count(left_ms, chunk_ms, "left_ms", least=0)
        self.chunk_ms, self.left_ms = chunk_ms, left_ms
        self.endpoint_frames = _count(endpoint_ms, 1, "endpoint_ms", least=1) / frame_ms
        try:
            self.encoder = _encoder(model, DynChunkTrainConfig(chunk, left)).eval()
            self.search = stream_search(model, decoder, **search).to(self.device).eval()
            with torch.no_grad():
                self._start = self._states(1)
        except ValueError as error:
            raise UserError(f"the model cannot be used for streams: {error}") from error
        self._state, self._free, self._streams = self._start, [0], {}

    @property
    def state_bytes(self):
        """Returns the memory of one stream's state in bytes, which does not grow with time.

        That of a beam search grows by its hypotheses, until they are final.
        """
        return state_bytes(self._start)

    def open(self):
        """Returns a new `StreamingRecognizer`."""
        return StreamingRecognizer(self)

    def advance(self, stream=None):
        """Recognises what all streams have accepted, in batches, one chunk of each at a time.

        Arguments
        ---------
        stream : StreamingRecognizer or None
            The one to recognise; None: all.

        Returns
        -------
        dict
            From each stream that has something to tell to its list of `Event`.
        """
        told, streams = {}, self._streams.values() if stream is None else [stream]
        while ready := [one for one in streams if one._due]:
            for one, event in zip(ready, self._hear(ready)):
                if event is not None:
                    told.setdefault(one, []).append(event)
        return told

    @torch.no_grad()
    def _hear(self, streams):
        """Recognises the next chunk of each of some streams; the event of each, or None."""
        due = [stream._due.pop(0) for stream in streams]
        windows, frames, ends = zip(*due)
        rows = torch.tensor([stream._row for stream in streams], device=self.device)
        encoder, search = take_rows(self._state, rows)
        lengths = torch.tensor(frames, device=self.device)
        encoded, encoder = self.encoder.step(torch.stack(windows).to(self.device), lengths, encoder)
        found, search = self.search.step(encoded, search, lengths)
        news = zip(streams, found, self.search.rest(search), due)
        events, counts = zip(*(stream._take(*new) for stream, *new in news))
        if any(count is not None for count in counts):
            search = self.search.settle(search, counts)
        ended = torch.tensor(ends, device=self.device)
        self._state = put_rows(self._state, rows, reset_rows((encoder, search), ended))
        return events

    def _states(self, batch):
        return self.encoder.initial_state(batch), self.search.start(batch)

    def _row_of(self, stream):
        """A row of the state for a stream; the rows double where none is free."""
        if not self._free:
            rows = len(self._streams)
            self._free = list(range(rows, 2 * rows))
            self._state = join_rows(self._state, self._states(rows))
        row = self._free.pop(0)
        self._streams[row] = stream
        return row

    def _release(self, row):
        begun = torch.zeros(len(self._free) + len(self._streams), dtype=torch.bool)
        begun[row] = True
        self._state = reset_rows(self._state, begun.to(self.device))
        del self._streams[row]
        self._free.append(row)


class StreamingRecognizer:
    """One stream of speech; from `StreamingModel.open`.

    ``partial`` is what was said since the last pause, which may go on; ``final`` is a list of what
    was said before, which is never taken back; ``text`` is all of it.

    Example
    -------
    >>> with model.open() as stream:  # doctest: +SKIP
    ...     for piece in samples.split(1600):
    ...         for event in stream.accept(piece):
    ...             print("final  " if event.final else "partial", event.text)
    ...     stream.finish()
    ...     print(stream.text)
    """

    def __init__(self, model):
        self.model, self._due, self._closed = model, [], False
        self._windows = model.encoder.windows()
        self._row = model._row_of(self)
        self._begin()

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Closes it."""
        self.close()

    @property
    def text(self):
        """Returns all that was said so far."""
        return " ".join(part for part in (*self.final, self.partial) if part)

    def put(self, samples):
        """Takes samples, to be recognised at the next `StreamingModel.advance`.

        Arguments
        ---------
        samples : torch.Tensor or numpy.ndarray
            (N,), any number, of the model's sample rate: floats in [-1, 1] or 16-bit integers.

        Raises
        ------
        UserError
            If they are no samples of one channel, not finite, far beyond full scale, or the stream
            is closed. The stream is then as before.
        """
        self._check_open()
        self._windows.accept(float_samples(samples))
        self._due.extend((*window, False) for window in self._windows.ready())

    def accept(self, samples):
        """Takes samples, as `put`, and returns what is new: a list of `Event`."""
        self.put(samples)
        return self.model.advance(self).get(self, [])

    def end(self):
        """Says that all samples were put; what is left is final after `StreamingModel.advance`.

        Samples that come then are heard as at the start of a stream, from 0 s on; ``final`` and
        ``text`` go on.
        """
        self._check_open()
        self._due.extend((*window, False) for window in self._windows.finish())
        if self._due:
            self._due[-1] = (*self._due[-1][:2], True)

    def finish(self):
        """Recognises what is left, as `end`; returns what is new: a list of `Event`."""
        self.end()
        return self.model.advance(self).get(self, [])

    def reset(self):
        """Forgets everything that was heard, and begins anew."""
        self.close()
        self.__init__(self.model)

    def close(self):
        """Makes room for another stream."""
        if not self._closed:
            self._closed, self._due = True, []
            self.model._release(self._row)

    def _check_open(self):
        if self._closed:
            raise UserError("the stream is closed: open another one with StreamingModel.open")

    def _begin(self):
        self.final, self.partial = [], ""
        self._tokens = []  # `Emission`s that stay, and are not final
        self._frames, self._first = 0, 0  # that were heard, and where the partial begins
        self._sound = torch.empty(0)  # SOUND_SECONDS that were heard last
        kept = 2 * LONGEST_SECONDS / self.model.frame_seconds
        self._sounding = deque(maxlen=round(kept))  # of the last frames, whether one may speak

    def _take(self, told, rest, heard):
        """Goes on by a chunk that was heard, with tokens that stay and those that may change.

        Returns an `Event` or None, and how many of the rest are final, or None.
        """
        window, frames, end = heard
        self._listen(window, frames)
        self._tokens += [one for one in told if self._sounds(one.frame)]
        places = [i for i, one in enumerate(rest) if self._sounds(one.frame)]
        tokens = self._tokens + [rest[i] for i in places]
        known = len(tokens)
        if not end:
            last = tokens[-1].frame if tokens else self._first
            if self._frames - last < self.model.endpoint_frames:
                known = self._long_ago(tokens)
                if not known:
                    before, event = self.partial, self._event(tokens)
                    return event if event.text != before else None, None
        event = self._event(tokens[:known], final=True)
        count = len(rest)
        if known < len(tokens):
            new = known - len(self._tokens)
            count = places[new - 1] + 1 if new > 0 else 0
        self.partial = self._event(tokens[known:]).text
        self._tokens, self._first = self._tokens[known:], self._frames
        if end:
            self._frames, self._first, self._sound = 0, 0, torch.empty(0)
        if event.text:
            self.final.append(event.text)
        return event if event.text else None, count

    def _listen(self, window, frames):
        """Tells of a chunk's frames whether a token there may be said: not in silence and noise."""
        rate, hop = self.model.sample_rate, self._windows.frame_samples
        before, long = self._windows.before, round(SOUND_SECONDS * rate)
        sound = torch.cat([self._sound, window[before : before + frames * hop]])
        ends = range(len(self._sound) + hop, len(sound) + 1, hop)
        early = sum(end < long for end in ends)  # in the stream's first half second
        self._sounding.extend([bool(has_speech(sound[:long], rate))] * early)
        if early < frames:
            windows = sound[ends[early] - long :].unfold(0, long, hop)
            for few in windows.split(16):  # in little memory
                self._sounding.extend(has_speech(few, rate).tolist())
        self._sound = sound[-long:]
        self._frames += frames

    def _sounds(self, frame):
        """Whether a token at a frame may be said."""
        return self._sounding[max(frame - self._frames, -len(self._sounding))]

    def _long_ago(self, tokens):
        """How many tokens are final without a pause: those before a word, or all but the last."""
        if (self._frames - self._first) * self.model.frame_seconds < LONGEST_SECONDS or not tokens:
            return 0
        pieces = [self.model.tokenizer.id_to_piece(emission.token) for emission in tokens]
        begins = [i for i, piece in enumerate(pieces) if i and piece.startswith("▁")]
        return begins[-1] if begins else len(tokens) - 1

    def _event(self, tokens, final=False):
        tokenizer, seconds = self.model.tokenizer, self.model.frame_seconds
        pieces = [tokenizer.id_to_piece(emission.token) for emission in tokens]
        words = tuple(
            StreamedWord(
                word,
                round(found[0].frame * seconds, 3),
                round((found[-1].frame + 1) * seconds, 3),
                round(math.exp(min(emission.log_prob for emission in found)), 4),
            )
            for word, found in spelled_words(pieces, tokens)
        )
        text = text_of(tokenizer, [emission.token for emission in tokens])
        if not final:
            self.partial = text
        return Event(final, text, words, round(self._frames * seconds, 3))


def _encoder(model, config):
    """The `SpeechEncoder` of a model, or what an export in ONNX has in its place."""
    if hasattr(model, "stream_encoder"):
        return model.stream_encoder(config)
    hparams = model.hparams
    if getattr(hparams, "chunk_frames", None) is None and not hparams.transformer.causal:
        logger.warning(
            "The model was not trained on chunks, so as a stream it makes more errors: train "
            "one with chunk_frames, such as hparams/sumformer_streaming.yaml"
        )
    names = ("compute_features", "normalize", "front_end", "transformer")
    return SpeechEncoder(*(getattr(hparams, name) for name in names), config)


def _count(value, unit, name, *, least):
    """How many units a time in milliseconds is."""
    count = value / unit
    if not (math.isfinite(count) and count == int(count) and count >= least):
        raise UserError(
            f"{name} is {value}, but must be a multiple of {unit:g} ms, from {least * unit:g} on"
        )
    return int(count)
