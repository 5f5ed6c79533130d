"""Confidence of words, against all alignments of short utterances."""

from itertools import product

import pytest
import torch

from speechbrain_summarymixing.inference.confidence import Span, words_of
from speechbrain_summarymixing.inference.decoding import aligned


def best_alignment(tokens, log_probs):
    """By trying all: the label of each frame, of the most probable path that gives the tokens."""
    frames, size = log_probs.shape

    def spelled(path):
        return [t for i, t in enumerate(path) if t != 0 and (i == 0 or path[i - 1] != t)]

    paths = [p for p in product(range(size), repeat=frames) if spelled(p) == tokens]
    return max(paths, key=lambda path: sum(log_probs[i, t] for i, t in enumerate(path)))


def spans_by_hand(tokens, log_probs):
    path, found = best_alignment(tokens, log_probs), []
    for i, token in enumerate(path):
        if token != 0:
            if i == 0 or path[i - 1] != token:
                found.append([])
            found[-1].append(i)
    means = [float(sum(log_probs[i, path[i]].exp() for i in f) / len(f)) for f in found]
    return [(f[0], f[-1] + 1, mean) for f, mean in zip(found, means)]


@pytest.mark.parametrize("seed", range(8))
def test_a_token_lies_where_ctc_aligns_it_with_its_mean_probability_there(seed):
    random = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(6, 4, generator=random)).log_softmax(1)
    count = int(torch.randint(1, 4, (), generator=random))
    tokens = torch.randint(1, 4, (count,), generator=random).tolist()
    found = aligned(tokens, log_probs, blank=0)
    for span, expected in zip(found, spans_by_hand(tokens, log_probs), strict=True):
        assert tuple(span) == pytest.approx(expected, abs=1e-5)


def test_more_tokens_than_frames_have_no_confidence():
    log_probs = torch.zeros(3, 4).log_softmax(1)
    found = aligned([1, 1, 2], log_probs, blank=0)  # a blank is between
    assert found == [Span(0, 1, 0), Span(1, 2, 0), Span(2, 3, 0)]
    assert aligned([], log_probs, blank=0) == []


def test_a_transducer_tells_the_probability_of_each_token():
    spans = [Span(frame, frame + 1, p) for frame, p in ((2, 0.9), (3, 0.5), (5, 0.7))]
    words = words_of(["▁A", "B", "▁C"], spans, frame_seconds=0.04)
    assert [(w.word, w.confidence, w.sure) for w in words] == [("AB", 0.5, True), ("C", 0.7, True)]


def test_a_word_is_as_sure_as_its_worst_token_and_the_words_around_it():
    def words(*probabilities):
        log_probs = torch.full((8, 6), -20.0)
        for frame, p in enumerate(probabilities):
            log_probs[2 * frame, frame + 1] = torch.tensor(p).log()
            log_probs[2 * frame + 1, 0] = 0.0
        spans = aligned([1, 2, 3, 4], log_probs, blank=0)
        return words_of(["▁A", "B", "▁", "C"], spans, frame_seconds=0.04, begin=10.0)

    sure = words(0.9, 0.8, 0.9, 0.7)
    assert [(w.word, w.confidence, w.sure) for w in sure] == [("AB", 0.8, True), ("C", 0.7, True)]
    assert [(w.begin, w.end) for w in sure] == [(10.0, 10.12), (10.16, 10.28)]
    assert [w.sure for w in words(0.01, 0.99, 0.99, 0.7)] == [False, False]  # the mean is low
    assert [w.sure for w in words(0.99, 0.01, 0.99, 0.97)] == [False, True]
