"""Every system file, here and in the recipes, trains, decodes, exports and loads."""

import csv
import json
from pathlib import Path

import pytest
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.training import experiment

ROOT = Path(__file__).parents[2]
SYSTEMS = sorted([*ROOT.glob("hparams/*.yaml"), *ROOT.glob("recipes/**/hparams/*.yaml")])


@pytest.mark.parametrize("yaml", SYSTEMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_system(yaml, command, noises, tmp_path):
    experiment.run(command(tmp_path, yaml=yaml, number_of_epochs=1, batch_seconds=20))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["optimizer_steps"] >= 2
    model = load_model(tmp_path / "pretrained", "cpu")
    with open(noises / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    said = [t.text.split() for t in transcribe(model, [row["wav"] for row in rows])]
    stats = ErrorRateStats()
    stats.append([row["ID"] for row in rows], said, [row["wrd"].split() for row in rows])
    assert stats.summarize("WER") == pytest.approx(results["test"]["test"]["WER"])
