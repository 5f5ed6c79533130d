"""CTC's prefix scores of all tokens at once, without a loop over frames.

B is the number of utterances, N = B x beams that of hypotheses, those of an utterance side by side,
T the frames, V the tokens.
"""

from typing import NamedTuple

import torch
from speechbrain.decoders import scorer
from torch.nn.functional import pad

from speechbrain_summarymixing.nnet.sines import exact_dtype


class Prefixes(NamedTuple):
    """Log probabilities of hypotheses after 0 to T frames, and of all that begins with them."""

    nonblank: torch.Tensor  # (N, T + 1), of those whose last frame is the last token
    blank: torch.Tensor  # (N, T + 1), of those whose last frame is blank
    begins: torch.Tensor  # (N, 1)

    def total(self):
        """Returns (N, T + 1), those that end in either."""
        return self.nonblank.logaddexp(self.blank)


class CTCPrefixes:
    """CTC's prefix scores, as SpeechBrain's `CTCPrefixScore` has them.

    Those of all tokens after a prefix are one product of matrices, over frames, of the prefix's
    probability before a frame and the tokens' in it. The prefix's own, a recursion over frames, are
    cumulative sums, and only of the tokens that the search keeps. All in float64, since logarithms
    are summed over all frames.

    Arguments
    ---------
    log_probs : torch.Tensor
        (B, T, V).
    lengths : torch.Tensor
        (B,), in frames.
    blank_index, eos_index : int
        Tokens of the blank and of the end of sentence.

    Reference: Watanabe et al., Hybrid CTC/attention architecture, 2017, algorithm 2.

    Example
    -------
    >>> log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]]).log()
    >>> prefixes = CTCPrefixes(log_probs, torch.tensor([2]), blank_index=0, eos_index=2)
    >>> scores, _ = prefixes.score(torch.tensor([0]), None)
    >>> scores.exp()  # no blank, 1 somewhere, nothing
    tensor([[0.0000, 0.3750, 0.2500]], dtype=torch.float64)
    """

    minus_inf = -1e20  # finite, so that no difference of two is not a number

    def __init__(self, log_probs, lengths, *, blank_index, eos_index):
        self.blank_index, self.eos_index = blank_index, eos_index
        frames = torch.arange(log_probs.size(1), device=log_probs.device)
        padding = frames >= lengths.unsqueeze(1)  # (B, T)
        sure = torch.arange(log_probs.size(2), device=log_probs.device) == blank_index
        exact = exact_dtype(log_probs.device)
        probs = log_probs.to(exact).exp().where(~padding.unsqueeze(2), sure.to(exact))
        self.probs = probs.transpose(1, 2).contiguous()  # (B, V, T), sure of a blank on padding
        self.blanks = self._sums(self.probs[:, blank_index])  # (B, T + 1)

    def score(self, tokens, prefixes):
        """Scores all tokens that may follow.

        Arguments
        ---------
        tokens : torch.Tensor
            (N,), the newest of each hypothesis.
        prefixes : Prefixes or None
            Of the hypotheses; None: they are empty.

        Returns
        -------
        scores : torch.Tensor
            (N, V), log probabilities of what begins with a hypothesis and the token, less those of
            what begins with the hypothesis.
        memory : tuple
            For `permute`.
        """
        if prefixes is None:
            prefixes = self._empty(tokens.size(0))
        total = prefixes.total()
        psi = self._at_some_frame(total)  # (N, V)
        repeated = self._at_some_frame(prefixes.blank, tokens)  # (N, 1): a blank stands between
        psi = psi.scatter(1, tokens.unsqueeze(1), repeated)
        psi[:, self.eos_index] = total[:, -1]
        psi[:, self.blank_index] = self.minus_inf
        return psi - prefixes.begins, (prefixes, total, psi, tokens)

    def permute(self, memory, index):
        """Returns the `Prefixes` that the search goes on with.

        Arguments
        ---------
        memory : tuple
            From `score`.
        index : torch.Tensor
            (B, beams), the hypothesis in its utterance times V plus the new token, of each.
        """
        prefixes, total, psi, tokens = memory
        utterances, vocabulary, _ = self.probs.shape
        beams = index.size(1)
        first = torch.arange(utterances, device=index.device).unsqueeze(1) * beams
        chosen = (index.div(vocabulary, rounding_mode="floor") + first).flatten()  # (N,)
        new = (index % vocabulary).flatten()
        blank = prefixes.blank[chosen]
        before = torch.where((new == tokens[chosen]).unsqueeze(1), blank, total[chosen])
        never = torch.full_like(blank[:, :1], self.minus_inf)
        sums = self._sums(self._rows(new))
        nonblank = torch.cat([never, _decayed(before, sums)], 1)
        blanks = self.blanks.repeat_interleave(beams, 0)
        blank = torch.cat([never, _decayed(nonblank, blanks)], 1)
        return Prefixes(nonblank, blank, psi[chosen, new].unsqueeze(1))

    def _empty(self, hypotheses):
        """The `Prefixes` without a token: all frames are blank."""
        blank = self.blanks.repeat_interleave(hypotheses // len(self.blanks), 0)
        never = torch.full_like(blank, self.minus_inf)
        return Prefixes(never, blank, torch.zeros_like(blank[:, :1]))

    def _at_some_frame(self, before, tokens=None):
        """Log sums over frames of prefixes (N, T + 1) before and all tokens, or one (N,), in it."""
        before = before[:, :-1]
        most = before.amax(1, keepdim=True)
        scaled = (before - most).exp()  # (N, T)
        if tokens is None:
            scaled = scaled.unflatten(0, (len(self.probs), -1))
            mass = (scaled @ self.probs.transpose(1, 2)).flatten(0, 1)
        else:
            mass = (scaled * self._rows(tokens)).sum(1, keepdim=True)
        return _log(mass) + most

    def _rows(self, tokens):
        """Probabilities (N, T) of a token of each hypothesis."""
        utterances, vocabulary, _ = self.probs.shape
        first = torch.arange(utterances, device=tokens.device) * vocabulary
        rows = tokens + first.repeat_interleave(tokens.size(0) // utterances)
        return self.probs.flatten(0, 1).index_select(0, rows)

    @staticmethod
    def _sums(probs):
        """Log probabilities (N, T + 1) of the same token in all of the first 0 to T frames."""
        return pad(_log(probs).cumsum(1), (1, 0))


class CTCScorer(scorer.CTCScorer):  # SpeechBrain's `ScorerBuilder` knows it by this name
    """SpeechBrain's scorer of CTC, by `CTCPrefixes`; as a partial scorer too it scores all tokens.

    Arguments
    ---------
    ctc_fc : torch.nn.Module
        From the encoder's output (B, T, D) to scores of tokens (B, T, V).
    blank_index, eos_index : int
        Tokens of the blank and of the end of sentence.
    """

    def __init__(self, ctc_fc, blank_index, eos_index):
        super().__init__(ctc_fc, blank_index, eos_index)

    @torch.no_grad()
    def reset_mem(self, x, enc_lens):
        """Takes the encoder's output (B, T, D) and its lengths (B,) in frames."""
        self.ctc_score = CTCPrefixes(
            self.softmax(self.ctc_fc(x)),
            enc_lens,
            blank_index=self.blank_index,
            eos_index=self.eos_index,
        )

    @torch.no_grad()
    def score(self, inp_tokens, memory, candidates, attn):
        """Scores all tokens; see `CTCPrefixes.score`."""
        return self.ctc_score.score(inp_tokens, memory)

    @torch.no_grad()
    def permute_mem(self, memory, index):
        """Goes on with the hypotheses of the search; see `CTCPrefixes.permute`."""
        return self.ctc_score.permute(memory, index)


def _log(probs):
    """The logarithm, of 0 a number that sums and differences stay exact beside."""
    return probs.log().clamp(min=-1e6)


def _decayed(before, sums):
    """Solves r[t] = (r[t - 1] + before[t - 1]) p[t] for r (N, T) after 1 to T frames, r[0] = 0.

    ``before`` is (N, T + 1); ``sums`` (N, T + 1), the products of p up to t. All are logarithms.
    """
    return sums[:, 1:] + (before - sums)[:, :-1].logcumsumexp(1)
