"""Searches of CTC in streams: any split finds what the search of the whole finds."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speechbrain_summarymixing.lobes import ctc_beam
from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam, SpelledScorer
from speechbrain_summarymixing.lobes.ctc_search import CTCGreedy, CTCPrefixBeam
from speechbrain_summarymixing.nnet.streaming import join_rows, put_rows, reset_rows, take_rows

PIECES = ["<unk>", "▁a", "b", "▁ab", "c"]
SEEDS = st.integers(0, 2**32 - 1)


def scored(state, word, is_last_word=False):
    """A bigram model, whose state is the word before."""
    return 0.5 * (1 + sum(map(ord, f"{state} {word}")) % 7) - 4.0, word


SCORER = SimpleNamespace(
    order=2,
    get_start_state=lambda: "<s>",
    score=scored,
    score_partial_token=lambda word: -float(len(word)),
)


def beam(size=4, ngram=False):
    search = CTCBeam(PIECES, blank_index=0, beam_size=size)
    if ngram:
        search.lm = SpelledScorer(SCORER, PIECES)
    return CTCPrefixBeam(nn.Identity(), search)


def speech(streams, frames, seed):
    """Scores as those of a model that is sometimes unsure."""
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(streams, frames, len(PIECES), generator=random)


def whole(search, encoded):
    """All hypotheses of an utterance (T, V), and their scores."""
    return search.search.search(encoded.log_softmax(-1), nbest=100)


def hypotheses(search, state):
    """As `whole`, of the streams of a state."""
    for _, _, beams in search._streams(state):
        found = search.search.ranked(beams)
        yield [([emission.token for emission in said], score) for said, score in found]


def tokens_of(emissions):
    return [[emission.token for emission in row] for row in emissions]


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(0, 7), max_size=8),
    size=st.integers(1, 6),
    ngram=st.booleans(),
    seed=SEEDS,
)
def test_any_split_has_the_hypotheses_of_the_whole(sizes, size, ngram, seed):
    search, encoded = beam(size, ngram), speech(2, sum(sizes), seed)
    state, said = search.start(2), [[], []]
    for chunk in encoded.split(sizes, dim=1) if sizes else ():
        told, state = search.step(chunk, state)
        said = [before + new for before, new in zip(said, told)]
    expected = [whole(beam(size, ngram), row) for row in encoded]
    assert list(hypotheses(search, state)) == expected
    for row, rest, best in zip(said, search.rest(state), expected):
        assert [emission.token for emission in row + rest] == best[0][0]
        frames = [emission.frame for emission in row + rest]
        assert all(0 <= frame < sum(sizes) for frame in frames)
        assert all(emission.log_prob <= 0 for emission in row + rest)


@pytest.mark.parametrize("seed", range(3))
def test_streams_begin_and_end_apart_and_wait(seed):
    search, (first, second, third) = beam(), speech(3, 12, seed)
    expected = [whole(search, x)[0][0] for x in (first, second[:5], third[:6])]
    state = search.start(1)
    _, state = search.step(speech(1, 4, seed + 9), state)
    state = join_rows(reset_rows(state, torch.tensor([True])), search.start(1))
    told, state = search.step(torch.stack((first[:6], second[:6])), state, torch.tensor([6, 5]))
    ended = told[1] + search.rest(state)[1]
    state = reset_rows(state, torch.tensor([False, True]))
    only = torch.tensor([1])  # the first one waits
    new, row = search.step(third[None, :6], take_rows(state, only))
    state = put_rows(state, only, row)
    more, state = search.step(torch.stack((first[6:], third[6:])), state, torch.tensor([6, 0]))
    rest = search.rest(state)
    found = [told[0] + more[0] + rest[0], ended, new[0] + more[1] + rest[1]]
    assert tokens_of(found) == expected and any(expected)


def test_scores_that_were_forgotten_are_found_again(monkeypatch):
    monkeypatch.setattr(ctc_beam, "REMEMBERED", 0)
    search, encoded = beam(ngram=True), speech(1, 30, 3)
    state = search.start(1)
    for chunk in encoded.split(3, dim=1):
        _, state = search.step(chunk, state)
    assert list(hypotheses(search, state)) == [whole(beam(ngram=True), encoded[0])]


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 9)), max_size=9),
    st.booleans(),
    SEEDS,
)
def test_what_is_settled_stays(pieces, ngram, seed):
    """Told and settled tokens, and then the rest, are those of the best hypothesis each time."""
    search, known = beam(ngram=ngram), []
    state = search.start(1)
    for index, (size, count) in enumerate(pieces):
        ((told,), state) = search.step(speech(1, size, seed + index), state)
        known += told
        (rest,) = search.rest(state)
        if count is not None:
            count = min(count, len(rest))
            state = search.settle(state, [count])
            known, rest = known + rest[:count], rest[count:]
            assert search.rest(state) == [rest]
            kept = state.said[0, 0, : int(state.told[0]), 0].tolist()
            assert kept == [emission.token for emission in known][len(known) - len(kept) :]
            begins = [PIECES[int(token)].startswith("▁") for token in kept]
            assert sum(begins) <= 1  # the last word alone is kept
        frames = [emission.frame for emission in known + rest]
        assert all(frame < sum(s for s, _ in pieces[: index + 1]) for frame in frames)


def test_settling_nothing_in_dispute_changes_nothing():
    search, encoded = beam(), speech(2, 12, 1)
    encoded[:, :6] = 30 * torch.eye(5)[[1, 2, 0, 4, 0, 0]]  # sure
    _, state = search.step(encoded[:, :6], search.start(2))
    counts = [len(rest) for rest in search.rest(state)]
    settled = search.settle(state, [counts[0], None])
    assert settled.told[0] == 3 and settled.said[1].equal(state.said[1])
    (_, found), (_, expected) = (search.step(encoded[:, 6:], x) for x in (settled, state))
    assert list(hypotheses(search, found)) == list(hypotheses(search, expected))


def test_tokens_are_told_at_the_frame_that_is_surest():
    probs = torch.full((9, 5), 0.001)
    for frame, tokens in enumerate(
        [{0: 1}, {0: 8, 1: 2}, {0: 1, 1: 9}, {0: 1}, {2: 1}, {2: 1}, {0: 1}, {2: 9, 0: 1}, {0: 1}]
    ):
        for token, weight in tokens.items():
            probs[frame, token] = weight / sum(tokens.values())
    encoded = probs.log()[None]
    for size in (2, 9):
        found, state = [], beam().start(1)
        for chunk in encoded.split(size, dim=1):
            (told,), state = beam().step(chunk, state)
            found += told
        found += beam().rest(state)[0]
        assert [(one.token, one.frame) for one in found] == [(1, 2), (2, 4), (2, 7)]
    greedy, _ = CTCGreedy(nn.Identity()).step(encoded, CTCGreedy(nn.Identity()).start(1))
    assert [(one.token, one.frame) for one in greedy[0]] == [(1, 2), (2, 4), (2, 7)]
    for one, other in zip(found, greedy[0]):
        assert one.log_prob == pytest.approx(other.log_prob)
