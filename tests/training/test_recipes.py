"""Recipes at the paper's size: they build, and have the published numbers of parameters."""

import json
from pathlib import Path

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.inference.ASR import EncoderDecoderASR
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.corpora.text import normalize_text
from speechbrain_summarymixing.training import experiment, sets
from speechbrain_summarymixing.training.asr import ASR
from speechbrain_summarymixing.training.config import load_hyperparams
from speechbrain_summarymixing.training.understanding import Understanding

ROOT = Path(__file__).parents[2]
PAPER_SIZE = sorted(ROOT.glob("recipes/*/ASR/transformer/hparams/*.yaml"))
RECIPES = sorted(ROOT.glob("recipes/*/ASR/**/hparams/*.yaml"))
CLASSIFICATION = sorted(ROOT.glob("recipes/Google-speech-commands/hparams/*.yaml"))
UNDERSTANDING = sorted(ROOT.glob("recipes/*/direct/hparams/*.yaml"))
LIBRISPEECH = ROOT / "recipes/LibriSpeech/ASR/transformer/hparams"


def built(yaml, **options):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return load_hyperparams(yaml, {"output_folder": "unused", **options})


def millions(*modules):
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def test_there_are_recipes():
    assert len(PAPER_SIZE) >= 20 and len(RECIPES) >= len(PAPER_SIZE) + 2
    assert len(UNDERSTANDING) >= 6


@pytest.mark.parametrize("yaml", PAPER_SIZE, ids=lambda path: str(path.relative_to(ROOT)))
def test_full_size(yaml):
    hparams = built(yaml)
    small = "small" in yaml.stem
    assert (10 if small else 50) < millions(hparams["model"]) < (25 if small else 140)
    with FakeTensorMode(allow_non_fake_inputs=True):
        frames = torch.rand(2, 40, hparams["front_end_output"])
        tokens = torch.ones(2, 5, dtype=torch.long)
        encoded, decoded = hparams["transformer"](frames, tokens, None)
    stride = hparams["transformer"].encoder.stride
    assert encoded.shape == (2, 40 // stride, hparams["d_model"])
    assert hparams["seq_lin"](decoded).shape == (2, 5, hparams["vocab_size"])


@pytest.mark.parametrize(
    "yaml", [*UNDERSTANDING, *CLASSIFICATION], ids=lambda path: str(path.relative_to(ROOT))
)
def test_full_size_of_understanding_and_keywords(yaml):
    hparams = built(yaml)
    low, high = (10, 40) if "SLURP" in str(yaml) else (0.3, 2)
    assert low < millions(hparams["model"]) < high
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoded = hparams["transformer"].encode(torch.rand(2, 40, hparams["front_end_output"]))
    assert encoded.shape == (2, 40, hparams["d_model"])


@pytest.mark.parametrize(
    "name, whole, encoder", [("sumformer", 119.3, 86.0), ("conformer_summarymixing", 101.3, None)]
)
def test_published_numbers_of_parameters(name, whole, encoder):
    # published without LayerNorm in the cell
    hparams = built(LIBRISPEECH / f"{name}.yaml", layer_norm=False)
    assert millions(hparams["model"]) == pytest.approx(whole, rel=0.005)
    if encoder is not None:
        assert millions(hparams["transformer"].encoder) == pytest.approx(encoder, rel=0.005)


@pytest.mark.parametrize("yaml", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_step_and_a_decode_at_reduced_width(yaml, command, tmp_path):
    options = {"front_end_channels": "[]"} if yaml.stem == "contextnet" else {}
    brain, batch = after_a_step_and_a_decode(ASR, command(tmp_path, yaml=yaml, **options))
    assert [score["key"] for score in brain.wer_stats.scores] == batch.id


@pytest.mark.parametrize("yaml", UNDERSTANDING, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_step_and_a_decode_of_semantics(yaml, command, meanings, tmp_path):
    csvs = {f"{split}_csv": meanings / f"{split}.csv" for split in ("train", "valid", "test")}
    arguments = command(tmp_path, yaml=yaml, vocab_size=60, **csvs)
    brain, batch = after_a_step_and_a_decode(Understanding, arguments)
    assert list(brain.understood) == batch.id


def after_a_step_and_a_decode(task, arguments):
    hparams, run_opts = experiment.start(arguments)
    train, valid, tests = sets.manifests(hparams)
    brain = task(hparams["modules"], hparams["optimizer"], hparams, run_opts)
    brain.targets = task.prepare(hparams, train, {**valid, **tests})
    dataset = experiment.make_dataset(brain, hparams, train, augment=hparams["wav_augment"])
    batch = PaddedBatch([dataset[index] for index in range(3)])
    brain.steps_per_epoch = 1
    brain.on_fit_start()
    before = {name: p.clone() for name, p in hparams["model"].named_parameters()}
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    brain.modules.train()
    brain.optimizer.param_groups[0]["lr"] = 0.1
    assert brain.fit_batch(batch).isfinite()
    assert all(p.grad is None or p.isfinite().all() for p in hparams["model"].parameters())
    changed = [not p.equal(before[name]) for name, p in hparams["model"].named_parameters()]
    assert sum(changed) > 0.8 * len(changed)
    brain.on_stage_start(sb.Stage.TEST, 1)
    brain.modules.eval()
    brain.evaluate_batch(batch, sb.Stage.TEST)
    return brain, batch


def test_common_voice_in_persian(command, tmp_path, speech_data):
    options = {
        "train_csv": "null", "valid_csv": "null", "test_csv": "null",
        "data_folder": speech_data / "CommonVoice/fa", "language": "fa", "vocab_size": 60,
        "number_of_epochs": 1, "optimizer_step_limit": 2, "batch_seconds": 30,
        "max_decode_ratio": 0.1,
    }  # fmt: skip
    yaml = "recipes/CommonVoice/ASR/transformer/hparams/sumformer.yaml"
    experiment.run(command(tmp_path, yaml=yaml, **options))
    assert json.loads((tmp_path / "results.json").read_text())["test"]["test"]["utterances"] == 40
    assert json.loads((tmp_path / "manifests/train.dropped.json").read_text())["characters"]
    model = EncoderDecoderASR.from_hparams(source=str(tmp_path / "pretrained"))
    sentence = "می\u200cخواهم بروم"  # a zero-width non-joiner stands within the first word
    assert model.tokenizer.decode(model.tokenizer.encode("سلام")) == "سلام"
    assert sentence.split()[0] == normalize_text(sentence, "fa")[0].split()[0]


def test_recipe_files_are_short():
    for yaml in ROOT.glob("recipes/**/*.yaml"):
        assert len(yaml.read_text().splitlines()) <= 120, yaml
