"""Greedy and prefix beam search of CTC, for streams in chunks."""

import math
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_summarymixing.lobes.ctc_beam import BEGINS
from speechbrain_summarymixing.lobes.emissions import (
    Emission,
    common,
    emissions_of,
    packed,
    same_start,
)
from speechbrain_summarymixing.lobes.transducer import BLANK


class CTCState(NamedTuple):
    """Where streams are in greedy search; zeros are the start."""

    frames: torch.Tensor  # (B,), those heard
    last: torch.Tensor  # (B,), the most probable token of the last frame


class CTCGreedy(nn.Module):
    """Takes the most probable token of each frame, less repetitions and blanks.

    Its calls are those of `TransducerSearch`.

    Arguments
    ---------
    ctc_lin : torch.nn.Module
        Scores of tokens (…, V) of the encoder's output (…, D); token 0 is the blank.

    Reference: Graves et al., Connectionist Temporal Classification, ICML 2006.

    Example
    -------
    >>> search, encoded = CTCGreedy(nn.Identity()), torch.eye(4)[[1, 1, 0, 1, 2]].unsqueeze(0)
    >>> found, state = search.step(encoded[:, :2], search.start(1))
    >>> more, state = search.step(encoded[:, 2:], state)
    >>> [(emission.token, emission.frame) for emission in found[0] + more[0]]
    [(1, 0), (1, 3), (2, 4)]
    """

    def __init__(self, ctc_lin):
        super().__init__()
        self.ctc_lin = ctc_lin

    def start(self, streams):
        """Returns the state of so many streams before their first frame: zeros."""
        like = next(self.ctc_lin.parameters(), torch.empty(0))
        frames = torch.zeros(streams, dtype=torch.long, device=like.device)
        return CTCState(frames, frames)

    def step(self, encoded, state, lengths=None):
        """Hears the next frames of streams; see `TransducerSearch.step`."""
        frames = torch.arange(encoded.size(1), device=encoded.device)
        if lengths is None:
            lengths = torch.full((encoded.size(0),), encoded.size(1), device=encoded.device)
        with torch.no_grad():
            log_probs, tokens = self.ctc_lin(encoded).log_softmax(-1).max(-1)  # (B, T)
        heard = torch.cat([state.last.unsqueeze(1), tokens], 1)
        emits = (tokens != BLANK) & (tokens != heard[:, :-1]) & (frames < lengths.unsqueeze(1))
        found = [[] for _ in encoded]
        rows, places = emits.nonzero(as_tuple=True)
        columns = (rows, tokens[emits], (state.frames.unsqueeze(1) + frames)[emits])
        for row, *emission in zip(*(x.tolist() for x in (*columns, log_probs[emits]))):
            found[row].append(Emission(*emission))
        last = heard.gather(1, lengths.unsqueeze(1)).squeeze(1)
        return found, CTCState(state.frames + lengths, last)

    def rest(self, state):
        """Returns empty lists: all is told at once."""
        return [[] for _ in state.frames]

    def settle(self, state, counts):
        """Returns the state as it is."""
        return state


class CTCBeamState(NamedTuple):
    """Where streams are in beam search with K hypotheses each; zeros are the start."""

    frames: torch.Tensor  # (B,), those heard
    told: torch.Tensor  # (B,), how many emissions were told
    blank: torch.Tensor  # (B, K), log-probability of alignments that end in a blank, float64
    nonblank: torch.Tensor  # (B, K), that of those that end in the last token
    said: torch.Tensor  # (B, K, P, 3), emissions since what was settled; float64, zero-padded


class CTCPrefixBeam(nn.Module):
    """Finds the most probable tokens by CTC, summed over their alignments, in streams.

    Its calls are those of `TransducerSearch`. Chunks, wherever they end, lead to the hypotheses of
    the whole. A stream's state grows with the tokens since `settle`, which drops what was before
    the last word that is final.

    Arguments
    ---------
    ctc_lin : torch.nn.Module
        Scores of tokens (…, V) of the encoder's output (…, D); token 0 is the blank.
    search : CTCBeam

    Example
    -------
    >>> from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam
    >>> beam = CTCBeam(["<unk>", "▁a", "b"], blank_index=0, beam_size=4)
    >>> search = CTCPrefixBeam(nn.Identity(), beam)
    >>> encoded = torch.tensor([[[0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.9, 0.05, 0.05]]]).log()
    >>> found, state = search.step(encoded[:, :2], search.start(1))
    >>> more, state = search.step(encoded[:, 2:], state)
    >>> [(one.token, one.frame) for one in found[0] + more[0] + search.rest(state)[0]]
    [(1, 0), (2, 1)]

    Reference: Hannun et al., arXiv 1408.2873, algorithm 1.
    """

    def __init__(self, ctc_lin, search):
        super().__init__()
        self.ctc_lin, self.search = ctc_lin, search

    def start(self, streams):
        """As `CTCGreedy`'s."""
        like = next(self.ctc_lin.parameters(), torch.empty(0))
        whole = torch.zeros(streams, dtype=torch.long, device=like.device)
        beams = like.new_zeros(streams, self.search.beam_size, dtype=torch.float64)
        return CTCBeamState(whole, whole, beams, beams, beams.view(*beams.shape, 1, 1)[:, :, :0])

    def step(self, encoded, state, lengths=None):
        """Hears the next frames of streams; see `TransducerSearch.step`."""
        if lengths is None:
            lengths = torch.full((encoded.size(0),), encoded.size(1), device=encoded.device)
        with torch.no_grad():
            log_probs = self.ctc_lin(encoded).log_softmax(-1).cpu().double().numpy()
        found, streams = [], []
        for row, count, (frames, told, beams) in zip(
            log_probs, lengths.tolist(), self._streams(state)
        ):
            beams = self.search.advance(row[:count], beams, frames)
            same = common([beam.text_frames for beam in beams])
            found.append(self.search.ranked(beams)[0][0][told:same])
            streams.append((frames + count, same, beams))
        return found, self._state(streams, state)

    def rest(self, state):
        """As `TransducerSearch`'s."""
        return [self.search.ranked(beams)[0][0][told:] for _, told, beams in self._streams(state)]

    def settle(self, state, counts):
        """As `TransducerSearch`'s: hypotheses that begin otherwise are dropped."""
        streams = []
        for count, (frames, told, beams) in zip(counts, self._streams(state)):
            if count is not None:
                best, told = self.search.ranked(beams)[0][0], told + count
                beams = [beam for beam in beams if same_start(beam.text_frames, best, told)]
                words = [i for i in range(told) if self._begins(best[i].token)]
                start = max([*words, 0])  # of the last word, which the next token may go on
                told, beams = told - start, [self._without(beam, start) for beam in beams]
            streams.append((frames, told, beams))
        return self._state(streams, state)

    def _begins(self, token):
        return self.search.vocab_list[token].startswith(BEGINS)

    def _without(self, beam, start):
        return self.search.beam(beam.text_frames[start:], beam.p_b, beam.p_nb)

    def _streams(self, state):
        """Frames, number of told tokens and beams of each stream."""
        for frames, told, *rows in zip(*(part.tolist() for part in state)):
            beams = [
                self.search.beam(emissions_of(said), blank, nonblank)
                for blank, nonblank, said in zip(*rows)
                if max(blank, nonblank) > -math.inf
            ]
            yield frames, told, beams if frames else [self.search.beam([])]

    def _state(self, streams, like):
        """The state that has what `_streams` yields."""
        size = like.blank.size(1)
        blank, nonblank = (
            [[getattr(one, name) for one in beams] for _, _, beams in streams]
            for name in ("p_b", "p_nb")
        )
        never, nothing = [-math.inf], [[]]
        said = [[one.text_frames for one in beams] for _, _, beams in streams]
        return CTCBeamState(
            like.frames.new_tensor([frames for frames, *_ in streams]),
            like.told.new_tensor([told for _, told, _ in streams]),
            *(
                like.blank.new_tensor([row + never * (size - len(row)) for row in rows])
                for rows in (blank, nonblank)
            ),
            packed([row + nothing * (size - len(row)) for row in said], like.said),
        )
