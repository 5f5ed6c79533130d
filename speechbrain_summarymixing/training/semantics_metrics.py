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

from speechbrain.utils.edit_distance import count_ops, op_table

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.training.metrics import bootstrap_interval

KINDS = ("TP", "FP", "FN")
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
    names = list(rows[0])
    if others := [row for row in rows if row.keys() != rows[0].keys()]:
        kinds = [[name for name in row if name.endswith("_accuracy")] for row in (rows[0], *others)]
        raise UserError(
            f"some meanings want {', '.join(kinds[0])}, others {', '.join(kinds[1])}: a manifest's "
            "meanings must all have the same labels"
        )
    counts = [(*(row[name] for name in names), 1) for row in rows]
    place = {name: index for index, name in enumerate(names)}

    def share(name):
        return lambda sums: 100.0 * sums[place[name]] / sums[-1]

    def f_measure(*parts):
        def of(sums):
            right, extra, missed = (
                sum(sums[place[f"{part}_{kind}"]] for part in parts) for kind in KINDS
            )
            wanted = 2 * right + extra + missed
            return 200.0 * right / (wanted + (wanted == 0))  # 0 without entities, as in SLURP

        return of

    measures = {name: share(name) for name in names if name.endswith("_accuracy")}
    measures["SLU_F1"] = f_measure("word", "char")
    for part in ("word", "char", "entity"):
        measures[f"{part}_F1"] = f_measure(part)
    measures["exact"] = share("exact")
    sums = [sum(column) for column in zip(*counts)]
    summary = {}
    for name, measure in measures.items():
        summary[name] = float(measure(sums))
        summary[f"{name}_95"] = bootstrap_interval(counts, measure, **options)
    return {**summary, "invalid": sums[place["invalid"]], "utterances": len(rows)}


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
