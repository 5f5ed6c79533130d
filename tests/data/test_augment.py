"""Augmentation that the seed, the epoch and the utterance decide, and nothing else."""

import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import soundfile
import torch
from speechbrain import Stage
from speechbrain.augment.time_domain import SpeedPerturb
from torch.utils.data import DataLoader

from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.data.augment import (
    DrawnByUtterance,
    RandomShift,
    WhiteNoise,
    drawn_from,
)
from speechbrain_summarymixing.data.loading import Utterances, worker_options
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.speech import SpeechTask
from speechbrain_summarymixing.training import experiment

AUGMENT = torch.nn.Sequential(
    SpeedPerturb(16000, speeds=[90, 95, 100, 105, 110]), RandomShift(0.05), WhiteNoise(5.0, 40.0)
)


def numbers():
    return torch.rand(3).tolist() + [random.random()]


def test_the_parts_decide_and_the_generators_go_on_as_before():
    torch.manual_seed(1)
    random.seed(1)
    expected = numbers() + numbers()
    torch.manual_seed(1)
    random.seed(1)
    before, drawn = numbers(), []
    for parts in (("a", 1), ("a", 1), ("a", 2), ("a1",), ("b", 1)):
        with drawn_from(*parts):
            drawn.append(tuple(numbers()))
    assert before + numbers() == expected
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4


def test_an_error_inside_leaves_the_generators_as_before():
    torch.manual_seed(1)
    random.seed(1)
    expected = numbers()
    torch.manual_seed(1)
    random.seed(1)
    with pytest.raises(ValueError), drawn_from("a"):
        numbers()
        raise ValueError
    assert numbers() == expected


@pytest.fixture
def utterances(tmp_path):
    rows = []
    for index in range(6):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, 0.1 * torch.randn(8000).numpy(), 16000)
        rows.append(Utterance(f"u{index}", 0.5, str(path), "s", "YES"))
    return rows


@pytest.fixture
def one_thread():
    """As a loader's worker has: how a convolution rounds depends on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def heard(utterances, *, seed=1, epoch=1, workers=0, state=0):
    augment = DrawnByUtterance(AUGMENT, seed)
    dataset = Utterances(
        utterances,
        lambda wrd: (wrd,),
        ["label"],
        sample_rate=16000,
        whole_samples=640,
        augment=augment,
    )
    torch.manual_seed(state)
    loader = DataLoader(dataset, batch_size=2, **worker_options(workers))
    augment.epoch.fill_(epoch)
    batches = [batch.sig.data for batch in loader]
    return torch.cat([batch.flatten() for batch in batches])


@pytest.mark.parametrize(
    "other", [{"state": 7}, {"workers": 2}, {"workers": 2, "state": 3}], ids=str
)
@pytest.mark.usefixtures("one_thread")
def test_neither_the_generator_nor_workers_change_what_is_heard(utterances, other):
    assert torch.equal(heard(utterances), heard(utterances, **other))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 2}, {"workers": 2, "epoch": 2}], ids=str)
def test_seed_and_epoch_change_what_is_heard(utterances, other):
    first, second = heard(utterances), heard(utterances, **other)
    assert first.shape != second.shape or not torch.equal(first, second)


def test_the_order_does_not_change_an_utterance(utterances):
    together, alone = heard(utterances[:2]), heard(utterances[1:2])
    assert torch.equal(together.view(2, -1)[1, : len(alone)], alone)


def test_another_id_is_heard_otherwise(utterances):
    other = replace(utterances[0], ID="other")
    first, second = heard(utterances[:1]), heard([other])
    assert first.shape != second.shape or not torch.equal(first, second)


def features(ids=("a", "b"), *, seed=1, epoch=1, state=0):
    def augment(features, lengths):
        return features + torch.rand_like(features), lengths

    hparams = SimpleNamespace(
        seed=seed,
        compute_features=lambda wavs, lengths: wavs,
        epoch_counter=SimpleNamespace(current=epoch),
        feature_augment=augment,
    )
    normalize = SimpleNamespace(normalize=lambda features, lengths, epoch: features)
    task = SimpleNamespace(hparams=hparams, modules=normalize, device="cpu")
    batch = SimpleNamespace(id=list(ids), sig=(torch.zeros(2, 5, 3), torch.ones(2)))
    torch.manual_seed(state)
    before = torch.get_rng_state()
    augmented, _ = SpeechTask.features(task, batch, Stage.TRAIN)
    assert torch.equal(torch.get_rng_state(), before)
    return augmented


def test_the_features_of_a_batch_depend_on_seed_epoch_and_ids_alone():
    assert torch.equal(features(), features(state=7))
    for other in ({"seed": 2}, {"epoch": 2}, {"ids": ("a", "c")}):
        assert not torch.equal(features(), features(**other))


class Noted(ASR):
    """Notes the features that training hears."""

    heard = ()

    def features(self, batch, stage):
        features, lengths = super().features(batch, stage)
        if self.optimizer_step < 6 and stage.name == "TRAIN":
            Noted.heard += ((tuple(batch.id), features),)
        return features, lengths


def test_systems_of_any_size_hear_the_same(command, tmp_path):
    heard = []
    for index, options in enumerate(({}, {"num_encoder_layers": 2, "dropout": 0.3})):
        Noted.heard = ()
        run = partial(experiment.run, task=Noted)
        run(command(tmp_path / str(index), number_of_epochs=1, averaged_checkpoints=1, **options))
        heard.append(Noted.heard)
    assert len(heard[0]) >= 3
    for (ids, features), (other_ids, other_features) in zip(*heard):
        assert ids == other_ids and torch.equal(features, other_features)
