"""SpeechBrain's prefix beam search of CTC, over the tokens of sentencepiece."""

from pathlib import Path

from speechbrain.decoders import CTCPrefixBeamSearcher

from speechbrain_summarymixing.errors import UserError, reason_of

FIRST = 0xF0000  # of a private area of Unicode: a character for each token
BEGINS = "▁"  # a word, in sentencepiece


class CTCBeam(CTCPrefixBeamSearcher):
    """Finds the most probable tokens by CTC, summed over their alignments, perhaps with n-grams.

    SpeechBrain's searcher knows hypotheses by their text. Here each token is a character of its
    own, so that those of equal text and other tokens are not mixed up, and hypotheses that a word's
    first token extends are found again, of whose alignments SpeechBrain's searcher loses some.

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
    **options
        As for SpeechBrain's searcher.

    Raises
    ------
    UserError
        If the language model cannot be used.

    Example
    -------
    >>> import torch
    >>> search = CTCBeam(["<unk>", "▁a", "b"], blank_index=0, beam_size=4)
    >>> log_probs = torch.tensor([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8]]).log()
    >>> [(tokens, round(score, 3)) for tokens, score in search.search(log_probs, nbest=2)]
    [([1, 2], -0.58), ([2], -1.386)]

    Reference: Hannun et al., arXiv 1408.2873, algorithm 1.
    """

    def __init__(self, pieces, *, blank_index, beam_size, ngram=None, **options):
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
        self.is_spm = True  # also where no piece begins a word
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
        self.topk = nbest
        found = self.decode_log_probs(log_probs.float().cpu().numpy(), log_probs.size(0))
        return [
            (
                [ord(character) - FIRST for character in one.text.replace(" ", "")],
                float(one.lm_score),
            )
            for one in found
        ]

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
        if len(beams) > known and not begins and new_token_index == previous_beam.last_token_index:
            beam.partial_word += new_token
        return beam


class SpelledScorer:
    """Lets SpeechBrain's `KenlmScorer` score words that are spelt by the characters of `CTCBeam`.

    Arguments
    ---------
    scorer : KenlmScorer
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
