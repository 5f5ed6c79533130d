"""Statistics of a comparison, against brute force."""

import itertools

import numpy
import pytest

from speechbrain_summarymixing.analysis.comparison import (
    error_rates,
    paired_difference,
    seeds_interval,
    steps_ratios,
    steps_to_reach,
)


def counts(seeds, utterances, seed=0):
    random = numpy.random.default_rng(seed)
    totals = numpy.tile(random.integers(1, 9, utterances), (seeds, 1))
    return random.integers(0, 4, (seeds, utterances)), totals


def test_rates_are_of_all_utterances_together():
    assert error_rates([[1, 0], [2, 2]], [[4, 6], [4, 6]]).tolist() == [10.0, 40.0]


def test_identical_systems_differ_by_nothing():
    system = counts(3, 20)
    assert paired_difference(system, system) == (0.0, [0.0, 0.0])


def test_one_more_error_in_each_utterance_is_that_difference_in_every_resample():
    errors, _ = counts(2, 15)
    totals = numpy.full_like(errors, 4)
    difference, interval = paired_difference((errors + 1, totals), (errors, totals))
    assert [difference, *interval] == pytest.approx([25.0] * 3)


def test_the_interval_is_that_of_all_resamples():
    (ours, totals), (theirs, _) = counts(2, 3, seed=1), counts(2, 3, seed=2)
    differences = []
    for seeds in itertools.product(range(2), repeat=2):
        for utterances in itertools.product(range(3), repeat=3):
            rates = [
                sum(
                    sum(errors[s][u] for u in utterances) / sum(totals[s][u] for u in utterances)
                    for s in seeds
                )
                for errors in (ours, theirs)
            ]
            differences.append(50 * (rates[0] - rates[1]))
    difference, interval = paired_difference((ours, totals), (theirs, totals), resamples=20000)
    assert interval == pytest.approx(numpy.percentile(differences, (2.5, 97.5)), abs=0.5)
    rates = [100 * errors.sum(1) / totals.sum(1) for errors in (ours, theirs)]
    assert difference == pytest.approx(rates[0].mean() - rates[1].mean())


def test_the_interval_over_seeds_is_students():
    """Of the differences 0, 1 and 5 points; t of 2 degrees of freedom is 4.3027."""
    totals = numpy.full((3, 4), 25)
    theirs = numpy.array([[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]])
    ours = theirs + numpy.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 3, 0]])
    half = 4.3027 * 7**0.5 / 3**0.5
    expected = pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert seeds_interval((ours, totals), (theirs, totals)) == expected
    assert seeds_interval((ours[:1], totals[:1]), (theirs[:1], totals[:1])) is None


def test_a_pair_is_resampled_together():
    errors, totals = counts(3, 40)
    harder = errors + numpy.tile(numpy.arange(40) % 2, (3, 1))
    difference, (low, high) = paired_difference((harder, totals), (errors, totals))
    assert low < difference < high
    spread = numpy.ptp(paired_difference((errors, totals), (0 * errors, totals))[1])
    assert high - low < spread  # that of the errors themselves is not in the difference


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 20\).*\(2, 20\)"):
        paired_difference(counts(3, 20), counts(2, 20))


def test_steps_to_a_loss_are_read_from_the_line_between_epochs():
    losses, steps = [4.0, 2.0, 3.0, 1.0], [10, 20, 30, 40]
    for level in numpy.linspace(0.9, 5, 83):
        fine = numpy.linspace(10, 40, 30001)
        reached = fine[numpy.interp(fine, steps, losses) <= level + 1e-9]
        expected = reached[0] if len(reached) else float("inf")
        assert steps_to_reach(losses, steps, level) == pytest.approx(expected, abs=2e-3)


def test_ratios_are_of_the_losses_that_the_baseline_reaches_after_its_first_epoch():
    baseline = [5.0, 3.0, 4.0, 2.0], [10, 20, 30, 40]
    assert steps_ratios(baseline, baseline) == [1.0, 1.0]
    assert steps_ratios((baseline[0], [20, 40, 60, 80]), baseline) == [2.0, 2.0]
    assert steps_ratios(([4.0, 2.5], [10, 20]), baseline) == pytest.approx(
        [(10 + 10 * 1 / 1.5) / 20, float("inf")]
    )
    assert steps_ratios(([1.0], [10]), baseline) == [0.5, 0.25]
    assert steps_ratios(baseline, ([5.0], [10])) == []
