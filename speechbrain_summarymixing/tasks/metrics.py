"""Error rates with what is needed to judge them: intervals and lengths."""

import numpy

LENGTH_BOUNDS = (2.0, 3.0, 4.0, 6.0)  # seconds


def word_error_rate(scores):
    """Word error rate in percent of SpeechBrain's per-utterance scores.

    Arguments
    ---------
    scores : list of dict
        ``ErrorRateStats.scores``, with num_edits and num_ref_tokens.
    """
    words = sum(score["num_ref_tokens"] for score in scores)
    return 100.0 * sum(score["num_edits"] for score in scores) / words if words else float("nan")


def word_error_interval(scores, **options):
    """95% bootstrap interval of the word error rate, over utterances.

    Arguments
    ---------
    scores : list of dict
        As in `word_error_rate`.
    **options
        As for `bootstrap_interval`.

    Returns
    -------
    list of float
        In percent.
    """
    counts = [(score["num_edits"], score["num_ref_tokens"]) for score in scores]
    return bootstrap_interval(counts, percentage, **options)


def percentage(counts):
    """Returns 100 a / b of counts a, b (2, ...)."""
    return 100.0 * counts[0] / counts[1]


def bootstrap_interval(counts, measure, *, resamples=2000, seed=0):
    """95% bootstrap interval of a measure of summed counts, over utterances.

    Arguments
    ---------
    counts : list of tuple
        (N, K), the counts of each utterance.
    measure : callable
        From summed counts, an array (K, resamples), to values (resamples,).
    resamples, seed : int

    Returns
    -------
    list of float
        The 2.5th and 97.5th percentiles.
    """
    counts = numpy.array(counts, dtype=float)
    picks = numpy.random.default_rng(seed).integers(len(counts), size=(resamples, len(counts)))
    # one resample at a time: all of them at once are gigabytes for a large test set
    values = measure(numpy.stack([counts[pick].sum(axis=0) for pick in picks], axis=1))
    return [float(x) for x in numpy.percentile(values, (2.5, 97.5))]


def word_error_rate_by_length(scores, seconds, bounds=LENGTH_BOUNDS, *, name="WER"):
    """Word error rate of utterances of like duration.

    Arguments
    ---------
    scores : list of dict
        As in `word_error_rate`, with key: the utterance's ID.
    seconds : dict
        Duration of each ID.
    bounds : sequence of float
        Between the classes, in seconds.
    name : str
        Of the rate: of characters, where these are the scores' tokens, CER.

    Returns
    -------
    dict
        From the class, such as "2-3 s", to its utterances and rate; empty classes are left out.
    """
    edges = [0.0, *bounds, float("inf")]
    classes = {}
    for low, high in zip(edges, edges[1:]):
        inside = [s for s in scores if low <= seconds[s["key"]] < high]
        if inside:
            length = f"{low:g}-{high:g} s" if high < float("inf") else f">= {low:g} s"
            classes[length] = {"utterances": len(inside), name: word_error_rate(inside)}
    return classes
