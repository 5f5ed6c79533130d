"""How far the words that a recogniser found are borne out by its CTC head, or its transducer."""

from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
from torchaudio.functional import forced_align, merge_tokens

# Set on AN4, its models and noise: at most 1% of the right words are marked. See README.
SURE_WORD = 0.02
SURE_UTTERANCE = 0.4


@dataclass(frozen=True)
class Word:
    """A word, its confidence from 0 to 1, and whether it can be relied on.

    Arguments
    ---------
    word : str
    confidence : float
        Of its tokens the lowest mean probability that CTC gives one where it is spoken, or, of a
        transducer, the lowest probability.
    sure : bool
        Neither this nor the mean confidence of the words around it is low.
    """

    word: str
    confidence: float
    sure: bool


def words_of(tokens, pieces, log_probs, *, blank):
    """Returns the words that tokens spell, with the confidence of each.

    Arguments
    ---------
    tokens : list of int
        What the search found, without blank, begin and end.
    pieces : list of str
        Of sentencepiece, one for each token; "▁" begins a word.
    log_probs : torch.Tensor
        (T, V), of CTC, or (U,), of the tokens, as a transducer gives them.
    blank : int
        CTC's.

    Returns
    -------
    list of Word
    """
    confidences = token_confidences(tokens, log_probs, blank=blank)
    words = [(word, min(values)) for word, values in spelled_words(pieces, confidences)]
    mean = sum(value for _, value in words) / max(1, len(words))
    return [
        Word(text, round(value, 4), value >= SURE_WORD and mean >= SURE_UTTERANCE)
        for text, value in words
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


def token_confidences(tokens, log_probs, *, blank):
    """Returns the mean probability of each token over the frames where CTC aligns it, or its own.

    Arguments are those of `words_of`. Tokens that are more than the frames have 0.

    Returns
    -------
    list of float
    """
    if log_probs.dim() == 1:
        return log_probs.exp().tolist()
    spans = token_spans(tokens, log_probs, blank=blank)
    return [span.score for span in spans] if spans else [0.0] * len(tokens)


def token_spans(tokens, log_probs, *, blank):
    """Returns where CTC aligns each token, or nothing if they are more than the frames.

    Arguments
    ---------
    tokens : list of int
        Without blank.
    log_probs : torch.Tensor
        (T, V), of CTC.
    blank : int
        CTC's.

    Returns
    -------
    list of torchaudio.functional.TokenSpan
        With ``start`` and ``end`` in frames, and ``score``, the mean probability.
    """
    repeated = sum(a == b for a, b in zip(tokens, tokens[1:]))  # a blank stands between
    if not tokens or len(tokens) + repeated > log_probs.size(0):
        return []
    targets = torch.tensor([tokens], device=log_probs.device)
    aligned, scores = forced_align(log_probs.unsqueeze(0).float(), targets, blank=blank)
    return merge_tokens(aligned[0], scores[0].exp(), blank=blank)
