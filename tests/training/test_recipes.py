"""Recipes at the paper's size: they build, and have the published numbers of parameters."""

import functools
import json
import re
import tempfile
from pathlib import Path

import layouts
import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.inference.ASR import EncoderDecoderASR
from tiny import FILES, WORDS, task_of
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.analysis.diagnostic_attention import DiagnosticAttention
from speechbrain_summarymixing.corpora.text import normalize_text
from speechbrain_summarymixing.data import sets
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.tasks.language_model import LanguageModel
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.tasks.transfer import ENCODER
from speechbrain_summarymixing.tasks.understanding import Understanding
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import load_hyperparams

ROOT = Path(__file__).parents[2]
PRETRAINING = sorted(ROOT.glob("recipes/LibriSpeech/self-supervised-learning/*/hparams/*.yaml"))
MINI = sorted({*ROOT.glob("hparams/*.yaml")} - {ROOT / "hparams/sumformer_bestrq.yaml"})
AN4 = sorted(ROOT.glob("recipes/AN4/ASR/hparams/*.yaml"))
PAPER_SIZE = sorted(ROOT.glob("recipes/*/ASR/transformer/hparams/*.yaml"))
PAPER_SIZE += sorted(ROOT.glob("recipes/*/ASR/transducer/hparams/*.yaml"))
OTHERS = {  # of the paper's corpora, with the folder that is given and its tokens
    "AISHELL-1": (layouts.aishell, "data_aishell", 25),
    "TEDLIUM2": (layouts.tedlium, "TEDLIUM_release2", 23),
    "VoxPopuli": (layouts.voxpopuli, "transcribed_data/en", 23),
}
PAPER_SIZE += [ROOT / f"recipes/{name}/ASR/hparams/sumformer.yaml" for name in OTHERS]
RECIPES = sorted(ROOT.glob("recipes/*/ASR/**/hparams/*.yaml"))
CLASSIFICATION = sorted(ROOT.glob("recipes/Google-speech-commands/hparams/*.yaml"))
UNDERSTANDING = sorted(ROOT.glob("recipes/*/direct/hparams/*.yaml"))
DIAGNOSTICS = ROOT / "docs/mixers/diagnostics.yaml"
LETTERS = {"vocab_size": 4 + len(set("".join(WORDS)))}  # of systems whose tokens are characters
CTC = {"num_decoder_layers": 0}  # of systems that have no decoder
LIBRISPEECH = ROOT / "recipes/LibriSpeech/ASR/transformer/hparams"
TRANSDUCERS = ROOT / "recipes/LibriSpeech/ASR/transducer/hparams"


@functools.cache
def built(yaml, **options):
    with FakeTensorMode(allow_non_fake_inputs=True):
        with tempfile.TemporaryDirectory() as folder:  # the checkpointer makes one
            return load_hyperparams(yaml, {"output_folder": folder, **options})


def millions(*modules):
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


def once_fast(paths, *slow):
    """Of each system's name one recipe's file in the fast tier, and the others in the slow one."""
    seen = set(slow)
    for path in paths:
        marks = [pytest.mark.slow] if path.stem in seen else []
        seen.add(path.stem)
        yield pytest.param(path, marks=marks, id=str(path.relative_to(ROOT)))


def test_there_are_recipes():
    assert len(PAPER_SIZE) >= 20 and len(RECIPES) >= len(PAPER_SIZE) + 2
    assert len(UNDERSTANDING) >= 6


@pytest.mark.parametrize("yaml", once_fast([*MINI, *AN4, *PAPER_SIZE], "contextnet"))
def test_full_size(yaml):
    hparams = built(yaml)
    low, high = (50, 140) if yaml in PAPER_SIZE else (1, 5)
    if "small" in yaml.stem:
        low, high = 10, 25
    assert low < millions(hparams["model"]) < high
    with FakeTensorMode(allow_non_fake_inputs=True):
        frames = torch.rand(2, 40, hparams["front_end_output"])
        tokens = torch.ones(2, 5, dtype=torch.long) if hparams["num_decoder_layers"] else None
        encoded, decoded = hparams["transformer"](frames, tokens, None)
        if task_of(yaml) is Transducer:
            scores = hparams["head"](encoded, torch.ones(2, 5, dtype=torch.long))
    length = 40 // hparams["transformer"].encoder.stride
    assert encoded.shape == (2, length, hparams["d_model"])
    assert hparams["ctc_lin"](encoded).shape == (2, length, hparams["vocab_size"])
    if task_of(yaml) is Transducer:
        assert scores.shape == (2, length, 6, hparams["vocab_size"])
    elif tokens is not None:
        assert hparams["seq_lin"](decoded).shape == (2, 5, hparams["vocab_size"])


def test_full_size_of_the_language_model():
    hparams = built(ROOT / "recipes/LibriSpeech/LM/hparams/transformer.yaml")
    with FakeTensorMode(allow_non_fake_inputs=True):
        scores = hparams["lm_model"](torch.ones(2, 5, dtype=torch.long))
    assert scores.shape == (2, 5, 5000)
    assert 90 < millions(hparams["lm_model"]) < 97  # 12 layers of 768


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


@pytest.mark.parametrize("yaml", PRETRAINING, ids=lambda path: path.stem)
def test_the_recogniser_of_a_pretrained_encoders_name_begins_with_it(yaml):
    shapes = []
    for file in (yaml, LIBRISPEECH / yaml.name):
        model = built(file)["model"].state_dict()
        shapes.append({k: v.shape for k, v in model.items() if k.startswith(ENCODER)})
    assert shapes[0] == shapes[1] and len(shapes[0]) > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder",
    [LIBRISPEECH, TRANSDUCERS, PRETRAINING[0].parent],
    ids=["transformer", "transducer", "pretraining"],
)
def test_the_readmes_table_of_parameters(folder):
    text = (folder.parent / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.*\| ([\d.]+) \| ([\d.]*) *\|$", text, re.MULTILINE)
    assert {name for name, _, _ in rows} == {yaml.stem for yaml in folder.glob("*.yaml")}
    for name, whole, encoder in rows:
        hparams = built(folder / f"{name}.yaml")
        assert millions(hparams["model"]) == pytest.approx(float(whole), abs=0.0501), name
        if encoder:
            counted = millions(hparams["transformer"].encoder)
            assert counted == pytest.approx(float(encoder), abs=0.0501), name


@pytest.mark.parametrize(
    "name, whole, encoder",
    [("sumformer_published", 119.3, 86.0), ("conformer_summarymixing_published", 101.3, None)],
)
def test_published_numbers_of_parameters(name, whole, encoder):
    # published without LayerNorm in the cell
    hparams = built(LIBRISPEECH / f"{name}.yaml", layer_norm=False)
    assert millions(hparams["model"]) == pytest.approx(whole, rel=0.005)
    if encoder is not None:
        assert millions(hparams["transformer"].encoder) == pytest.approx(encoder, rel=0.005)


@pytest.mark.parametrize(
    "yaml",
    [
        *(LIBRISPEECH / f"{encoder}_attention.yaml" for encoder in ("transformer", "conformer")),
        *CLASSIFICATION,
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_size_option_changes_the_encoders_size(yaml):
    option = built(yaml)["size_option"]
    sizes = [millions(built(yaml, **{option: width})["transformer"].encoder) for width in (64, 128)]
    assert 0 < sizes[0] < sizes[1]


@pytest.mark.parametrize("yaml", once_fast(RECIPES))
def test_a_step_and_a_decode_at_reduced_width(yaml, command, tmp_path):
    own = {"contextnet": {"front_end_channels": "[]"}, "sumformer_streaming": CTC}
    options = LETTERS if "AISHELL-1" in yaml.parts else own.get(yaml.stem, {})
    arguments = command(tmp_path, yaml=yaml, **options)
    brain, batch = after_a_step_and_a_decode(task_of(yaml), arguments)
    assert list(brain.measured) == batch.id


@pytest.mark.parametrize("yaml", UNDERSTANDING, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_step_and_a_decode_of_semantics(yaml, command, meanings, tmp_path):
    csvs = {f"{split}_csv": meanings / f"{split}.csv" for split in ("train", "valid", "test")}
    arguments = command(tmp_path, yaml=yaml, vocab_size=60, **csvs)
    brain, batch = after_a_step_and_a_decode(Understanding, arguments)
    assert list(brain.measured) == batch.id


def test_the_diagnostics_system_is_trained_exported_and_loaded(command, tmp_path):
    options = {"half": "lower", "num_encoder_layers": 2, "number_of_epochs": 1, "mean_row": "True"}
    experiment.run(command(tmp_path, yaml=DIAGNOSTICS, **options), ASR)
    assert "HalfOfLayers" in (tmp_path / "pretrained/README.md").read_text()
    loaded = EncoderDecoderASR.from_hparams(source=str(tmp_path / "pretrained"))
    lower, upper = loaded.mods.transformer.encoder.mixers()
    assert isinstance(lower, DiagnosticAttention) and lower.mean_row
    assert isinstance(upper, NoMixing)


def after_a_step_and_a_decode(task, arguments):
    hparams, run_opts = experiment.start(arguments)
    train, valid, tests = sets.manifests(hparams)
    brain = task(hparams["modules"], hparams["optimizer"], hparams, run_opts)
    brain.targets = task.prepare(hparams, train, {**valid, **tests})
    dataset, loading = brain.train_loading(train)
    batch = PaddedBatch([dataset[index] for index in range(3)])
    brain.expect(dataset, brain.eval_loading("valid", valid)[0], loading)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_corpus_in_its_layout_is_trained_tested_and_exported(name, command, tmp_path):
    layout, folder, tokens = OTHERS[name]
    options = {
        "data_folder": layout(tmp_path / folder), "token_type": "char", "vocab_size": tokens,
        "train_csv": "null", "valid_csv": "null", "test_csv": "null",
        "number_of_epochs": 1, "optimizer_step_limit": 2,
    }  # fmt: skip
    yaml = f"recipes/{name}/ASR/hparams/sumformer.yaml"
    experiment.run(command(tmp_path / "out", yaml=yaml, **options), task_of(yaml))
    results = json.loads((tmp_path / "out/results.json").read_text())["test"]["test"]
    metric = "CER" if name == "AISHELL-1" else "WER"
    assert results[metric] > 0 and f"{metric}_by_seconds" in results
    assert (tmp_path / f"out/{metric.lower()}_test.txt").is_file()
    assert f"| {metric} on test |" in (tmp_path / "out/pretrained/README.md").read_text()
    loaded = EncoderDecoderASR.from_hparams(source=str(tmp_path / "out/pretrained"))
    assert isinstance(loaded.transcribe_file(FILES[0]), str)


@pytest.mark.slow
def test_common_voice_in_persian(command, tmp_path, speech_data):
    clips = speech_data / "CommonVoice/fa"
    corpus = {
        "corpus": "commonvoice", "data_folder": clips, "language": "fa", "vocab_size": 60,
        "train_splits": "train", "valid_splits": "dev", "test_splits": "test",
    }  # fmt: skip

    def arguments(yaml, **options):
        options = {**corpus, "output_folder": tmp_path / yaml.split("/")[0], **options}
        listed = [f"--{key}={value}" for key, value in options.items()]
        return [
            str(ROOT / "recipes/LibriSpeech" / yaml),
            "--noprogressbar",
            "--device=cpu",
            *listed,
        ]

    experiment.run_tokenizer(arguments("Tokenizer/hparams/unigram5000.yaml"))
    spelled = {"tokenizer_folder": tmp_path / "Tokenizer"}
    small = arguments(
        "LM/hparams/transformer.yaml",
        **spelled,
        d_model=16,
        nhead=2,
        num_encoder_layers=1,
        d_ffn=16,
        number_of_epochs=1,
        num_workers=0,
    )
    experiment.run(small, LanguageModel)
    options = {
        "train_csv": "null", "valid_csv": "null", "test_csv": "null", **corpus, **spelled,
        "lm_folder": tmp_path / "LM/pretrained", "number_of_epochs": 1, "optimizer_step_limit": 2,
        "batch_seconds": 30, "max_decode_ratio": 0.05,
    }  # fmt: skip
    yaml = "recipes/CommonVoice/ASR/transformer/hparams/sumformer.yaml"
    experiment.run(command(tmp_path, yaml=yaml, **options), ASR)
    assert json.loads((tmp_path / "results.json").read_text())["test"]["test"]["utterances"] == 40
    assert json.loads((tmp_path / "manifests/train.dropped.json").read_text())["characters"]
    model = EncoderDecoderASR.from_hparams(source=str(tmp_path / "pretrained"))
    sentence = "می\u200cخواهم بروم"  # a zero-width non-joiner stands within the first word
    assert model.tokenizer.decode(model.tokenizer.encode("سلام")) == "سلام"
    assert sentence.split()[0] == normalize_text(sentence, "fa")[0].split()[0]
    assert "transformerlm" in model.hparams.scorer.full_scorers
    assert isinstance(model.transcribe_file(str(next(clips.glob("clips/*.mp3")))), str)


def test_recipe_files_are_short():
    for yaml in ROOT.glob("recipes/**/*.yaml"):
        assert len(yaml.read_text().splitlines()) <= 120, yaml
