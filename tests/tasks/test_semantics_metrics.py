import json

import hypothesis.strategies as st
import numpy
import pytest
from hypothesis import given

from speechbrain_summarymixing.corpora.semantics import Semantics
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks.semantics_metrics import (
    by_first_label,
    character_distance,
    prediction_line,
    read_predictions,
    score,
    summarize,
    word_distance,
    write_predictions,
)

SET = {"scenario": "alarm", "action": "set"}


def alarm(*entities, **labels):
    return Semantics({**SET, **labels}, entities)


def counts(reference, hypothesis, part):
    row = score(alarm(*reference), alarm(*hypothesis))
    return tuple(row[f"{part}_{kind}"] for kind in ("TP", "FP", "FN"))


TIME, DATE = ("time", "five am"), ("date", "this monday")


# (reference, hypothesis, words, characters, exact): true and false positives, false negatives
@pytest.mark.parametrize(
    "reference, hypothesis, word, char, entity",
    [
        ([], [], (0, 0, 0), (0, 0, 0), (0, 0, 0)),
        ([TIME], [TIME], (1, 0, 0), (1, 0, 0), (1, 0, 0)),
        ([TIME, DATE], [DATE, TIME], (2, 0, 0), (2, 0, 0), (2, 0, 0)),
        # missing, extra, wrong type
        ([TIME, DATE], [DATE], (1, 0, 1), (1, 0, 1), (1, 0, 1)),
        ([DATE], [TIME, DATE], (1, 1, 0), (1, 1, 0), (1, 1, 0)),
        ([TIME], [("date", "five am")], (0, 1, 1), (0, 1, 1), (0, 1, 1)),
        # one of two words, three of seven characters ("five pm" would be one)
        ([TIME], [("time", "nine pm")], (1, 1, 1), (1, 3 / 7, 3 / 7), (0, 1, 1)),
        ([TIME], [("time", "five pm")], (1, 0.5, 0.5), (1, 1 / 7, 1 / 7), (0, 1, 1)),
        # the distance of words is over the reference's: two insertions, one word
        ([("day", "may")], [("day", "may or not")], (1, 2, 2), (1, 0.7, 0.7), (0, 1, 1)),
        ([("day", "may or not")], [("day", "may")], (1, 2 / 3, 2 / 3), (1, 0.7, 0.7), (0, 1, 1)),
        # repeated types: each predicted entity takes the nearest that is left
        (
            [("person", "ann"), ("person", "bob")],
            [("person", "bob"), ("person", "ann")],
            (2, 0, 0), (2, 0, 0), (2, 0, 0),
        ),
        (
            [("person", "ann"), ("person", "bob")],
            [("person", "bob"), ("person", "bob")],
            (2, 1, 1), (2, 1, 1), (1, 1, 1),
        ),
        ([("person", "ann")], [("person", "ann")] * 2, (1, 1, 0), (1, 1, 0), (1, 1, 0)),
        # in turn: rib takes rob (its characters are nearer) or bob (the first of equals in words)
        (
            [("person", "bob"), ("person", "rob")],
            [("person", "rib"), ("person", "rob")],
            (2, 1, 1), (2, 2 / 3, 2 / 3), (1, 1, 1),
        ),
        # in turn: what comes first takes the filler that the next would have had exactly
        ([TIME], [("time", "am"), TIME], (1, 1.5, 0.5), (1, 1 + 5 / 7, 5 / 7), (1, 1, 0)),
    ],
)  # fmt: skip
def test_hand_worked_counts(reference, hypothesis, word, char, entity):
    assert counts(reference, hypothesis, "word") == pytest.approx(word)
    assert counts(reference, hypothesis, "char") == pytest.approx(char)
    assert counts(reference, hypothesis, "entity") == entity


def test_slu_f1_is_of_both_confusion_matrices_together():
    # words: TP 1, FP 0.5, FN 0.5 + 1 missed; characters: TP 1, FP 1/7, FN 1/7 + 1
    row = score(alarm(TIME, DATE), alarm(("time", "five pm")))
    summary = summarize([row], resamples=10)
    precision, recall = 2 / (2 + 0.5 + 1 / 7), 2 / (2 + 2 + 0.5 + 1 / 7)
    assert summary["SLU_F1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert summary["word_F1"] == pytest.approx(100 * 2 / (2 + 0.5 + 1.5))
    assert summary["char_F1"] == pytest.approx(100 * 2 / (2 + 1 / 7 + 8 / 7))
    assert summary["entity_F1"] == 0.0


def test_labels_exact_and_invalid():
    rows = [
        score(alarm(TIME), alarm(TIME)),
        score(alarm(TIME), alarm(TIME, action="query")),
        score(alarm(TIME), alarm(("time", "six am"))),
        score(alarm(TIME, DATE), alarm(DATE, TIME)),
        score(alarm(TIME, DATE), None),
    ]
    summary = summarize(rows, resamples=10)
    accuracies = ("scenario_accuracy", "action_accuracy", "intent_accuracy", "exact")
    assert [summary[name] for name in accuracies] == pytest.approx([80, 60, 60, 40])
    assert summary["invalid"] == 1 and summary["utterances"] == 5
    # TP 4; FP "six am"; FN "five am", and two of the invalid output
    assert summary["entity_F1"] == pytest.approx(100 * 8 / (8 + 1 + 3))
    assert rows[-1]["word_FN"] == rows[-1]["char_FN"] == 2


def test_the_first_label_is_measured_for_each_of_its_values():
    references = [alarm(), alarm(action="query"), alarm(scenario="email"), alarm()]
    said = [alarm(), alarm(scenario="email"), alarm(scenario="email"), None]
    rows = [score(*pair) for pair in zip(references, said)]
    measures = by_first_label(references, rows)
    assert measures == {
        "scenario_accuracy_by_class": {"alarm": pytest.approx(100 / 3), "email": 100.0},
        "scenario_majority": 75.0,
    }
    assert list(measures["scenario_accuracy_by_class"]) == ["alarm", "email"]


def test_labels_of_other_corpora():
    one = score(Semantics({"intent": "order"}), Semantics({"intent": "order"}))
    assert [name for name in one if name.endswith("_accuracy")] == ["intent_accuracy"]
    two = Semantics({"room": "hall", "device": "lamp"})
    row = score(two, Semantics({"room": "hall", "device": "fan"}))
    assert (row["room_accuracy"], row["device_accuracy"], row["labels_accuracy"]) == (1, 0, 0)
    # labels that the reference lacks cost the exact match alone
    more = score(two, Semantics({**two.labels, "mood": "bad"}))
    assert more["labels_accuracy"] == 1 and more["exact"] == 0
    with pytest.raises(UserError, match="some meanings want intent_accuracy, others room_acc"):
        summarize([one, row])


def test_without_any_entity_f1_is_0_as_in_slurps_scorer():
    summary = summarize([score(alarm(), alarm())], resamples=10)
    assert summary["SLU_F1"] == 0.0 and summary["SLU_F1_95"] == [0.0, 0.0]
    assert summary["exact"] == 100.0


def test_intervals_hold_the_measures():
    random = numpy.random.default_rng(0)
    rows = [
        score(alarm(TIME), alarm(("time", str(random.choice(["five am", "nine pm"])))))
        for _ in range(50)
    ]
    summary = summarize(rows, resamples=200)
    for name in ("SLU_F1", "word_F1", "char_F1", "entity_F1", "exact"):
        low, high = summary[f"{name}_95"]
        assert low < summary[name] < high
    assert summary["scenario_accuracy_95"] == [100.0, 100.0]


def test_distances():
    assert word_distance("new york city", "new york") == pytest.approx(1 / 3)
    assert word_distance("a", "b c") == 2.0
    assert character_distance("kitten", "sitting") == pytest.approx(3 / 7)


fillers = st.text("ab ", min_size=1, max_size=6).filter(str.strip)
entities = st.lists(st.tuples(st.sampled_from(["x", "y"]), fillers), max_size=4)


@given(entities, entities)
def test_counts_add_up_to_what_there_is(reference, hypothesis):
    row = score(alarm(*reference), alarm(*hypothesis))
    for part in ("word", "char", "entity"):
        right, extra, missed = (row[f"{part}_{kind}"] for kind in ("TP", "FP", "FN"))
        assert right <= min(len(reference), len(hypothesis))
        assert extra - missed == pytest.approx(len(hypothesis) - len(reference))
    assert row["char_TP"] + row["char_FN"] >= len(reference) - 1e-9
    assert row["char_TP"] >= row["entity_TP"]


@given(entities)
def test_a_perfect_hypothesis_scores_100(reference):
    row = score(alarm(*reference), alarm(*reversed(reference)))
    assert row["exact"] == 1 and row["entity_TP"] == row["char_TP"] == len(reference)
    assert row["char_FP"] == row["char_FN"] == row["entity_FP"] == row["word_FN"] == 0


def test_predictions_are_as_slurps_scorer_reads_them(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    write_predictions(path, [("audio-1.flac", alarm(TIME)), ("audio-2.flac", None)])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "file": "audio-1.flac",
            "scenario": "alarm",
            "action": "set",
            "entities": [{"type": "time", "filler": "five am"}],
        },
        {"file": "audio-2.flac", "scenario": "", "action": "", "entities": []},
    ]
    assert [p.name for p in path.parent.iterdir()] == ["predictions.jsonl"]
    assert read_predictions(path) == {"audio-1.flac": alarm(TIME), "audio-2.flac": None}
    line_separators = {"a": alarm(("place", "x\u2028y\x85z")), "b": alarm(TIME)}
    write_predictions(path, line_separators.items())
    assert read_predictions(path) == line_separators
    write_predictions(path, [])
    assert read_predictions(path) == {}
    barista = Semantics({"intent": "order"})
    assert prediction_line("a", barista) == {"file": "a", "intent": "order", "entities": []}
