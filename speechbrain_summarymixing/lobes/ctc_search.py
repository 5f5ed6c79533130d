"""Greedy search of CTC, for whole utterances and for streams in chunks."""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_summarymixing.lobes.transducer import BLANK
from speechbrain_summarymixing.lobes.transducer_search import Emission


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
