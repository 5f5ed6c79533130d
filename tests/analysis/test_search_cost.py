import csv
from pathlib import Path

import pytest

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis.search_cost import COLUMNS

MODEL = Path(__file__).parents[2] / "examples" / "sumformer-mini"
CLIP = MODEL / "bus.flac"


def test_the_table_has_both_searches_and_they_find_the_same(capsys):
    arguments = ["--seconds", "1.2", "0.6", "--repetitions", "1"]
    assert cli.main(["benchmark", "search", str(MODEL), str(CLIP), *arguments]) == 0
    header, *table = capsys.readouterr().out.splitlines()
    assert "load" in header and "beam 10" in header
    rows = list(csv.DictReader(table))
    assert tuple(rows[0]) == COLUMNS and [row["seconds"] for row in rows] == ["0.6", "1.2"]
    for row in rows:
        ours, theirs, ratio = (float(row[k]) for k in ("search_s", "speechbrain_s", "ratio"))
        assert ratio == pytest.approx(theirs / ours, rel=0.01)
        assert row["same_tokens"] == "True" and float(row["score_difference"]) < 1e-4
        assert int(row["tokens"]) > 0


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([MODEL, CLIP, "--seconds", "0"], ["--seconds has 0", "0.04 or more"]),
        ([MODEL, CLIP, "--repetitions", "0"], ["--repetitions has 0", "1 or more"]),
        ([MODEL, CLIP, "--device", "tpu"], ["tpu"]),
        ([MODEL, "no.flac"], ["no.flac"]),
    ],
)
def test_wrong_input_is_told(capsys, arguments, expected):
    assert cli.main(["benchmark", "search", *map(str, arguments)]) == 1
    error = capsys.readouterr().err
    assert all(text in error for text in expected), error
