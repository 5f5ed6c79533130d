"""What a run may add to its training: averaged weights, validations within epochs, an early end."""

import os
import signal

import pytest
import torch

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import curves, experiment

ALL = {
    "ema": 0.9,
    "valid_every_steps": 3,
    "early_stop_patience": 50,
    "averaged_checkpoints": 3,
    "valid_batch_size": 5,
    "test_beam_size": 1,
}


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """Curves are drawn at each validation, which takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw", lambda rows, path: None)
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The output folder of a run with all of them."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    experiment.run(command(folder, **ALL), ASR)
    return folder


def weights(folder, name="model"):
    """Of the export; of the newest checkpoint, those called ``name``."""
    if name == "model":
        return torch.load(folder / "pretrained/model.ckpt", weights_only=True)
    (file,) = (folder / "save/CKPT+epoch-0002").glob(f"{name}.ckpt")
    return torch.load(file, weights_only=True)


def same(one, other):
    return all(value.equal(other[key]) for key, value in one.items())


def test_a_run_that_was_stopped_within_an_epoch_equals_the_whole_one(
    command, whole, tmp_path, monkeypatch
):
    fit_batch, stops = ASR.fit_batch, [2, 4]  # after a validation, and before one

    def interrupted(self, batch):
        if stops and self.optimizer_step == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return fit_batch(self, batch)

    monkeypatch.setattr(ASR, "fit_batch", interrupted)
    for _ in range(2):
        with pytest.raises(SystemExit):
            experiment.run(command(tmp_path / "out", **ALL), ASR)
    experiment.run(command(tmp_path / "out", **ALL), ASR)
    assert same(weights(whole), weights(tmp_path / "out"))
    assert same(weights(whole, "ema"), weights(tmp_path / "out", "ema"))
    rows, others = curves.read(whole), curves.read(tmp_path / "out")
    for row in rows + others:
        del row["train_seconds"]
    assert rows == others


def test_validation_within_epochs_changes_no_weight_and_ema_alone_what_is_validated(
    command, whole, tmp_path
):
    options = {**ALL, "ema": 0, "valid_every_steps": 0, "early_stop_patience": 0}
    experiment.run(command(tmp_path / "out", **options), ASR)
    file = "save/CKPT+epoch-0002/model.ckpt"
    ends = [torch.load(folder / file, weights_only=True) for folder in (whole, tmp_path / "out")]
    assert same(*ends)
    assert not same(weights(whole, "ema"), ends[0])
    plain, both = curves.read(tmp_path / "out"), curves.read(whole)
    at = {row["steps"]: row for row in both}
    last = int(plain[-1]["steps"])
    assert {*range(3, last + 1, 3), *(int(row["steps"]) for row in plain)} == set(map(int, at))
    for row in plain:
        assert row["train_loss"] == at[row["steps"]]["train_loss"]
        assert row["valid_loss"] != at[row["steps"]]["valid_loss"]
    steps = {path.name for path in (whole / "save").iterdir()}
    assert any("-step-" in name for name in steps)


def test_training_ends_when_patience_does_and_the_same_command_trains_no_more(
    command, tmp_path, monkeypatch
):
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    shared = ASR._share
    monkeypatch.setattr(ASR, "_share", lambda self, loss: next(losses, shared(self, loss)))
    options = {"number_of_epochs": 6, "early_stop_patience": 2, "max_batch_size": 12}
    options.update(batch_seconds=100, num_buckets=1, test_beam_size=1)
    for _ in range(2):
        experiment.run(command(tmp_path / "out", **options), ASR)
        rows = curves.read(tmp_path / "out")
        assert [row["valid_loss"] for row in rows] == ["3.0", "2.0", "2.5", "2.0"]
    options["early_stop_patience"] = 3  # the next is better
    losses = iter([1.0, *[2.0] * 9])
    experiment.run(command(tmp_path / "out", **options), ASR)
    assert [row["epoch"] for row in curves.read(tmp_path / "out")] == list("123456")
