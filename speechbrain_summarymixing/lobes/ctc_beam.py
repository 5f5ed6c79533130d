"""SpeechBrain's prefix beam search of CTC, over the tokens of sentencepiece."""

import math
from pathlib import Path

import numpy
from speechbrain.decoders import CTCPrefixBeamSearcher
from speechbrain.decoders.ctc import CTCBeam as Beam

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.lobes.emissions import Emission
from speechbrain_summarymixing.lobes.hotwords import BEGINS, Hotwords, hotwords_of

FIRST = 0xF0000  # of a private area of Unicode: a character for each token
HOTWORD_WEIGHT = 1.0  # nats for each token; more finds words that were not said
REMEMBERED = 100_000  # texts whose score by the language model is known


class CTCBeam(CTCPrefixBeamSearcher):
    """Finds the most probable tokens by CTC, summed over their alignments, perhaps with n-grams.

    SpeechBrain's searcher knows hypotheses by their text. Here each token is a character of its
    own, so that those of equal text and other tokens are not mixed up, and hypotheses that a word's
    first token extends are found again, of whose alignments SpeechBrain's searcher loses some.
    ``text_frames`` of its beams here holds the `Emission` of each token, at the frame where most of
    the hypothesis's probability comes from.

    Arguments
    ---------
    pieces : list of str
        Of sentencepiece, one for each token; "▁" begins a word.
    blank_index : int
    beam_size : int
        Hypotheses of an utterance.
    ngram : str or Path or None
        Language model over words for KenLM, in its binary form or ARPA (.arpa), to which
        SpeechBrain gives the weight 0.5, and each word 1.5.
    hotwords : str, Path, iterable of str or None
        As for `hotwords_of`: words that one waits for.
    hotword_weight : float or None
        As for `Hotwords`; None: 1.
    **options
        As for SpeechBrain's searcher.

    Raises
    ------
    UserError
        If the language model or hotwords cannot be used.

    Example
    -------
    >>> import torch
    >>> search = CTCBeam(["<unk>", "▁a", "b"], blank_index=0, beam_size=4)
    >>> log_probs = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]).log()
    >>> [(tokens, round(score, 3)) for tokens, score in search.search(log_probs, nbest=2)]
    [([1, 2], -0.58), ([2], -1.386)]

    Reference: Hannun et al., arXiv 1408.2873, algorithm 1.
    """

    def __init__(
        self,
        pieces,
        *,
        blank_index,
        beam_size,
        ngram=None,
        hotwords=None,
        hotword_weight=None,
        **options,
    ):
        marks = [BEGINS * piece.startswith(BEGINS) for piece in pieces]
        try:
            super().__init__(
                blank_index,
                [mark + chr(FIRST + token) for token, mark in enumerate(marks)],
                beam_size=beam_size,
                kenlm_model_path=None if ngram is None else _found(ngram),
                prune_history=False,
                spm_token=BEGINS,
                **options,
            )
        except ImportError as error:
            raise UserError(
                f"--ngram is {ngram}, which needs KenLM and pygtrie ({error}): pip install "
                "'speechbrain-summarymixing[ngram]', which compiles KenLM (by cmake and a C++ "
                "compiler)"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"--ngram is {ngram}, which KenLM cannot read ({reason_of(error)}): give an ARPA "
                "file, named .arpa, or one that KenLM's build_binary wrote"
            ) from error
        self.is_spm, self._scores = True, None  # also where no piece begins a word
        if hotwords is not None:
            weight = HOTWORD_WEIGHT if hotword_weight is None else hotword_weight
            self.lm = Hotwords(hotwords_of(hotwords), pieces, weight=weight, scorer=self.lm)
        elif hotword_weight is not None:
            raise UserError(f"--hotword-weight is {hotword_weight}: give --hotwords too")
        if self.lm is not None:
            self.lm = SpelledScorer(self.lm, pieces)

    def search(self, log_probs, *, nbest=1):
        """Returns the best hypotheses of one utterance.

        Arguments
        ---------
        log_probs : torch.Tensor
            (T, V).
        nbest : int

        Returns
        -------
        list of tuple
            Tokens (list of int) and log-probability, with the language model's; the best first.
        """
        beams = self.advance(log_probs.cpu().double().numpy(), [self.beam([])])
        ranked = self.ranked(beams)[:nbest]
        return [([emission.token for emission in said], score) for said, score in ranked]

    def beam(self, said, blank=0.0, nonblank=-math.inf):
        """Returns SpeechBrain's form of a hypothesis.

        Arguments
        ---------
        said : list of Emission
        blank, nonblank : float
            Log-probabilities of its alignments whose last frame is blank, or its last token.
        """
        tokens = [self.vocab_list[emission.token] for emission in said]
        text = "".join(" " + token[1:] if token[:1] == BEGINS else token for token in tokens)
        before, _, word = text.rpartition(" ")
        score = float(numpy.logaddexp(blank, nonblank))
        return Beam(
            text=text,
            full_text=before.lstrip(),
            next_word="",
            partial_word=word,
            last_token=tokens[-1] if tokens else None,
            last_token_index=said[-1].token if tokens else None,
            text_frames=list(said),
            partial_frames=(-1, -1),
            p_b=blank,
            p_nb=nonblank,
            score=score,
            score_ctc=score,
        )

    def advance(self, log_probs, beams, frame=0):
        """Returns the beams after more frames; parts of an utterance leave those of the whole.

        Arguments
        ---------
        log_probs : numpy.ndarray
            (T, V).
        beams : list of CTCBeam
            SpeechBrain's, which are changed.
        frame : int
            Number of the first one.
        """
        return self.partial_decoding(log_probs, len(log_probs), beams, *self._known(), frame)

    def ranked(self, beams):
        """Returns (list of `Emission`, score) of each hypothesis if all ended here, best first."""
        ended = self.finalize_decoding(beams, *self._known(), force_next_word=True, is_end=True)
        return [
            (one.text_frames[: len(one.text.replace(" ", ""))], float(one.lm_score))
            for one in ended
        ]

    def _known(self):
        """Scores of texts and begun words by the language model, begun anew when they are many."""
        if self._scores is None or max(map(len, self._scores)) > REMEMBERED:
            self._scores = {} if self.lm is None else TextScores(self.lm), {}
        return self._scores

    def _get_new_beam(
        self, frame_index, new_prefix, new_token, new_token_index, beams, p, previous_beam
    ):
        """As SpeechBrain's, which looks for a word's first token as it is not written.

        Where a token occurs twice in a row, SpeechBrain's tells the language model one.
        """
        begins, known = new_token[:1] == BEGINS, len(beams)
        if begins:
            new_prefix = previous_beam.text + " " + new_token[1:]
        beam = super()._get_new_beam(
            frame_index, new_prefix, new_token, new_token_index, beams, p, previous_beam
        )
        repeated = new_token_index == previous_beam.last_token_index
        if len(beams) > known and not begins and repeated:
            beam.partial_word += new_token
        enters = (previous_beam.p_b if repeated else previous_beam.score_ctc) + p
        if len(beams) > known or enters > beam.score_ctc:
            emission = Emission(int(new_token_index), frame_index, float(p))
            beam.text_frames = [*previous_beam.text_frames, emission]
        return beam


class TextScores(dict):
    """Scores and states of texts by a language model, found when they are asked for.

    Arguments
    ---------
    lm : SpelledScorer
    """

    def __init__(self, lm):
        super().__init__({("", False): (0.0, lm.get_start_state())})
        self._lm = lm

    def __contains__(self, key):
        """True: all texts have a score."""
        return True

    def __missing__(self, key):
        """Returns score and state of (text, whether it is all)."""
        missing = []  # the last of them is after a text that is known
        while not dict.__contains__(self, key):
            before, _, word = key[0].rpartition(" ")
            missing.append((key, word))
            key = before, False
        score, state = self[key]
        for key, word in reversed(missing):
            more, state = self._lm.score(state, word, is_last_word=key[1])
            score += more
            self[key] = score, state
        return self[key]


class SpelledScorer:
    """Lets SpeechBrain's `KenlmScorer` score words that are spelt by the characters of `CTCBeam`.

    Arguments
    ---------
    scorer : KenlmScorer or Hotwords
    pieces : list of str
        As for `CTCBeam`.
    """

    def __init__(self, scorer, pieces):
        self._scorer, self.order = scorer, scorer.order
        self.get_start_state = scorer.get_start_state
        self._spelling = {FIRST + token: piece.strip(BEGINS) for token, piece in enumerate(pieces)}

    def score(self, state, word, is_last_word=False):
        """As the scorer's."""
        return self._scorer.score(state, word.translate(self._spelling), is_last_word)

    def score_partial_token(self, word):
        """As the scorer's."""
        return self._scorer.score_partial_token(word.translate(self._spelling))


def _found(path):
    if not Path(path).is_file():
        raise UserError(f"--ngram is {path}: no such file: give an ARPA file or KenLM's own")
    return str(path)
