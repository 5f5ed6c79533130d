"""Words that one waits for, which the prefix beam search of CTC then finds sooner."""

import math
from pathlib import Path

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_lines

BEGINS = "▁"  # a word, in sentencepiece
SPELLS = 3  # the first token that does: before are blank, begin and end


class Hotwords:
    """Scores words as SpeechBrain's `KenlmScorer` does: those that one waits for more.

    Each adds the weight times the number of its tokens to the log-probability of a hypothesis. What
    begins one adds a part of that, by characters, which is taken back if the word goes on otherwise
    or ends too early. Where several begin so, it is the largest.

    Arguments
    ---------
    words : iterable of str
    pieces : list of str
        Of sentencepiece, one for each token.
    weight : float
        For each token, in nats.
    scorer : KenlmScorer or None
        Whose scores are added.

    Raises
    ------
    UserError
        If the tokens cannot spell a word, or the weight is not above 0.

    Example
    -------
    >>> words = Hotwords(["abba"], ["<unk>", "<s>", "</s>", "▁ab", "b", "a"], weight=2.0)
    >>> words.score(None, "abba"), words.score(None, "ab")
    ((6.0, None), (0.0, None))
    >>> words.score_partial_token("ab"), words.score_partial_token("aba")
    (3.0, 0.0)
    """

    def __init__(self, words, pieces, *, weight, scorer=None):
        if not 0 < weight < math.inf:
            raise UserError(f"--hotword-weight is {weight}, but must be above 0")
        self._scorer, self.order = scorer, 1 if scorer is None else scorer.order
        self._whole, self._begun, spells = {}, {}, set(pieces[SPELLS:])
        for word in words:
            if (count := fewest(BEGINS + word, spells)) is None:
                unknown = "".join(sorted(set(word) - set("".join(spells))))
                raise UserError(
                    f"--hotwords has {word!r}, which the model's tokens cannot spell"
                    f"{f' (they have no {unknown!r})' if unknown else ''}: write it as the model "
                    "writes words, or leave it out"
                )
            self._whole[word] = weight * count
            for size in range(1, len(word) + 1):
                share = weight * count * size / len(word)
                self._begun[word[:size]] = max(share, self._begun.get(word[:size], 0.0))

    def get_start_state(self):
        """As the scorer's; None without one."""
        return None if self._scorer is None else self._scorer.get_start_state()

    def score(self, state, word, is_last_word=False):
        """Returns the score of a word, and the scorer's next state."""
        own = self._whole.get(word, 0.0)
        if self._scorer is None:
            return own, None
        score, state = self._scorer.score(state, word, is_last_word)
        return own + score, state

    def score_partial_token(self, word):
        """Returns the score of what begins a word."""
        own = self._begun.get(word, 0.0)
        return own if self._scorer is None else own + self._scorer.score_partial_token(word)


def fewest(text, pieces):
    """Returns the least number of pieces that spell a text, or None where they cannot.

    Arguments
    ---------
    text : str
    pieces : set of str
    """
    longest, counts = max(map(len, pieces), default=0), [0]
    for end in range(1, len(text) + 1):
        starts = range(max(0, end - longest), end)
        fits = [counts[start] for start in starts if text[start:end] in pieces]
        counts.append(1 + min(fits, default=math.inf))
    return None if counts[-1] == math.inf else counts[-1]


def hotwords_of(given):
    """Returns the words that a user gives.

    Arguments
    ---------
    given : str, Path or iterable of str
        The words; or in one text, apart by commas or spaces; or a text file of these.

    Raises
    ------
    UserError
        If there is no such file, or no word.
    """
    if not isinstance(given, (str, Path)):
        words = list(given)
    elif Path(given).is_file():
        words = " ".join(read_lines(Path(given))).replace(",", " ").split()
    elif isinstance(given, Path) or "/" in given or given.endswith(".txt"):
        raise UserError(f"--hotwords is {given}: no such file: give one, or words apart by commas")
    else:
        words = given.replace(",", " ").split()
    if not words:
        raise UserError(f"--hotwords is {given}, which has no words: give some, or leave it out")
    return words
