"""Every system file trains, decodes, exports and loads."""

import csv
import json
from pathlib import Path

import pytest
import torch
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.metric_stats import ErrorRateStats
from tiny import task_of

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple
from speechbrain_summarymixing.training import experiment

ROOT = Path(__file__).parents[2]
# those of recipes: test_recipes.py; that without words: test_pretraining.py
SYSTEMS = sorted({*ROOT.glob("hparams/*.yaml")} - {ROOT / "hparams/sumformer_bestrq.yaml"})
CTC = {"num_decoder_layers": 0}
OWN = {
    "contextnet": {"front_end_channels": "[]"},  # its encoder does the subsampling
    "sumformer_streaming": CTC,
    "conformer_streaming": CTC,
    "branchformer_attention_streaming": CTC,
    "conformer_attention_streaming": CTC,
}


# whose mixer another fast test trains or which differs from another system by an option
SLOW = {
    "branchformer_attention_streaming",
    "branchformer_fastformer",
    "branchformer_regular",
    "branchformer_rotary",
    "conformer_attention_streaming",
    "conformer_summarymixing_published",
    "sumformer_decay",
    "sumformer_heads4",
    "sumformer_lite",
    "transformer_summarymixing_published",
}


@pytest.mark.parametrize(
    "yaml",
    [
        pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else [], id=path.stem)
        for path in SYSTEMS
    ],
)
def test_system(yaml, command, noises, tmp_path):
    options = {"number_of_epochs": 1, "batch_seconds": 20, **OWN.get(yaml.stem, {})}
    experiment.run(command(tmp_path, yaml=yaml, **options), task_of(yaml))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["optimizer_steps"] >= 2
    model = load_model(tmp_path / "pretrained", "cpu")
    chunks = hasattr(model.hparams, "chunk_frames") and "attention" not in yaml.stem
    assert (tmp_path / "pretrained" / "streaming.yaml").exists() == chunks
    with open(noises / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    said = [t.text.split() for t in transcribe(model, [row["wav"] for row in rows])]
    stats = ErrorRateStats()
    stats.append([row["ID"] for row in rows], said, [row["wrd"].split() for row in rows])
    assert stats.summarize("WER") == pytest.approx(results["test"]["test"]["WER"])
    check_that_the_batch_changes_no_encoder_output(model, [row["wav"] for row in rows])


def check_that_the_batch_changes_no_encoder_output(model, files):
    whole = model.hparams.compute_features.samples
    waveforms = [pad_to_multiple(read_audio(file, 16000), whole) for file in files]
    with torch.no_grad():
        together = model.encode_batch(*batch_pad_right(waveforms))
        for waveform, encoded in zip(waveforms, together):
            alone = model.encode_batch(waveform.unsqueeze(0), torch.ones(1))[0]
            assert (encoded[: len(alone)] - alone).abs().max() < 1e-3
            assert alone.std() > 0.03  # the difference is small beside the values
