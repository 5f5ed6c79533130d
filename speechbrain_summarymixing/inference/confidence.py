"""When the words were said that a recogniser found, and how far its CTC head bears them out."""

from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

# Set on AN4, its models and noise: at most 1% of the right words are marked. See docs/use.md.
SURE_WORD = 0.02
SURE_UTTERANCE = 0.4


@dataclass(frozen=True)
class Word:
    """A word, its times, its confidence from 0 to 1, and whether it can be relied on.

    Arguments
    ---------
    word : str
    begin, end : float
        In seconds from the start of the file, of the first and the last frame where CTC aligns its
        tokens, or where a transducer found them; a frame is 40 ms.
    confidence : float
        Of its tokens the lowest mean probability that CTC gives one where it is spoken, or, of a
        transducer, the lowest probability.
    sure : bool
        Neither this nor the mean confidence of the words around it is low.
    """

    word: str
    begin: float
    end: float
    confidence: float
    sure: bool


class Span(NamedTuple):
    """Where a token is said: frames from start to stop, without stop, and its confidence."""

    start: float
    stop: float
    confidence: float


def words_of(pieces, spans, *, frame_seconds, begin=0.0):
    """Returns the words that tokens spell.

    Arguments
    ---------
    pieces : list of str
        Of sentencepiece, one for each token; "▁" begins a word.
    spans : list of Span
        One for each token.
    frame_seconds : float
        Of the encoder.
    begin : float
        Seconds of the file before the first frame.

    Returns
    -------
    list of Word
    """
    said = list(spelled_words(pieces, spans))
    values = [min(span.confidence for span in found) for _, found in said]
    mean = sum(values) / max(1, len(values))
    return [
        Word(
            text,
            round(begin + found[0].start * frame_seconds, 3),
            round(begin + found[-1].stop * frame_seconds, 3),
            round(value, 4),
            value >= SURE_WORD and mean >= SURE_UTTERANCE,
        )
        for (text, found), value in zip(said, values)
    ]


def spelled_words(pieces, values):
    """Yields each word that pieces spell, and what ``values`` has for its pieces.

    Arguments
    ---------
    pieces : list of str
        Of sentencepiece; "▁" begins a word.
    values : list
        One for each piece.
    """
    numbers = accumulate(piece.startswith("▁") for piece in pieces)
    for _, group in groupby(zip(numbers, pieces, values), key=lambda item: item[0]):
        _, spelled, found = zip(*group)
        if word := "".join(spelled).replace("▁", ""):
            yield word, found
