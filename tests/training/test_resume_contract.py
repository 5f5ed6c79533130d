"""What SpeechBrain's Brain, sampler and loader do when a killed training is started again.

Our training code relies on it: an upgrade of SpeechBrain that changes it fails here first.
"""

import os

import pytest
import torch
from speechbrain import Brain, Stage
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_summarymixing.training.checkpoints import CrashSafeCheckpointer


class Killed(Exception):
    """Stands in for a kill: nothing catches it."""


class ToyBrain(Brain):
    """Notes what it trains on, and is killed where it is told to be."""

    def __init__(self, *args, kill_at, **kwargs):
        super().__init__(*args, **kwargs)
        self.kill_at = kill_at
        self.batches = {}
        self.epochs = {}

    def maybe_die(self, *place):
        if place == self.kill_at:
            raise Killed(place)

    def on_stage_start(self, stage, epoch=None):
        self.epoch = epoch

    def on_fit_batch_start(self, batch, should_step):
        # Random states are not saved: dropout repeats only if each batch has its own seed.
        torch.manual_seed(1000 * self.epoch + self.step)

    def compute_forward(self, batch, stage):
        self.maybe_die(stage.name, self.epoch, self.step)
        return self.modules.net(batch.x.data.mean(dim=1, keepdim=True))

    def compute_objectives(self, predictions, batch, stage):
        return (predictions - 1.0).square().mean()

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        self.batches[self.epoch, self.step] = (batch.id, self.optimizer_step, loss.item())

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        # Gradients are not saved: wait until none are pending.
        nothing_pending = self.step % self.grad_accumulation_factor == 0
        return nothing_pending and super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        if stage == Stage.TRAIN:
            self.maybe_die("train end", epoch)
            self.epochs[epoch] = (stage_loss, self.step)
        else:
            self.maybe_die("before checkpoint", epoch)
            self.checkpointer.save_and_keep_only(meta={"loss": stage_loss}, min_keys=["loss"])
            self.maybe_die("after checkpoint", epoch)


def toy_dataset():
    rows = {f"utterance-{i:02d}": {"duration": 1.0 + (i * 7 % 5) / 2} for i in range(19)}
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(
        lambda duration: torch.full((int(duration * 2),), duration), "duration", "x"
    )
    dataset.set_output_keys(["id", "x"])
    return dataset


def train(folder, *, kill_at=None, interval=2, accumulation=1, workers=0, epochs=3):
    """Trains until the end or the kill; a new call is a new process, as far as it matters."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
    )
    counter = EpochCounter(epochs)
    dataset = toy_dataset()
    sampler = DynamicBatchSampler(
        dataset, 12.0, num_buckets=2, shuffle=True, batch_ordering="random", seed=5
    )
    brain = ToyBrain(
        modules={"net": net},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        run_opts={
            "device": "cpu",
            "ckpt_interval_steps": interval,
            "grad_accumulation_factor": accumulation,
            "noprogressbar": True,
        },
        checkpointer=CrashSafeCheckpointer(folder, {"net": net, "counter": counter}),
        kill_at=kill_at,
    )
    brain.train_sampler = sampler
    try:
        brain.fit(
            counter,
            dataset,
            dataset,
            train_loader_kwargs={
                "batch_sampler": sampler,
                "collate_fn": PaddedBatch,
                "num_workers": workers,
            },
            valid_loader_kwargs={"batch_size": 6},
        )
        assert kill_at is None, "the place of the kill was never reached"
    except Killed:
        # Its workers end here, as with a process: the garbage collector waits 5 s for each.
        brain.checkpointer.recoverables["dataloader-TRAIN"]._speechbrain_iterator = None
    return brain


def assert_same_training(parts, whole):
    """The parts, put together, are the whole; what was done twice was done alike."""
    batches, epochs = {}, {}
    for part in parts:
        for merged, new in ((batches, part.batches), (epochs, part.epochs)):
            for key in merged.keys() & new.keys():
                assert merged[key] == new[key], key
            merged.update(new)
    assert batches == whole.batches
    assert epochs == whole.epochs
    for one, other in zip(parts[-1].modules.parameters(), whole.modules.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_epoch_has_every_utterance_in_its_own_order(whole):
    orders = []
    for epoch in (1, 2, 3):
        batches = [ids for (e, _), (ids, _, _) in sorted(whole[1].batches.items()) if e == epoch]
        assert sorted(sum(batches, [])) == sorted(toy_dataset().data_ids)
        assert len(batches) == 10, "even: the last checkpoint within an epoch is at its last step"
        orders.append(batches)
    assert orders[0] != orders[1] != orders[2]


PLACES = [
    ("TRAIN", 1, 1),
    ("TRAIN", 1, 4),
    ("TRAIN", 2, 1),
    ("TRAIN", 2, 3),
    ("TRAIN", 2, 6),
    ("TRAIN", 3, 8),
    ("train end", 2),
    ("VALID", 2, 1),
    ("VALID", 2, 3),
    ("before checkpoint", 2),
    ("after checkpoint", 1),
    ("after checkpoint", 3),
]


@pytest.fixture(scope="module", autouse=True)
def quick_disk():
    """Nobody pulls the plug here: a save need not wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns uninterrupted trainings, by their gradient accumulation."""
    return {n: train(tmp_path_factory.mktemp("whole"), accumulation=n) for n in (1, 2)}


@pytest.mark.parametrize("kill_at", PLACES, ids=str)
@pytest.mark.parametrize("interval, accumulation", [(2, 1), (2, 2), (3, 2)])
def test_a_killed_training_goes_on_where_it_was(tmp_path, whole, kill_at, interval, accumulation):
    options = {"interval": interval, "accumulation": accumulation}
    killed = train(tmp_path, kill_at=kill_at, **options)
    resumed = train(tmp_path, **options)
    assert_same_training([killed, resumed], whole[accumulation])
    again = killed.batches.keys() & resumed.batches.keys()
    assert len(again) <= interval + accumulation


def test_a_finished_training_started_again_does_nothing(tmp_path, whole):
    first = train(tmp_path)
    again = train(tmp_path)
    assert_same_training([first, again], whole[1])
    assert again.batches == {}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_workers_read_ahead_but_nothing_is_lost(tmp_path, whole, accumulation):
    places = [("TRAIN", 1, 4), ("TRAIN", 1, 7), ("train end", 1), ("TRAIN", 3, 6), None]
    parts = [
        train(tmp_path, kill_at=place, workers=2, accumulation=accumulation) for place in places
    ]
    assert_same_training(parts, whole[accumulation])


def test_the_number_of_workers_may_change(tmp_path, whole):
    parts = [train(tmp_path, kill_at=("TRAIN", 2, 6), workers=2), train(tmp_path, workers=0)]
    assert_same_training(parts, whole[1])


def test_more_epochs_go_on_from_the_last(tmp_path, whole):
    assert_same_training([train(tmp_path, epochs=2), train(tmp_path)], whole[1])


def test_an_epochs_checkpoint_replaces_those_within_it(whole):
    checkpoints = whole[1].checkpointer.list_checkpoints()
    assert all(checkpoint.meta["end-of-epoch"] for checkpoint in checkpoints)
    assert all(INTRA_EPOCH_CKPT_FLAG not in checkpoint.meta for checkpoint in checkpoints)
