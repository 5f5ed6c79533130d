"""What becomes of files that a recogniser hears: words, with their times and confidence.

Nothing here imports torch, since a graph needs none.
"""

from dataclasses import dataclass
from typing import NamedTuple

from speechbrain_summarymixing.inference.batches import in_batches
from speechbrain_summarymixing.inference.confidence import Span, Word, words_of
from speechbrain_summarymixing.inference.segments import WAYS, cutter, merge

SEGMENT_SECONDS = 20.0  # of models that do not tell theirs
BLANK, *_ = CONTROLS = (0, 1, 2)  # tokens that spell nothing: unknown, also CTC's blank, begin, end


@dataclass(frozen=True)
class Answer:
    """What became of one file, or why there is nothing.

    Arguments
    ---------
    file : str
    seconds : float or None
        Duration of the audio.
    error : str or None
    """

    file: str
    seconds: float | None = None
    error: str | None = None

    def doubt(self):
        """Returns what is doubtful about it, as a text, or None."""


@dataclass(frozen=True)
class Transcript(Answer):
    """What was said in a file, as ``text`` and as ``words`` with their times and confidence.

    ``segments``, where more than one hypothesis was asked for, has of each segment the second at
    which it begins and its hypotheses: ``text`` and ``score``, the best first.
    """

    text: str | None = None
    words: tuple[Word, ...] = ()
    segments: tuple[dict, ...] | None = None

    def doubt(self):
        """Returns which words cannot be relied on, or None."""
        unsure = [word.word for word in self.words if not word.sure]
        if unsure:
            shown = " ".join(unsure[:10]) + (" …" if len(unsure) > 10 else "")
            return f"{len(unsure)} of {len(self.words)} words are uncertain: {shown}"
        return "no words" if self.text == "" else None

    def line(self):
        """Returns it as a line."""
        return self.text


class Hypothesis(NamedTuple):
    """What may have been said, by tokens.

    Arguments
    ---------
    tokens : list of int
    score : float or None
        Of the search: the log-probability of CTC's beam search, SpeechBrain's score of the joint
        one; None: it has none.
    spans : list of Span or None
        Of the tokens but for `CONTROLS`; None: it is not the best hypothesis.
    """

    tokens: list[int]
    score: float | None
    spans: list[Span] | None


def spelling(tokens):
    """Returns those of tokens that spell something."""
    return [token for token in tokens if token not in CONTROLS]


def text_of(tokenizer, tokens):
    """Returns the words of tokens, one space apart; sentencepiece keeps those that spell nothing.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> tokenizer = SimpleNamespace(decode_ids=lambda tokens: "".join(" MRS"[t] for t in tokens))
    >>> text_of(tokenizer, [1, 2, 0, 0, 3, 0])
    'MR S'
    """
    return " ".join(tokenizer.decode_ids(tokens).split())


def recognise(model, files, decode, *, segment_seconds=None, segments=None, nbest=1, **batches):
    """Transcribes files by a search of one's own; what it returns and raises, `transcribe` does.

    Arguments
    ---------
    model
        As for `in_batches`, with its ``tokenizer``.
    decode : callable
        As for `in_batches`, to a list of `Hypothesis`, the best first, for each waveform.
    files, segment_seconds, segments, nbest, **batches
        As for `transcribe.transcribe`.
    """
    if segment_seconds is None:
        segment_seconds = getattr(model.hparams, "segment_seconds", SEGMENT_SECONDS)
    cut = cutter(segments or WAYS[0], model.hparams.sample_rate)
    results = in_batches(model, files, decode, segment_seconds=segment_seconds, cut=cut, **batches)
    return (_transcript(model, result, nbest) for result in results)


def _transcript(model, result, nbest):
    parts = result.pop("answers", None)
    if parts is None:
        return Transcript(**result)
    tokenizer, words, end = model.tokenizer, [], 0.0
    frame_seconds = model.hparams.compute_features.samples / model.hparams.sample_rate
    texts = [[text_of(tokenizer, one.tokens) for one in said] for *_, said in parts]
    overlaps = any(later[0] < former[1] for former, later in zip(parts, parts[1:]))
    for begin, stop, (best, *_) in parts:
        pieces = [tokenizer.id_to_piece(token) for token in spelling(best.tokens)]
        new = words_of(pieces, best.spans, frame_seconds=frame_seconds, begin=begin)
        words = merge(words, new, begin, end) if begin < end else words + new
        end = stop
    segments = None
    if nbest > 1:
        segments = tuple(
            {
                "begin": round(begin, 3),
                "nbest": [{"text": a, "score": round(b.score, 4)} for a, b in zip(spelled, said)],
            }
            for spelled, (begin, _, said) in zip(texts, parts)
        )
    text = " ".join(spelled[0] for spelled in texts if spelled[0])
    if overlaps:
        text = " ".join(word.word for word in words)
    return Transcript(**result, text=text, words=tuple(words), segments=segments)
