"""What a run may add to its training: averaged weights, validations within epochs, an early end."""

import csv
import os
import re
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounterWithBackend

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
    kept = [path.name for path in (whole / "save").iterdir()]
    assert len(kept) >= ALL["averaged_checkpoints"] and any("-step-" in name for name in kept)
    assert not any(name.endswith(f"-step-{last:07d}") for name in kept)  # that is epoch-0002


@pytest.mark.slow
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


def test_steps_are_logged_with_their_gradients_and_a_run_that_goes_on_has_each_once(
    command, tmp_path, monkeypatch
):
    norms, logged, clip = [], [], torch.nn.utils.clip_grad_norm_

    def noted(parameters, limit):
        norms.append(float(clip(parameters, limit)))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    fake = SimpleNamespace(log=lambda values, step: logged.append((step, values)))
    begun = []
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=lambda **o: begun.append(o) or fake)
    )
    fit_batch, stop_at = ASR.fit_batch, 6

    def interrupted(self, batch):
        if self.optimizer_step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit_batch(self, batch)

    monkeypatch.setattr(ASR, "fit_batch", interrupted)
    options = {"log_every_steps": 2, "grad_accumulation_factor": 2, "wandb": "speech"}
    options |= {"tensorboard": "True", "test_beam_size": 1, "number_of_epochs": 4}
    with pytest.raises(SystemExit):
        experiment.run(command(tmp_path / "out", **options), ASR)
    with open(tmp_path / "out/steps.csv", "a") as file:
        file.write("8,2,1.0,1.0,1.0,1.0\n9")  # of a step that is done again
    stop_at = None
    experiment.run(command(tmp_path / "out", **options), ASR)

    with open(tmp_path / "out/steps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == list(range(2, len(norms) + 1, 2)) and len(steps) > 4
    assert [float(row["gradient_norm"]) for row in rows] == pytest.approx(norms[1::2], rel=1e-5)
    # warm-up's learning rates: that of the step itself, not of the next
    rates = [float(row["lr"]) for row in rows]
    assert rates == pytest.approx([0.002 * (step - 1) / 300 for step in steps])
    assert all(float(row["audio_per_second"]) > 0 for row in rows)
    assert [step for step, values in logged if "step/loss" in values] == steps
    ends = [(step, values) for step, values in logged if "valid" in values]
    history = curves.read(tmp_path / "out")
    assert [step for step, _ in ends] == [int(row["steps"]) for row in history]
    assert [options["id"] for options in begun] == 2 * [begun[0]["id"]]
    assert begun[0]["project"] == "speech" and begun[0]["config"]["lr"] == 0.002
    assert list((tmp_path / "out/tensorboard").glob("**/events*"))


def test_a_batch_that_may_pass_changes_no_weight_and_the_first_step_warms_up(
    command, tmp_path, monkeypatch
):
    compute, batches = ASR.compute_objectives, []

    def third_is_nan(self, predictions, batch, stage):
        loss = compute(self, predictions, batch, stage)
        batches.append(stage)
        return loss * float("nan") if len(batches) == 3 else loss

    monkeypatch.setattr(ASR, "compute_objectives", third_is_nan)
    options = {"nonfinite_patience": 2, "number_of_epochs": 1, "log_every_steps": 1}
    options |= {"averaged_checkpoints": 1, "test_beam_size": 1}
    out = tmp_path / "out"
    experiment.run(command(out, **options, max_grad_norm=0.1, optimizer_step_limit=4), ASR)
    log = (out / "log.txt").read_text()
    assert re.search(r"Epoch 1 ends [1-9]\d* steps early .--optimizer_step_limit", log)
    assert all(weight.isfinite().all() for weight in weights(out).values())
    with open(out / "steps.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["lr"]) == pytest.approx(0.002 / 300)
    with pytest.raises(SystemExit, match="max_grad_norm"):  # 5.0, that of the file
        experiment.run(command(out, **options), ASR)
    with pytest.raises(SystemExit, match="no step would be taken: lower it or --batch_seconds"):
        experiment.run(command(tmp_path / "other", grad_accumulation_factor=500), ASR)


@pytest.mark.parametrize(
    "module, message",
    [
        (None, r'pip install "speechbrain-summarymixing\[wandb\]"'),
        (SimpleNamespace(init=lambda **_: 1 / 0), "division by zero.*WANDB_MODE=offline"),
    ],
)
def test_weights_and_biases_that_does_not_begin_is_told(
    command, tmp_path, monkeypatch, module, message
):
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(SystemExit, match=message):
        experiment.run(command(tmp_path / "out", wandb="speech"), ASR)


@pytest.mark.slow
def test_a_compiled_encoder_has_the_same_losses_in_one_graph_a_stage(
    command, tmp_path, monkeypatch
):
    torch._dynamo.reset()
    graphs, compiled = CompileCounterWithBackend("aot_eager"), torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda m, **o: compiled(m, **{**o, "mode": None}, backend=graphs),
    )
    options = {"dropout": 0, "number_of_epochs": 2, "test_beam_size": 1}
    for name in ("plain", "compiled"):
        chosen = {"compile": True} if name == "compiled" else {}
        experiment.run(command(tmp_path / name, **options, **chosen), ASR)
    plain, other = (curves.read(tmp_path / name) for name in ("plain", "compiled"))
    for row, own in zip(plain, other, strict=True):
        for loss in ("train_loss", "valid_loss"):
            assert float(own[loss]) == pytest.approx(float(row[loss]), rel=1e-4)
    assert 1 <= graphs.frame_count <= 4  # of training and evaluation, whatever the length
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()


def test_an_encoder_that_cannot_be_compiled_is_told(command, tmp_path, monkeypatch):
    def broken(module, **_):
        def forward(*_, **__):
            raise TorchDynamoException("no compiler")

        monkeypatch.setattr(module, "forward", forward)

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    with pytest.raises(SystemExit, match="--compile: torch cannot compile .*no compiler.*leave it"):
        experiment.run(command(tmp_path / "out", compile=True), ASR)
