"""What `compare` computes of errors and learning curves: intervals of differences, ratios of steps.

Pure functions of arrays; files and tables are `comparison_table`'s.
"""

import numpy


def error_rates(errors, totals):
    """Error rate of each seed over all utterances.

    Arguments
    ---------
    errors, totals : array
        (S, N): of each seed and utterance, errors and what could be wrong (words).

    Returns
    -------
    numpy.ndarray
        (S,), in percent.
    """
    return 100.0 * numpy.sum(errors, axis=1) / numpy.sum(totals, axis=1)


def paired_difference(system, baseline, *, resamples=2000, seed=0):
    """Difference of the mean error rates of two systems, with its 95% interval.

    The bootstrap is paired and hierarchical: each resample draws seeds and utterances with
    replacement, the same for both systems. Of few seeds it knows too little: where they alone
    decide, the interval over 3 holds the truth in about 73 of 100 cases; see `seeds_interval`.

    Arguments
    ---------
    system, baseline : tuple of array
        Errors and totals (S, N), as in `error_rates`, of the same seeds and utterances in the same
        order.
    resamples, seed : int

    Returns
    -------
    tuple
        System minus baseline in percentage points, and the list of the 2.5th and 97.5th
        percentiles of the resamples.

    Raises
    ------
    ValueError
        If the shapes differ.

    Example
    -------
    >>> errors, totals = numpy.array([[1, 0, 2, 0]]), numpy.array([[4, 4, 4, 4]])
    >>> paired_difference((errors + 1, totals), (errors, totals))
    (25.0, [25.0, 25.0])
    """
    counts = [numpy.asarray(c, dtype=float) for c in (*system, *baseline)]
    shapes = [c.shape for c in counts]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"errors and totals have shapes {shapes}, but must all be (seeds, N)")
    seeds, utterances = shapes[0]
    random = numpy.random.default_rng(seed)

    def difference(seed_weights, weights):
        ours, of, theirs, of_theirs = (c @ weights for c in counts)  # (S,)
        return float(numpy.average(100.0 * (ours / of - theirs / of_theirs), weights=seed_weights))

    differences = []
    for _ in range(resamples):  # how often each is drawn
        drawn = [
            numpy.bincount(random.integers(n, size=n), minlength=n) for n in (seeds, utterances)
        ]
        differences.append(difference(*drawn))
    interval = [float(x) for x in numpy.percentile(differences, (2.5, 97.5))]
    return difference(numpy.ones(seeds), numpy.ones(utterances)), interval


def seeds_interval(system, baseline):
    """The 95% interval of the difference of two systems by the spread over seeds, of Student's t.

    Arguments
    ---------
    system, baseline : tuple of array
        As in `paired_difference`, of S seeds.

    Returns
    -------
    list of float or None
        In points; None of one seed.

    Example
    -------
    >>> totals, none = numpy.full((3, 2), 50), numpy.zeros((3, 2))
    >>> errors = numpy.array([[0, 1], [1, 1], [1, 2]])
    >>> [round(bound, 2) for bound in seeds_interval((errors, totals), (none, totals))]
    [-0.48, 4.48]
    """
    from scipy.stats import t

    differences = error_rates(*system) - error_rates(*baseline)
    if len(differences) < 2:
        return None
    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    return [float(differences.mean() - half), float(differences.mean() + half)]


def steps_to_reach(losses, steps, level):
    """The optimiser's step at which a curve, linear between its points, first is at a level.

    Arguments
    ---------
    losses, steps : sequence of float
        (E,), validation loss and steps of each epoch.
    level : float

    Returns
    -------
    float
        That of the first epoch if it is there already; infinity if it never is.
    """
    before = None
    for loss, step in zip(losses, steps):
        if loss <= level:
            if before is None:
                return float(step)
            last_loss, last_step = before
            return last_step + (step - last_step) * (last_loss - level) / (last_loss - loss)
        before = loss, step
    return float("inf")


def steps_ratios(system, baseline):
    """A system's steps to each validation loss that the baseline reaches, over the baseline's.

    Arguments
    ---------
    system, baseline : tuple of sequence
        Validation losses and steps (E,) of a run, as in `steps_to_reach`.

    Returns
    -------
    list of float
        One for each new minimum of the baseline's loss from epoch 2 on; infinity where the system
        does not reach it.

    Example
    -------
    >>> steps_ratios(([3.0, 1.0], [10, 20]), ([4.0, 3.0, 2.0], [10, 20, 30]))
    [0.5, 0.5]
    """
    losses, steps = baseline
    return [
        steps_to_reach(*system, loss) / step
        for epoch, (loss, step) in enumerate(zip(losses, steps))
        if epoch > 0 and loss < min(losses[:epoch])
    ]
