"""Greedy and beam search of transducers, for whole utterances and for streams in chunks."""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_summarymixing.lobes.emissions import (
    Emission,
    common,
    emissions_of,
    packed,
    same_start,
)
from speechbrain_summarymixing.lobes.transducer import BLANK

HASH = 6364136223846793005  # odd, so that multiplying by it, modulo 2^64, loses nothing


class GreedyState(NamedTuple):
    """Where streams are in greedy search; zeros are the start."""

    frames: torch.Tensor  # (B,), those heard
    predicted: torch.Tensor  # (B, W), after the last token
    memory: torch.Tensor  # (B, …), the predictor's


class BeamState(NamedTuple):
    """Where streams are in beam search with their K hypotheses each; zeros are the start."""

    frames: torch.Tensor  # (B,), those heard
    predicted: torch.Tensor  # (B, K, W), after the last token
    memory: torch.Tensor  # (B, K, …), the predictor's
    scores: torch.Tensor  # (B, K), log-probabilities of all alignments, float64
    hashes: torch.Tensor  # (B, K), of all tokens
    untold: torch.Tensor  # (B, K, P, 3), emissions in which hypotheses differ; float64, zero-padded


class Hypotheses(NamedTuple):
    """The part of a `BeamState` that moves with the frames, and places in the trace."""

    predicted: torch.Tensor
    memory: torch.Tensor
    scores: torch.Tensor
    hashes: torch.Tensor
    places: torch.Tensor  # (B, K); below K: the hypothesis of that number at the chunk's start


class TransducerSearch(nn.Module):
    """What `TransducerGreedy` and `TransducerBeam` share: streams that come in chunks.

    ``start`` makes the state of several streams, ``step`` hears a chunk, ``rest`` tells what is
    not told yet; `reset_rows` starts some of the streams anew. A call decodes whole utterances.

    Arguments
    ---------
    head : TransducerHead
    max_symbols : int
        Tokens at one frame, at most.
    """

    def __init__(self, head, *, max_symbols):
        super().__init__()
        self.head, self.max_symbols = head, max_symbols

    def forward(self, encoded, lengths):
        """Decodes whole utterances.

        Arguments
        ---------
        encoded : torch.Tensor
            (B, T, D).
        lengths : torch.Tensor
            (B,), relative.

        Returns
        -------
        tokens, frames, log_probs : list
            Of each utterance a list of what `Emission` holds.
        None
            SpeechBrain's interfaces take four.
        """
        ends = (lengths * encoded.size(1)).round().long()
        found, state = self.step(encoded, self.start(len(encoded)), ends)
        found = [told + untold for told, untold in zip(found, self.rest(state))]
        parts = [[list(column) for column in zip(*row)] or [[], [], []] for row in found]
        return (*([row[i] for row in parts] for i in range(3)), None)

    def start(self, streams):
        """Returns the state of so many streams before their first frame: zeros."""
        raise NotImplementedError

    def step(self, encoded, state, lengths=None):
        """Hears the next frames of streams; the tokens do not depend on where chunks end.

        Arguments
        ---------
        encoded : torch.Tensor
            (B, T, D).
        state : GreedyState or BeamState
            Of ``start`` or the step before.
        lengths : torch.Tensor or None
            (B,), frames of each stream in this chunk, from 0 to T; None: T.

        Returns
        -------
        list of list of Emission
            New ones of each stream, which later frames do not change.
        GreedyState or BeamState
            For the next chunk.
        """
        weight = self.head.output.weight
        if lengths is None:
            lengths = torch.full((len(encoded),), encoded.size(1), device=weight.device)
        # decoding costs little beside the encoder, so it is done in full precision
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            return self._step(encoded.to(weight.dtype), self._begun(state), lengths)

    def rest(self, state):
        """Returns what a stream's best hypothesis has beyond what was told, as ``step`` does.

        At the end of a stream it is its rest, and before it what may still change.
        """
        raise NotImplementedError

    def settle(self, state, counts):
        """Returns the state of streams that take back no more of what ``rest`` returned.

        Arguments
        ---------
        state : GreedyState or BeamState
            Of ``step``.
        counts : list of int or None
            Of each stream how many of these tokens are final; None: it goes on as it is.
        """
        return state

    def _first(self):
        """The prediction (W,) before any token, and the predictor's state (…) with it."""
        begin = torch.full((1, 1), BLANK, device=self.head.output.weight.device)
        predicted, memory = self.head.predictor(begin)
        return predicted[0, 0], memory[0]

    def _begun(self, state):
        """Gives streams at their start, which have no prediction yet, the first one."""
        predicted, memory = self._first()
        new = state.frames == 0
        return state._replace(
            predicted=_where(new, predicted, state.predicted),
            memory=_where(new, memory, state.memory),
        )


class TransducerGreedy(TransducerSearch):
    """Takes at each frame the most probable token, again and again until it is the blank.

    Arguments are those of `TransducerSearch`.

    Reference: arXiv 1211.3711.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_summarymixing.lobes.transducer import StatelessPredictor, TransducerHead
    >>> predictor = partial(StatelessPredictor, width=16)
    >>> head = TransducerHead(30, predictor=predictor, encoder_width=24, joint_width=32)
    >>> search, encoded = TransducerGreedy(head.eval(), max_symbols=3), torch.rand(2, 25, 24)
    >>> whole, _, _, _ = search(encoded, torch.ones(2))
    >>> state, told = search.start(2), [[], []]
    >>> for chunk in encoded.split(8, dim=1):
    ...     new, state = search.step(chunk, state)
    ...     told = [before + [e.token for e in row] for before, row in zip(told, new)]
    >>> told == whole
    True
    """

    def start(self, streams):
        """As `TransducerSearch`'s."""
        predicted, memory = self._first()
        return GreedyState(
            torch.zeros(streams, dtype=torch.long, device=predicted.device),
            predicted.new_zeros(streams, *predicted.shape),
            memory.new_zeros(streams, *memory.shape),
        )

    def rest(self, state):
        """Returns empty lists: all is told at once."""
        return [[] for _ in state.frames]

    def _step(self, encoded, state, lengths):
        frames, predicted, memory = state
        streams = torch.arange(len(encoded), device=encoded.device)
        position = torch.zeros_like(frames)  # (B,), each stream's own frame
        said = torch.zeros_like(frames)  # tokens at that frame
        found, going = [], encoded.size(1) > 0
        while going:
            heard = encoded[streams, position.clamp(max=encoded.size(1) - 1)]
            log_probs, tokens = self.head.join(heard, predicted).log_softmax(-1).max(-1)
            emits = (position < lengths) & (tokens != BLANK) & (said < self.max_symbols)
            found.append((emits, tokens, frames + position, log_probs))
            said = torch.where(emits, said + 1, 0)
            position = position + (~emits).long()
            going, speaking = torch.stack(((position < lengths).any(), emits.any())).tolist()
            if speaking:
                new_predicted, new_memory = self.head.predictor(tokens.unsqueeze(1), memory)
                predicted = _where(emits, new_predicted[:, 0], predicted)
                memory = _where(emits, new_memory, memory)
        told = [[] for _ in streams]
        for step in zip(*(torch.stack(column).tolist() for column in zip(*found))):
            for row, (emits, *emission) in zip(told, zip(*step)):
                if emits:
                    row.append(Emission(*emission))
        return told, GreedyState(frames + lengths, predicted, memory)


class TransducerBeam(TransducerSearch):
    """Keeps the most probable token sequences, frame by frame, with all the alignments of each.

    With a beam as wide as there are sequences it finds the most probable one. What all hypotheses
    agree on is told at the end of a chunk, with the frames of the best; ``rest`` tells the others.
    A frame takes one or more runs of the joiner, up to ``max_symbols`` + 1: as many as still add
    hypotheses that are among the best.

    Arguments
    ---------
    head : TransducerHead
    beam_size : int
        Hypotheses of an utterance, K.
    max_symbols : int
        As for `TransducerSearch`.

    Reference: arXiv 1211.3711, section 2.5, with all hypotheses at the same frame as in "Alignment-
    Length Synchronous Decoding for RNN Transducer", ICASSP 2020.
    """

    def __init__(self, head, *, beam_size, max_symbols):
        super().__init__(head, max_symbols=max_symbols)
        self.beam_size = beam_size

    def start(self, streams):
        """As `TransducerSearch`'s."""
        predicted, memory = self._first()
        beams = (streams, self.beam_size)
        long = {"dtype": torch.long, "device": predicted.device}
        return BeamState(
            frames=torch.zeros(streams, **long),
            predicted=predicted.new_zeros(*beams, *predicted.shape),
            memory=memory.new_zeros(*beams, *memory.shape),
            scores=predicted.new_zeros(beams, dtype=torch.float64),
            hashes=torch.zeros(beams, **long),
            untold=predicted.new_zeros(*beams, 0, 3, dtype=torch.float64),
        )

    def rest(self, state):
        """As `TransducerSearch`'s."""
        best = _alone(state).argmax(1).tolist()
        return [emissions_of(rows[index]) for rows, index in zip(state.untold.tolist(), best)]

    def settle(self, state, counts):
        """As `TransducerSearch`'s: hypotheses that begin otherwise are dropped."""
        best = _alone(state).argmax(1).tolist()
        kept, lost = [], []
        for rows, index, count in zip(state.untold.tolist(), best, counts):
            rows = [emissions_of(row) for row in rows]
            lost.append([not same_start(row, rows[index], count or 0) for row in rows])
            kept.append([row[count:] for row in rows])
        lost = torch.tensor(lost, device=state.scores.device)
        return state._replace(
            scores=state.scores.masked_fill(lost, -torch.inf), untold=packed(kept, state.untold)
        )

    def _step(self, encoded, state, lengths):
        places = torch.arange(self.beam_size, device=encoded.device).expand_as(state.hashes)
        beams = Hypotheses(state.predicted, state.memory, _alone(state), state.hashes, places)
        trace = []  # of each expansion its frame, and whence, token and log-probability (B, K)
        for frame in range(encoded.size(1)):
            parts = zip(self._hear(encoded, frame, beams, trace), beams)
            beams = Hypotheses(*(_where(frame < lengths, new, old) for new, old in parts))
        told, untold = self._told(state, beams, trace)
        return told, BeamState(state.frames + lengths, *beams[:4], untold)

    def _hear(self, encoded, frame, beams, trace):
        """The best hypotheses after a frame, whatever number of tokens it adds."""
        heard = None
        for said in range(self.max_symbols + 1):
            log_probs = self.head.join(encoded[:, frame : frame + 1], beams.predicted)
            log_probs = log_probs.log_softmax(-1)  # (B, K, V)
            ended = beams._replace(scores=beams.scores + log_probs[..., BLANK])
            heard = ended if heard is None else self._best(heard, ended)
            scores = (beams.scores.unsqueeze(-1) + log_probs[..., BLANK + 1 :]).flatten(1)
            # what follows is not more probable, and K others are
            scores = scores.masked_fill(scores < heard.scores.amin(1, keepdim=True), -torch.inf)
            if said == self.max_symbols or bool((scores == -torch.inf).all()):
                return heard
            beams = self._expand(frame, beams, scores, log_probs[..., BLANK + 1 :], trace)

    def _expand(self, frame, beams, scores, log_probs, trace):
        """The best hypotheses with one token more, by their scores (B, K (V - 1))."""
        scores, chosen = scores.topk(self.beam_size)
        before = _picked(beams, chosen // log_probs.size(-1))
        tokens = chosen % log_probs.size(-1) + BLANK + 1  # (B, K)
        trace.append((frame, before.places, tokens, log_probs.flatten(1).gather(1, chosen)))
        predicted, memory = self.head.predictor(
            tokens.flatten().unsqueeze(1), before.memory.flatten(0, 1)
        )
        return Hypotheses(
            predicted.view_as(before.predicted),
            memory.view_as(before.memory),
            scores,
            before.hashes * HASH + tokens,
            torch.arange(self.beam_size, device=tokens.device).expand_as(tokens)
            + len(trace) * self.beam_size,
        )

    def _best(self, *beams):
        """The K most probable of M hypotheses, of which those of equal tokens are one."""
        beams = Hypotheses(*(torch.cat(parts, dim=1) for parts in zip(*beams)))
        beams = _picked(beams, beams.scores.argsort(dim=1, descending=True, stable=True))
        same = beams.hashes.unsqueeze(1) == beams.hashes.unsqueeze(2)  # (B, M, M)
        scores = beams.scores.unsqueeze(1).masked_fill(~same, -torch.inf).logsumexp(2)
        scores = scores.masked_fill(same.tril(-1).any(2), -torch.inf)  # the first has the sum
        return _picked(beams._replace(scores=scores), scores.topk(self.beam_size).indices)

    def _told(self, state, beams, trace):
        """Of each stream the emissions that all hypotheses have, and the others, to be kept."""
        frames, *columns = zip(*trace) if trace else ((), (), (), ())
        columns = [torch.stack(column).tolist() if column else [] for column in columns]
        starts, old = state.frames.tolist(), state.untold.tolist()
        scores, places = beams.scores.tolist(), beams.places.tolist()
        told, kept = [], []
        for b, start in enumerate(starts):
            histories = [
                self._history(place, b, old[b], start, frames, *columns)
                if score > -torch.inf
                else None
                for score, place in zip(scores[b], places[b])
            ]
            best = histories[scores[b].index(max(scores[b]))]
            same = common([row for row in histories if row is not None])
            told.append(best[:same])
            kept.append([[] if row is None else row[same:] for row in histories])
        return told, packed(kept, state.untold)

    def _history(self, place, b, old, start, frames, parents, tokens, log_probs):
        """A hypothesis's emissions that are not told yet, by going back through the trace."""
        found = []
        while place >= self.beam_size:
            step, k = place // self.beam_size - 1, place % self.beam_size
            emission = tokens[step][b][k], start + frames[step], log_probs[step][b][k]
            found.append(Emission(*emission))
            place = parents[step][b][k]
        return emissions_of(old[place]) + found[::-1]


def _alone(state):
    """The scores; at the start, where all hypotheses are the same, that of the first one alone."""
    first = torch.arange(state.scores.size(1), device=state.scores.device) == 0
    return state.scores.masked_fill((state.frames == 0).unsqueeze(1) & ~first, -torch.inf)


def _where(mask, new, old):
    """``new`` in the rows of ``old`` (B, …) where mask (B,) is True."""
    return torch.where(mask.view(-1, *[1] * (old.dim() - 1)), new, old)


def _picked(beams, index):
    """Of each stream's hypotheses those at index (B, K)."""
    streams = torch.arange(len(index), device=index.device).unsqueeze(1)
    return Hypotheses(*(part[streams, index] for part in beams))
