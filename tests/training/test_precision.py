"""Loss scaling: float16 needs a GPU in SpeechBrain, its arithmetic runs here all the same."""

import csv

import pytest
import torch

from speechbrain_summarymixing.tasks import recognition
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import experiment


@pytest.fixture
def in_float16(monkeypatch):
    """Gives each Brain on the CPU what SpeechBrain gives it for --precision fp16 on a GPU."""
    began = recognition.ASR.__init__
    brains = []

    def begin(self, *arguments, **options):
        began(self, *arguments, **options)
        self.training_ctx = torch.autocast("cpu", torch.float16)
        self.scaler = torch.GradScaler("cpu", init_scale=in_float16.scale)
        self.checkpointer.add_recoverable("scaler", self.scaler, optional_load=True)
        brains.append(self)

    def in_float16(scale):
        in_float16.scale = scale
        monkeypatch.setattr(recognition.ASR, "__init__", begin)
        return brains

    return in_float16


PLAIN = {"dropout": 0.0, "time_drops": 0, "frequency_drops": 0, "speeds": "[100]", "lr": 0.02}


def losses(folder):
    with open(folder / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row[name]) for row in rows for name in ("train_loss", "valid_loss")]


def test_float16_learns_what_float32_learns(in_float16, command, tmp_path):
    experiment.run(command(tmp_path / "single", **PLAIN), ASR)
    brains = in_float16(scale=2.0**10)
    experiment.run(command(tmp_path / "half", **PLAIN), ASR)
    assert brains[0].scaler.get_scale() == 2.0**10  # no step was left out
    single, half = losses(tmp_path / "single"), losses(tmp_path / "half")
    assert single != half and half == pytest.approx(single, rel=1e-3)


def test_an_overflow_leaves_out_its_step_and_the_scale_is_saved(in_float16, command, tmp_path):
    brains = in_float16(scale=2.0**24)
    experiment.run(command(tmp_path, **PLAIN), ASR)
    scale = brains[0].scaler.get_scale()
    assert 2.0**4 < scale < 2.0**24
    newest = max((tmp_path / "save").glob("CKPT*"))
    assert torch.load(newest / "scaler.ckpt")["scale"] == scale
    model = torch.load(newest / "model.ckpt")
    assert all(value.isfinite().all() for value in model.values())
    first, *_, last = losses(tmp_path)
    assert last < first
