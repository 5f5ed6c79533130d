import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_summarymixing.tasks.metrics import (
    word_error_interval,
    word_error_rate,
    word_error_rate_by_length,
)


def score(key, edits, words):
    return {"key": key, "num_edits": edits, "num_ref_tokens": words}


def test_word_error_rate_weights_utterances_by_their_words():
    assert word_error_rate([score("a", 1, 1), score("b", 0, 9)]) == 10.0


def test_classes_of_length_and_their_names():
    scores = [score("a", 1, 2), score("b", 0, 4), score("c", 2, 4), score("d", 1, 10)]
    seconds = {"a": 1.0, "b": 2.0, "c": 2.9, "d": 30.0}
    assert word_error_rate_by_length(scores, seconds, bounds=(2.0, 3.0)) == {
        "0-2 s": {"utterances": 1, "WER": 50.0},
        "2-3 s": {"utterances": 2, "WER": 25.0},
        ">= 3 s": {"utterances": 1, "WER": 10.0},
    }


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), min_size=1, max_size=30))
def test_interval_holds_the_rate_of_equal_utterances_and_is_ordered(counts):
    scores = [score(str(i), *count) for i, count in enumerate(counts)]
    low, high = word_error_interval(scores, resamples=50)
    rates = [100 * e / w for e, w in counts]
    assert min(rates) - 1e-9 <= low <= high <= max(rates) + 1e-9
    if len(set(counts)) == 1:
        assert low == pytest.approx(high) == pytest.approx(word_error_rate(scores))


def test_the_interval_holds_95_of_100():
    """Of 400 words of which half are wrong: 1.96 standard errors of 2.5 points to each side."""
    low, high = word_error_interval([score(str(i), i % 2, 1) for i in range(400)])
    assert (low, high) == (pytest.approx(45.1, abs=0.5), pytest.approx(54.9, abs=0.5))


def test_interval_narrows_with_the_number_of_utterances():
    few = word_error_interval([score(str(i), i % 2, 1) for i in range(20)])
    many = word_error_interval([score(str(i), i % 2, 1) for i in range(2000)])
    assert many[1] - many[0] < (few[1] - few[0]) / 5
    assert many[0] < 50 < many[1]
