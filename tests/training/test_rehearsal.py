"""What a run tells before it begins, and a dry run of it."""

import re

import pytest
from tiny import ROOT

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import curves, experiment, rehearsal


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(caplog, what):
    """The value of a line that tells a run."""
    (found,) = {
        match[1] for match in map(re.compile(rf"{what}  +(.*)").fullmatch, caplog.messages) if match
    }
    return found


@pytest.fixture
def heard(caplog, monkeypatch):
    """The log's messages, which SpeechBrain's configuration would keep from pytest."""
    monkeypatch.setattr("speechbrain.utils.logger.setup_logging", lambda *_: None)
    caplog.set_level("INFO")
    return caplog


def test_a_run_is_told_before_it_begins_and_a_check_writes_nothing(command, tmp_path, heard):
    options = {"number_of_epochs": 1, "grad_accumulation_factor": 2}
    folder = tmp_path / "results" / "out"
    experiment.run(command(folder, check="True", **options), ASR)
    assert list(tmp_path.iterdir()) == []
    assert told(heard, "system").startswith(f"{ROOT / 'hparams/sumformer.yaml'}, mixer Selective")
    assert re.fullmatch("24 utterances, 0.01 h", told(heard, "trains on"))
    assert told(heard, "validates on").startswith("5 utterances")
    assert re.fullmatch(r"1 epochs of \d+", told(heard, "steps"))
    assert told(heard, "batch") == "batch_seconds 4, 2 a step"
    assert told(heard, "learning rate").startswith("0.002 at most, schedule cooldown, 300 steps")
    assert told(heard, "device").startswith("cpu, fp32, ")
    assert told(heard, "results") == str(folder)
    assert told(heard, "begins") == "anew"
    assert 0.1 < float(told(heard, "peak memory").split()[0]) < 100
    assert "for 1 epochs" in told(heard, "time")

    experiment.run(command(folder, **options), ASR)
    heard.clear()
    before = contents(tmp_path)
    experiment.run(command(folder, check="True", **{**options, "number_of_epochs": 3}), ASR)
    assert contents(tmp_path) == before
    steps = curves.read(folder)[-1]["steps"]
    assert told(heard, "begins") == f"after step {steps}, at the end of epoch 1"
    assert "for 2 epochs" in told(heard, "time")
    with pytest.raises(SystemExit, match="/out: holds a run with other settings:\n *lr: "):
        experiment.run(command(folder, check="True", lr=0.1, **options), ASR)
    assert contents(tmp_path) == before


def test_folders_around_a_rehearsal_stay_if_something_else_is_in_them(tmp_path):
    folder = tmp_path / "results" / "sumformer" / "out-check"
    with rehearsal.removed(folder):
        folder.mkdir(parents=True)
        (folder / "log.txt").touch()
        (tmp_path / "results" / "mine").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "results", tmp_path / "results" / "mine"]


def test_a_process_without_a_batch_to_validate_checks_all_the_same(command, tmp_path, monkeypatch):
    place = {"rank": 1, "processes": 2}
    monkeypatch.setattr(ASR, "place", lambda self: place)
    experiment.run(command(tmp_path / "out", check="True"), ASR)


def test_a_check_steps_the_longest_utterance(command, noises, tmp_path, monkeypatch):
    seen, fit_batch = [], ASR.fit_batch

    def noted(self, batch):
        seen.append(max(map(float, batch.duration)))
        return fit_batch(self, batch)

    monkeypatch.setattr(ASR, "fit_batch", noted)
    experiment.run(command(tmp_path / "out", check="True"), ASR)
    rows = (noises / "train.csv").read_text().splitlines()[1:]
    assert max(seen) == max(float(row.split(",")[1]) for row in rows)
