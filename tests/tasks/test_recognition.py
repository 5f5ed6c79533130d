"""What counts as an error of recognition."""

from types import SimpleNamespace

import pytest

from speechbrain_summarymixing.data.tokens import train_tokenizer
from speechbrain_summarymixing.tasks.recognition import ASR


@pytest.fixture
def measured(tmp_path):
    """A function that measures what was heard of what was said, by a unit of errors."""

    def measure(unit, said, heard, tokens):
        brain = ASR.__new__(ASR)
        brain.hparams = SimpleNamespace(error_unit=unit)
        path = tmp_path / f"{tokens}.model"
        brain.targets = train_tokenizer(said, path, vocab_size=tokens, token_type="char")
        brain.measured = {}
        keys = [str(index) for index in range(len(said))]
        hypotheses = [brain.targets.encode(text) for text in heard]
        brain.measure(SimpleNamespace(id=keys, wrd=said), hypotheses)
        rows = [SimpleNamespace(ID=key, duration=1.5) for key in keys]
        return brain.metric, brain.scores(rows), brain.errors(rows), brain.validation_metric()

    return measure


def test_characters_are_counted_where_words_are_not_apart(measured):
    said, heard = ["而对楼市", "一二线城市"], ["而楼市", "一二线市城"]
    metric, scores, errors, value = measured("character", said, heard, 12)
    assert metric == "CER" and errors == [("0", 1, 4), ("1", 2, 5)]
    assert scores["CER"] == value == pytest.approx(100 * 3 / 9)
    assert scores["CER_by_seconds"]["0-2 s"] == {"utterances": 2, "CER": scores["CER"]}
    assert "WER" not in scores and scores["CER_95"][0] <= scores["CER"] <= scores["CER_95"][1]


def test_words_are_counted_otherwise(measured):
    metric, scores, errors, value = measured("word", ["AB BA", "A"], ["AB B", "A"], 6)
    assert metric == "WER" and errors == [("0", 1, 2), ("1", 0, 1)]
    assert scores["WER"] == value == pytest.approx(100 / 3) and "CER" not in scores
