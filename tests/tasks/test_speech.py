"""What the tasks on speech share."""

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedData
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing import systems
from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.tasks.train import TASKS
from speechbrain_summarymixing.training.config import load_hyperparams

SYSTEMS = ("sumformer", "branchformer_attention", "sumformer_transducer", "sumformer_bestrq")
SYSTEMS += ("Google-speech-commands/sumformer", "SLURP/direct/sumformer")
OF_LOADING = {"wav_augment", "speed_perturb", "shift", "noise"}  # what workers of the CPU do


@pytest.mark.parametrize("name", SYSTEMS)
def test_all_that_a_batch_meets_is_on_the_device_of_training(name, tmp_path):
    hparams = load_hyperparams(systems.find(name), {"output_folder": str(tmp_path)})
    assert hparams["compute_features"].window.device.type == "cpu"
    task, options = TASKS[hparams["task"]], {"device": "meta"}
    brain = task(modules=hparams["modules"], hparams=hparams, run_opts=options)
    assert brain.hparams.compute_features.window.device.type == "meta"
    elsewhere = [
        f"{key}: {tensor}"
        for key, module in hparams.items()
        if isinstance(module, torch.nn.Module) and key not in OF_LOADING
        for named in (module.named_parameters(), module.named_buffers())
        for tensor, value in named
        if value.device.type != "meta"
    ]
    assert not elsewhere


class Batch:
    """Of two waveforms, on the device where it is made."""

    def __init__(self):
        self.id, lengths = ["a", "b"], torch.tensor([1.0, 0.5])
        self.sig = torch.rand(2, 16000), lengths
        self.tokens_bos = PaddedData(torch.ones(2, 5, dtype=torch.long), lengths)

    def to(self, device):
        return self


@pytest.mark.parametrize("name", ["sumformer", "Google-speech-commands/sumformer"])
def test_the_forward_of_training_stays_on_its_device_without_waiting(name, tmp_path, monkeypatch):
    """But for what SpeechBrain draws on the host: statistics of features, and masks of them."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        hparams = load_hyperparams(systems.find(name), {"output_folder": str(tmp_path)})
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # it is there
        brain = TASKS[hparams["task"]](modules=hparams["modules"], hparams=hparams)
        brain.device, brain.hparams.feature_augment = "cuda", None
        normalize = hparams["normalize"]
        normalize.update_until_epoch = 0
        normalize.glob_mean, normalize.glob_std = torch.zeros(80), torch.ones(80)
        brain.modules.train()
        found = brain.compute_forward(Batch(), sb.Stage.TRAIN)
        found = [one for one in (found if isinstance(found, tuple) else [found]) if one is not None]
    assert found and all(one.device.type == "cuda" for one in found)


def test_utterances_as_long_are_in_the_order_of_their_ids(tmp_path):
    """Whatever their order in the manifest: so a run goes on by a manifest that was sorted anew."""
    hparams = load_hyperparams(systems.find("sumformer"), {"output_folder": str(tmp_path)})
    brain = TASKS[hparams["task"]](modules=hparams["modules"], hparams=hparams)
    brain.targets_of = lambda: None
    rows = [Utterance(key, seconds, "", "", "") for key, seconds in zip("dcba", (1, 1, 2, 1))]
    for given in (rows, rows[::-1]):
        dataset = brain._dataset({"train": given})
        assert [u.ID for u in dataset.utterances] == ["a", "c", "d", "b"]
