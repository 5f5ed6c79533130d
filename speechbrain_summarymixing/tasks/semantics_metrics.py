"""How well meanings are understood: labels, entities and SLU-F1, with intervals.

Entities are scored as in SLURP's paper (arXiv 2011.13205, section 5) and its published scorer. A
predicted entity, in turn, takes of the reference entities of its type that are left the one whose
filler is nearest: a true positive, whose distance is added to the false positives and to the false
negatives. Without one it is a false positive; reference entities left at the end are false
negatives. The distance of words is edits over the reference's words, which may exceed 1, that of
characters edits over the longer filler's characters. SLU-F1 is of both sums of counts together.
"""

import json
from collections import Counter
from pathlib import Path

from speechbrain.utils.edit_distance import count_ops, op_table

from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.tasks.metrics import bootstrap_interval, percentage

KINDS = ("TP", "FP", "FN")
F_MEASURES = {  # of the sums of which counts
    "SLU_F1": ("word", "char"),
    "word_F1": ("word",),
    "char_F1": ("char",),
    "entity_F1": ("entity",),
}
INTENT = ("scenario", "action")  # together SLURP's intent


def score(reference, hypothesis):
    """Counts of an utterance, which add up over utterances.

    Arguments
    ---------
    reference : Semantics
    hypothesis : Semantics or None
        None, an invalid output, has every label wrong and every entity missed.

    Returns
    -------
    dict
        From each accuracy's name, "exact" and "invalid" to 0 or 1, and from "entity_TP", …,
        "word_FN", "char_FN" to counts.

    Example
    -------
    >>> from speechbrain_summarymixing.corpora.semantics import Semantics
    >>> order = Semantics({"intent": "order"}, (("drink", "iced tea"),))
    >>> score(order, Semantics({"intent": "order"}, (("drink", "tea"),)))["word_FP"]
    0.5
    """
    labels = {} if hypothesis is None else hypothesis.labels
    said = () if hypothesis is None else hypothesis.entities
    right = {name: int(labels.get(name) == value) for name, value in reference.labels.items()}
    counts = {f"{name}_accuracy": value for name, value in right.items()}
    if len(right) > 1:
        together = "intent" if set(right) == set(INTENT) else "labels"
        counts[f"{together}_accuracy"] = int(all(right.values()))
    entities = Counter(reference.entities)
    same = (entities & Counter(said)).total()
    exact = hypothesis is not None and labels == reference.labels and entities == Counter(said)
    sums = {
        "entity": (same, len(said) - same, len(reference.entities) - same),
        "word": _matched(reference.entities, said, word_distance),
        "char": _matched(reference.entities, said, character_distance),
    }
    counts.update(
        {f"{name}_{kind}": value for name, sum_ in sums.items() for kind, value in zip(KINDS, sum_)}
    )
    return {**counts, "exact": int(exact), "invalid": int(hypothesis is None)}


def _matched(reference, said, distance):
    """True positives, false positives and false negatives of entities."""
    left = list(reference)
    matches = extra = far = 0
    for kind, filler in said:
        candidates = [entity for entity in left if entity[0] == kind]
        if not candidates:
            extra += 1
            continue
        nearest = min(candidates, key=lambda entity: distance(entity[1], filler))
        left.remove(nearest)
        matches += 1
        far += distance(nearest[1], filler)
    return matches, extra + far, len(left) + far


def word_distance(reference, hypothesis):
    """Edits of words between two texts, over the reference's words.

    Example
    -------
    >>> word_distance("new york", "york")
    0.5
    """
    words = reference.split()
    return _edits(words, hypothesis.split()) / len(words)


def character_distance(reference, hypothesis):
    """Edits of characters between two texts, over the longer one's characters.

    Example
    -------
    >>> character_distance("five", "fine")
    0.25
    """
    return _edits(reference, hypothesis) / max(len(reference), len(hypothesis))


def _edits(a, b):
    return 0 if a == b else count_ops(op_table(a, b)).total()


def summarize(rows, **options):
    """Measures of utterances, in percent, and their 95% bootstrap intervals.

    Arguments
    ---------
    rows : list of dict
        Of `score`; at least one.
    **options
        As for `metrics.bootstrap_interval`.

    Returns
    -------
    dict
        Each accuracy, SLU_F1, word_F1, char_F1, entity_F1 (type and filler exact) and exact (the
        whole meaning, entities in any order), each with its interval at ``<name>_95``; and the
        numbers invalid and utterances.

    Raises
    ------
    UserError
        If the references have different labels.
    """
    accuracies = [name for name in rows[0] if name.endswith("_accuracy")]
    for row in rows:
        if row.keys() != rows[0].keys():
            others = [name for name in row if name.endswith("_accuracy")]
            raise UserError(
                f"some meanings want {', '.join(accuracies)}, others {', '.join(others)}: all "
                "meanings must have the same labels"
            )
    summary = {}

    def add(name, counts, measure):
        summary[name] = float(measure([sum(column) for column in zip(*counts)]))
        summary[f"{name}_95"] = bootstrap_interval(counts, measure, **options)

    for name in accuracies:
        add(name, [(row[name], 1) for row in rows], percentage)
    for name, parts in F_MEASURES.items():
        counts = [
            tuple(sum(row[f"{part}_{kind}"] for part in parts) for kind in KINDS) for row in rows
        ]
        add(name, counts, f_measure)
    add("exact", [(row["exact"], 1) for row in rows], percentage)
    invalid = sum(row["invalid"] for row in rows)
    return {**summary, "invalid": invalid, "utterances": len(rows)}


def by_first_label(references, rows):
    """What the accuracy of the first label, such as the scenario, is made of.

    Arguments
    ---------
    references : list of Semantics
        At least one.
    rows : list of dict
        Of `score`, for each.

    Returns
    -------
    dict
        ``<label>_accuracy_by_class``, from each value of the label to its accuracy, and
        ``<label>_majority``, the share of the most frequent value; all in percent.

    Example
    -------
    >>> from speechbrain_summarymixing.corpora.semantics import Semantics
    >>> order = Semantics({"intent": "order"})
    >>> by_first_label([order], [score(order, None)])
    {'intent_accuracy_by_class': {'order': 0.0}, 'intent_majority': 100.0}
    """
    name, of_value = next(iter(references[0].labels)), {}
    for reference, row in zip(references, rows):
        of_value.setdefault(reference.labels[name], []).append(row[f"{name}_accuracy"])
    return {
        f"{name}_accuracy_by_class": {
            value: 100.0 * sum(right) / len(right) for value, right in sorted(of_value.items())
        },
        f"{name}_majority": 100.0 * max(map(len, of_value.values())) / len(rows),
    }


def f_measure(counts):
    """F1 in percent of true positives, false positives and false negatives (3, ...).

    Where all are 0 it is 0, as in SLURP's scorer.
    """
    right, extra, missed = counts
    wanted = 2 * right + extra + missed
    return 200.0 * right / (wanted + (wanted == 0))


def prediction_line(file, meaning):
    """A prediction as SLURP's scorer reads it.

    Arguments
    ---------
    file : str
        Name of the recording's file, as in SLURP's lines, or an ID.
    meaning : Semantics or None
        None, an invalid output, becomes empty labels: the scorer passes over lines that are
        missing.

    Returns
    -------
    dict
    """
    labels = dict.fromkeys(INTENT, "") if meaning is None else meaning.labels
    entities = () if meaning is None else meaning.entities
    return {
        "file": file,
        **labels,
        "entities": [{"type": kind, "filler": filler} for kind, filler in entities],
    }


def write_predictions(path, predictions):
    """Writes predictions.jsonl for SLURP's scorer, whole or not at all.

    Arguments
    ---------
    path : str or Path
    predictions : iterable of tuple
        (file, meaning), as for `prediction_line`.
    """
    lines = (json.dumps(prediction_line(*one), ensure_ascii=False) for one in predictions)
    write_atomically(path, "".join(line + "\n" for line in lines))


def read_predictions(path):
    """Reads what `write_predictions` wrote.

    Arguments
    ---------
    path : str or Path

    Returns
    -------
    dict
        From file to `Semantics`, or None for an output that was invalid.
    """
    meanings = {}
    text = Path(path).read_text(encoding="utf-8")
    for line in map(json.loads, filter(None, text.split("\n"))):
        file = line.pop("file")
        try:
            meanings[file] = parse(json.dumps(line))
        except ValueError:  # its labels are empty
            meanings[file] = None
    return meanings
