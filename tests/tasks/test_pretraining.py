"""Pre-training without transcripts: masks, codes, loss, and the encoder that others begin with."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.inference.encoders import WaveformEncoder
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.quantisers import RandomProjectionQuantizer
from tiny import SMALL
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora.manifest import Utterance, read_manifest
from speechbrain_summarymixing.data.masking import MaskedBatches
from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import MaskedConvolutionFrontEnd
from speechbrain_summarymixing.lobes.quantizer import RandomCodes
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.tasks.pretraining import Pretraining
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.transfer import ENCODER
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import load_hyperparams

YAML = "hparams/sumformer_bestrq.yaml"
OPTIONS = {"codes": 32, "code_dim": 4, "number_of_epochs": 2}
SAMPLES, STRIDE = 640, 4


@pytest.fixture(scope="module")
def arguments(command):
    def arguments(folder, yaml=YAML, **options):
        return command(folder, yaml=yaml, **{**OPTIONS, **options})

    return arguments


@pytest.fixture(scope="module")
def untold(changed_csv, tmp_path_factory):
    """A training set without transcripts."""
    path = tmp_path_factory.mktemp("untold") / "train.csv"
    return changed_csv(path, lambda rows: [row.update(wrd="") for row in rows])


@pytest.fixture(scope="module")
def trained(arguments, untold, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    experiment.run(arguments(folder, train_csv=untold), Pretraining)
    return folder


@pytest.fixture(scope="module")
def brain(arguments, tmp_path_factory):
    """One in float64 that is not trained, in eval mode, and utterances to hear."""
    hparams, run_opts = experiment.start(arguments(tmp_path_factory.mktemp("brain") / "out"))
    train, valid, tests = Pretraining.sets(hparams)
    Pretraining.prepare(hparams, train, {**valid, **tests})
    brain = Pretraining(hparams["modules"], hparams["optimizer"], hparams, run_opts)
    brain.modules.double().eval()
    normalize = hparams["normalize"]
    normalize.update_until_epoch, normalize.count = 0, 1
    features = hparams["compute_features"](random_batch([2.0]).sig.data)
    normalize.glob_mean, normalize.glob_std = features.mean((0, 1)), features.std((0, 1))
    return brain


def random_batch(seconds, seed=0, **masks):
    """Noise of some lengths, whose masks are drawn as `hparams/parts/pretraining.yaml` has them."""
    options = {"probability": 0.15, "length": 4, "stride": STRIDE, "samples": SAMPLES, "seed": 1}
    random = torch.Generator().manual_seed(seed)
    frames = [max(1, round(s * 25)) for s in seconds]
    sigs = [torch.randn(n * SAMPLES, generator=random, dtype=torch.float64) for n in frames]
    rows = [{"id": str(i), "duration": s, "sig": sigs[i]} for i, s in enumerate(seconds)]
    return MaskedBatches(**{**options, **masks})(rows)


def masked_with(batch, mask):
    batch.mask.data.copy_(mask)
    return batch


@settings(max_examples=30)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.sampled_from([4, 8, 20]))
def test_masks_are_of_an_utterances_own_frames_and_do_not_depend_on_its_batch(frames, length):
    make = partial(random_batch, length=length)
    batch = make([n / 25 for n in frames])
    assert batch.mask.data.shape == (len(frames), max(frames))
    for n, mask, key in zip(frames, batch.mask.data, batch.id):
        assert not mask[n:].any()
        blocks = n * STRIDE // length
        # compute_mask rounds at random, but begins one mask at least
        begun = min(blocks, max(1, int(0.15 * n * STRIDE)))
        more = min(blocks, int(0.15 * n * STRIDE) + 1)
        assert int(mask.sum()) in {begun * length // STRIDE, more * length // STRIDE}
        alone = MaskedBatches(
            probability=0.15, length=length, stride=STRIDE, samples=SAMPLES, seed=1
        )
        assert alone.mask(key, torch.zeros(n * SAMPLES)).equal(mask[:n])


def test_masks_change_with_the_epoch():
    masks = MaskedBatches(probability=0.15, length=4, stride=STRIDE, samples=SAMPLES, seed=1)
    before = masks.mask("a", torch.zeros(50 * SAMPLES))
    masks.epoch.fill_(1)
    assert not masks.mask("a", torch.zeros(50 * SAMPLES)).equal(before)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(2, 70), st.integers(0, 99))
def test_codes_are_those_of_speechbrain(batch, frames, codes, seed):
    torch.manual_seed(seed)
    own = RandomCodes(20, 4, codes).double()
    theirs = RandomProjectionQuantizer(20, 4, codes).double()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(batch, frames, 20, dtype=torch.float64)
    assert own(x).equal(theirs(x))
    assert not list(own.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert own.float()(x.float()).equal(own(x.float()))


@pytest.mark.parametrize("stage", [sb.Stage.TRAIN, sb.Stage.VALID])
def test_what_a_masked_frame_was_gives_its_code_and_is_not_heard(brain, stage, monkeypatch):
    heard = []
    front_end = brain.modules.front_end.forward
    monkeypatch.setattr(
        brain.modules.front_end, "forward", lambda x, n: heard.append(x) or front_end(x, n)
    )
    frames, masked = 20, 9

    def found(scale):
        batch = random_batch([frames / 25, 0.4])
        # the middle of the frame, which no window of the others reaches
        batch.sig.data[0, masked * SAMPLES + 240 : masked * SAMPLES + 320] *= scale
        mask = torch.zeros(2, frames, dtype=torch.bool)
        mask[0, masked - 1 : masked + 2] = True
        mask[1, 3] = True
        return brain.compute_forward(masked_with(batch, mask), stage)

    (scores, codes), (others, other_codes) = found(1.0), found(1000.0)
    assert scores.shape == (4, 32) and codes.shape == (4,)
    assert scores.equal(others) and heard[0].equal(heard[1])
    assert codes[1] != other_codes[1]
    assert heard[0][0, 4 * (masked - 1) : 4 * (masked + 2)].std() < 0.2  # noise_std is 0.1
    assert heard[0][0, : 4 * (masked - 1)].std() > 0.3


def test_only_masked_frames_count(brain):
    """The loss is the cross-entropy by hand of those frames, from the whole of the encoder."""
    batch = random_batch([1.0, 0.5, 0.7])
    scores, codes = brain.compute_forward(batch, sb.Stage.VALID)
    brain.measured = {}
    loss = brain.compute_objectives((scores, codes), batch, sb.Stage.VALID)
    features, lengths = brain.features(batch, sb.Stage.VALID)
    noise = brain._noise(features, batch, sb.Stage.VALID)
    heard = torch.where(batch.mask.data.repeat_interleave(STRIDE, 1)[..., None], noise, features)
    encoded = brain.modules.transformer.encode(brain.modules.front_end(heard, lengths), lengths)
    whole = brain.modules.code_lin(encoded).log_softmax(-1)
    stacked = torch.stack([features[:, i::STRIDE] for i in range(STRIDE)], 2).flatten(2)
    code = brain.modules.quantizer(stacked)
    mask = batch.mask.data
    assert 0 < mask.sum() < mask.numel()
    by_hand = -whole.gather(2, code.unsqueeze(2)).squeeze(2)[mask].mean()
    torch.testing.assert_close(loss.double(), by_hand, rtol=1e-5, atol=0)
    assert codes.equal(code[mask])
    frames = [len(measured[0]) for measured in brain.measured.values()]
    assert frames == mask.sum(1).tolist()


def test_what_stands_beside_an_utterance_and_after_its_end_changes_nothing(brain):
    # noise is drawn for a batch: here there is none
    deviation, brain.hparams.noise_std = brain.hparams.noise_std, 0.0
    together = random_batch([0.4, 1.0])
    scores, codes = brain.compute_forward(together, sb.Stage.VALID)
    alone = brain.compute_forward(random_batch([0.4]), sb.Stage.VALID)
    brain.hparams.noise_std = deviation
    n = len(alone[0])
    assert codes[:n].equal(alone[1]) and n == together.mask.data[0].sum()
    torch.testing.assert_close(scores[:n], alone[0], rtol=1e-6, atol=1e-6)


def test_no_tensor_is_made_on_the_wrong_device_and_no_value_is_waited_for():
    with FakeTensorMode(), torch.device("cuda"):  # which has no values to wait for
        mixer = partial(SelectiveSummaryMixing, 16, nhead=2, neighbours=4, summaries=2)
        modules = SimpleNamespace(
            front_end=MaskedConvolutionFrontEnd(20, (4, 4)),
            transformer=SummaryMixingASR(
                1, 20, token_mixer=mixer, d_model=16, num_encoder_layers=1, num_decoder_layers=0
            ),
            quantizer=RandomCodes(80, 4, 32),
            code_lin=Linear(input_size=16, n_neurons=32),
        )
        stub = SimpleNamespace(modules=modules, hparams=SimpleNamespace(frame_multiple=STRIDE))
        features, mask = torch.randn(2, 40, 20), torch.ones(2, 10, dtype=torch.bool)
        found = Pretraining.predict(stub, features, torch.ones(2), features, mask, torch.arange(7))
    assert [t.device.type for t in found] == ["cuda", "cuda"]
    assert found[0].shape == (7, 32) and found[1].shape == (7,)


def test_a_batch_without_a_masked_frame_has_no_loss_and_finite_gradients(brain):
    batch = random_batch([0.04, 0.08], length=20)
    assert not batch.mask.data.any()
    brain.modules.train()
    loss = brain.compute_objectives(
        brain.compute_forward(batch, sb.Stage.TRAIN), batch, sb.Stage.TRAIN
    )
    brain.modules.eval()
    assert loss == 0
    loss.backward()
    gradients = [p.grad for p in brain.modules.parameters()]
    assert all(g is None or g.isfinite().all() for g in gradients)
    brain.modules.zero_grad()
    brain.measured = {}
    predictions = brain.compute_forward(batch, sb.Stage.VALID)
    assert brain.compute_objectives(predictions, batch, sb.Stage.VALID) == 0
    assert brain.validation_metric() == 100.0


def test_results_tell_accuracy_loss_and_codes(trained, noises):
    results = json.loads((trained / "results.json").read_text())["test"]["test"]
    low, high = results["accuracy_95"]
    assert 0 <= low <= results["accuracy"] <= high <= 100
    assert 1 < results["codes"] <= 32 and results["codes_found"] <= results["codes"]
    assert results["loss"] > 0 and results["utterances"] == 6
    errors = (trained / "errors_test.csv").read_text().splitlines()
    assert errors[0] == "ID,errors,total" and len(errors) == 7
    assert sum(int(line.split(",")[2]) for line in errors[1:]) == results["masked_frames"]
    history = (trained / "history.csv").read_text().splitlines()
    assert "valid_masked_error" in history[0] and len(history) == 3


def test_the_export_encodes_and_its_card_says_how(trained, noises):
    model = WaveformEncoder.from_hparams(source=str(trained / "pretrained"))
    frames = model.encode_batch(torch.randn(2, 6400), torch.tensor([1.0, 0.5]))
    assert frames.shape == (2, 10, SMALL["d_model"])
    assert "--encoder_folder" in (trained / "pretrained/README.md").read_text()


def test_recognition_begins_with_the_encoder(trained, command, tmp_path, monkeypatch):
    """Front-end, encoder and statistics are bit-equal before the first step, and learn after."""
    theirs = torch.load(trained / "pretrained/model.ckpt", weights_only=True)
    encoder = [key for key in theirs if key.startswith(ENCODER)]
    assert encoder and {key.split(".")[0] for key in theirs} == {"0", "1", "2"}
    same, fit_batch = [], ASR.fit_batch

    def noted(self, batch):
        own = self.hparams.model.state_dict()
        same.append([own[key].equal(theirs[key]) for key in encoder])
        statistics.append(self.hparams.normalize.glob_mean.clone())
        return fit_batch(self, batch)

    statistics = []
    monkeypatch.setattr(ASR, "fit_batch", noted)
    options = {"encoder_folder": trained / "pretrained", "optimizer_step_limit": 2}
    experiment.run(command(tmp_path / "asr", number_of_epochs=1, **options), ASR)
    assert all(same[0]) and not all(same[1])
    mean = torch.load(trained / "pretrained/normalizer.ckpt", weights_only=True)["glob_mean"]
    assert statistics[1].equal(mean)


def test_a_run_that_was_stopped_equals_the_whole_one(trained, arguments, untold, tmp_path):
    fit_batch, stops, codebooks = Pretraining.fit_batch, [2, 5], []

    def stopped(self, batch):
        codebooks.append(self.hparams.quantizer.CB.clone())
        if stops and self.optimizer_step == stops[0]:
            stops.pop(0)
            os.kill(os.getpid(), signal.SIGTERM)
        return fit_batch(self, batch)

    Pretraining.fit_batch = stopped
    try:
        for _ in range(2):
            with pytest.raises(SystemExit):
                experiment.run(arguments(tmp_path / "out", train_csv=untold), Pretraining)
        experiment.run(arguments(tmp_path / "out", train_csv=untold), Pretraining)
    finally:
        Pretraining.fit_batch = fit_batch
    for name in ("model.ckpt", "quantizer.ckpt"):
        ends = [
            torch.load(folder / "pretrained" / name, weights_only=True)
            for folder in (trained, tmp_path / "out")
        ]
        assert ends[0].keys() == ends[1].keys()
        assert all(value.equal(ends[1][key]) for key, value in ends[0].items()), name
    assert all(codebook.equal(ends[1]["CB"]) for codebook in codebooks)


def test_a_resumed_codebook_is_that_of_the_checkpoint(trained, arguments, untold):
    """Even where the random generator would make another."""
    hparams, _ = experiment.start(arguments(trained, train_csv=untold))
    saved = hparams["quantizer"].CB.clone()
    hparams["quantizer"].CB.zero_()
    hparams["checkpointer"].recover_if_possible()
    assert hparams["quantizer"].CB.equal(saved)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_length": 6}, "--mask_length is 6, but must be a multiple of 4"),
        ({"mask_prob": 1.5}, "--mask_prob is 1.5 and --mask_length 4, which would mask 600%"),
        ({"mask_length": 8}, "--mask_length 8, which would mask 120%.*product must be below 1"),
        ({"codes": 0}, "--codes is 0, but must be above 0"),
    ],
)
def test_what_cannot_be_is_told(options, message, arguments, tmp_path):
    with pytest.raises(SystemExit, match=message):
        experiment.run(arguments(tmp_path / "out", **options), Pretraining)


def test_augmentation_of_waveforms_is_of_the_epoch_as_masks_are(arguments, tmp_path):
    hparams = load_hyperparams(YAML, {"output_folder": str(tmp_path), "train_csv": "a.csv"})
    hparams["wav_augment"] = torch.nn.Identity()
    brain = Pretraining(modules=hparams["modules"], hparams=hparams)
    row = Utterance("a", 1.0, "a.wav", "", "")
    dataset, options = brain.train_loading({"train": [row]})
    brain.augmentation.epoch.fill_(7)
    assert options["collate_fn"].epoch == dataset.reading["augment"].epoch == 7


def test_recognition_still_wants_transcripts(command, untold, tmp_path):
    with pytest.raises(SystemExit, match="empty transcripts"):
        experiment.run(command(tmp_path / "out", train_csv=untold), ASR)


def test_a_pretrained_encoder_does_not_transcribe(trained, noises, capsys):
    file = read_manifest(noises / "test.csv")[0].wav
    assert cli.main(["transcribe", str(trained / "pretrained"), file]) == 1
    assert "--encoder_folder" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_measure_what_one_does(arguments, trained, untold, tmp_path):
    """Of the same weights: masks and noise of tests depend on the utterance and batch alone."""
    system, *options = arguments(tmp_path / "out", train_csv=untold, batch_seconds=2)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = ["-m", "speechbrain_summarymixing", "train", system, *options]
    subprocess.run(
        [sys.executable, *launcher, *command, "--distributed_backend=gloo"],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    two = json.loads((tmp_path / "out/results.json").read_text())
    assert two["processes"] == 2
    (tmp_path / "out/settings.json").unlink()  # which has the number of processes
    experiment.run(
        arguments(tmp_path / "out", train_csv=untold, batch_seconds=2, test_only=True), Pretraining
    )
    one = json.loads((tmp_path / "out/results.json").read_text())
    assert one["processes"] == 1
    for key, value in two["test"]["test"].items():
        assert one["test"]["test"][key] == pytest.approx(value), key
    assert len((tmp_path / "out/history.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_from_librispeech_to_a_recogniser_of_it(arguments, command, speech_data, tmp_path):
    corpus = {
        "corpus": "librispeech", "data_folder": speech_data / "LibriSpeech",
        "train_splits": "train-clean-5", "valid_splits": "dev-clean", "test_splits": "dev-clean",
        "train_csv": "null", "valid_csv": "null", "test_csv": "null",
        "optimizer_step_limit": 2, "number_of_epochs": 1, "batch_seconds": 30,
    }  # fmt: skip
    yaml = "recipes/LibriSpeech/self-supervised-learning/BEST-RQ/hparams/sumformer.yaml"
    experiment.run(arguments(tmp_path / "pre", yaml=yaml, **corpus), Pretraining)
    yaml = "recipes/LibriSpeech/ASR/transformer/hparams/sumformer.yaml"
    options = {**corpus, "vocab_size": 40, "max_decode_ratio": 0.05}
    options["encoder_folder"] = tmp_path / "pre/pretrained"
    experiment.run(command(tmp_path / "asr", yaml=yaml, **options), ASR)
    assert json.loads((tmp_path / "asr/results.json").read_text())["optimizer_steps"] == 2
