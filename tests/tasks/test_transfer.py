"""A trained encoder that training begins with, and holds at first."""

import os
import signal

import pytest
import torch
from tiny import ROOT

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.transfer import ENCODER, WEIGHTLESS, load_encoder
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import load_hyperparams, value_of

SMALLEST = {
    "yaml": "hparams/contextnet.yaml",  # it has batch normalisation
    "front_end_channels": "[]",
    "test_beam_size": 1,
    "averaged_checkpoints": 1,
}


def weights(folder):
    return torch.load(folder / "pretrained/model.ckpt", weights_only=True)


def test_an_encoder_is_held_for_its_steps_and_a_run_that_was_stopped_equals_the_whole_one(
    command, tmp_path, monkeypatch
):
    experiment.run(command(tmp_path / "asr", number_of_epochs=1, **SMALLEST), ASR)
    trained = weights(tmp_path / "asr")
    encoder = [key for key in trained if key.startswith(ENCODER)]
    assert any("running_mean" in key for key in encoder)
    options = {**SMALLEST, "encoder_folder": tmp_path / "asr/pretrained", "ema": 0.5}
    fit_batch, stops, same = ASR.fit_batch, [], []

    def noted(self, batch):
        if stops and self.optimizer_step == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        loss = fit_batch(self, batch)
        own = self.hparams.model.state_dict()
        same.append([own[key].equal(trained[key]) for key in encoder])
        assert not own["3.w.weight"].equal(trained["3.w.weight"])  # the CTC head's
        return loss

    monkeypatch.setattr(ASR, "fit_batch", noted)

    def run(name):
        options["freeze_encoder_steps"] = 4
        experiment.run(command(tmp_path / name, remove_vector_weight_decay=True, **options), ASR)

    run("whole")
    assert all(map(all, same[:4])) and not any(map(all, same[4:])) and len(same) > 6
    assert sum(same[4]) < len(encoder) / 2
    stops += [2, 5]
    for _ in range(2):
        with pytest.raises(SystemExit):
            run("stopped")
    run("stopped")
    ends = [weights(tmp_path / name) for name in ("whole", "stopped")]
    assert all(value.equal(ends[1][key]) for key, value in ends[0].items())


def test_no_encoder_to_hold_is_told(command, tmp_path):
    with pytest.raises(SystemExit, match="--freeze_encoder_steps is 3, but no encoder is trained"):
        experiment.run(command(tmp_path / "out", freeze_encoder_steps=3), ASR)


@pytest.mark.parametrize(
    "option, other",
    [
        ("sample_rate", 8000),
        ("frequency_padding", "reflect"),
        ("encoder_module", "conformer"),
        ("positional_encoding", None),
    ],
)
def test_an_encoder_of_the_same_weights_and_other_settings_is_refused(option, other, tmp_path):
    options = {"vocab_size": 80, "output_folder": str(tmp_path)}
    system, model = ROOT / "hparams/sumformer.yaml", ROOT / "examples/sumformer-mini"
    load_encoder(load_hyperparams(system, options), model)
    hparams = load_hyperparams(system, {**options, option: other})
    with pytest.raises(UserError, match=f"other settings.*\n.*--{option} .*, but here {other}"):
        load_encoder(hparams, model)


def test_pretraining_of_the_papers_size_hears_as_its_recognisers_do():
    folders = "self-supervised-learning/BEST-RQ/hparams", "ASR/transformer/hparams"
    files = [ROOT / "recipes/LibriSpeech" / folder / "sumformer.yaml" for folder in folders]
    own, theirs = ({key: value_of(file, key) for key in WEIGHTLESS} for file in files)
    assert own == theirs
