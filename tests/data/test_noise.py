"""Noise and rooms, which the seed, the epoch and the utterance decide as all augmentation."""

from functools import partial

import numpy
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.data.augment import (
    BackgroundNoise,
    DrawnByUtterance,
    Reverberation,
)
from speechbrain_summarymixing.data.loading import Utterances, worker_options
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import experiment

SPEECH = torch.sin(torch.arange(16000.0) * 0.1).unsqueeze(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of noises, of two rates, and one of impulse responses."""
    folder, random = tmp_path_factory.mktemp("recordings"), numpy.random.default_rng(0)
    (folder / "noise/deep").mkdir(parents=True)
    (folder / "rooms").mkdir()
    for name, rate, seconds in (("a.wav", 16000, 3.0), ("deep/b.flac", 8000, 0.2)):
        samples = random.normal(0, 0.1, round(rate * seconds))
        soundfile.write(folder / "noise" / name, samples, rate)
    (folder / "noise/LICENSE").touch()
    for delay in (40, 400):
        response = numpy.zeros(1000)
        response[[delay, delay + 500]] = 0.5, 0.25
        soundfile.write(folder / f"rooms/{delay}.wav", response, 16000)
    return folder


def noise(folder, probability=1.0):
    return BackgroundNoise(folder, probability=probability, snr_low=10.0, snr_high=10.0)


@pytest.mark.parametrize("folder", ["noise", "coloured"])
def test_noise_of_either_kind_has_the_power_that_was_asked_for(folders, folder):
    augment = noise(folders / folder if folder == "noise" else folder)
    different = set()
    for seed in range(4):
        torch.manual_seed(seed)
        noisy = augment(SPEECH)
        different.add(float(noisy.sum()))
        gain = float((noisy * SPEECH).sum() / SPEECH.square().sum())
        ratio = (gain * SPEECH).square().mean() / (noisy - gain * SPEECH).square().mean()
        assert float(10 * ratio.log10()) == pytest.approx(10, abs=0.5)
    assert len(different) > 1


def test_a_room_leaves_speech_where_it_was_and_its_end_is_not_heard_at_the_begin(folders):
    torch.manual_seed(0)
    clicks = torch.zeros(1, 3000)
    clicks[:, [1000, 2900]] = 1.0
    heard = Reverberation(folders / "rooms", probability=1.0)(clicks)
    places = (heard[0].abs() > 0.1 * heard.abs().max()).nonzero().squeeze(1).tolist()
    assert places == [1000, 1500, 2900]  # the echo of the second is after the end
    assert float(heard[0, 1500] / heard[0, 1000]) == pytest.approx(0.5, abs=1e-3)


def test_the_utterance_decides_whatever_was_read_before_and_by_whom(folders, noises):
    added = torch.nn.Sequential(
        Reverberation(folders / "rooms", probability=0.5), noise(folders / "noise", 0.7)
    )
    rows = read_manifest(noises / "train.csv")
    reading = {"sample_rate": 16000, "whole_samples": 640}
    make = partial(Utterances, targets_of=lambda wrd: (), target_names=(), **reading)
    data = make(rows, augment=DrawnByUtterance(added, 1))
    plain = {item["id"]: item["sig"] for item in make(rows)}
    alone = {rows[i].ID: data[i]["sig"] for i in reversed(range(24))}
    by_workers = DataLoader(data, batch_size=1, **worker_options(2))
    for batch in by_workers:
        # a Fourier transform rounds by its number of threads, which is 1 in a worker
        torch.testing.assert_close(batch.sig.data[0], alone[batch.id[0]], rtol=0, atol=1e-6)
    same = [key for key in plain if plain[key].equal(alone[key])]
    assert 0 < len(same) < 24  # some are neither in a room nor in noise
    augment = DrawnByUtterance(added, 1)
    augment.epoch.fill_(1)
    assert any(not make(rows, augment=augment)[i]["sig"].equal(data[i]["sig"]) for i in range(24))


@pytest.mark.slow
def test_a_run_hears_them_and_is_told_from_one_of_other_recordings(folders, command, tmp_path):
    options = {"noise_folder": folders / "noise", "rir_folder": folders / "rooms"}
    options.update(number_of_epochs=1, test_beam_size=1)
    experiment.run(command(tmp_path / "out", **options), ASR)
    moved = folders.rename(folders.with_name("moved"))
    options = {**options, "noise_folder": moved / "noise", "rir_folder": moved / "rooms"}
    experiment.run([*command(tmp_path / "out", **options), "--test_only"], ASR)
    (moved / "noise/c.wav").write_bytes((moved / "noise/a.wav").read_bytes())
    with pytest.raises(SystemExit, match="other settings:\n  noise_folder"):
        experiment.run(command(tmp_path / "out", **options), ASR)
    (moved / "empty").mkdir()
    with pytest.raises(SystemExit, match="--rir_folder is .*, where no audio file is"):
        experiment.run(command(tmp_path / "new", rir_folder=moved / "empty"), ASR)


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(UserError, match="--noise_probability is 2, but must be 0 to 1"):
        noise(None, probability=2)
    with pytest.raises(UserError, match="--rir_probability is -0.1"):
        Reverberation(None, probability=-0.1)
    with pytest.raises(UserError, match="--noise_snr_low is 9, which is above --noise_snr_high 5"):
        BackgroundNoise("coloured", probability=0.5, snr_low=9, snr_high=5)
