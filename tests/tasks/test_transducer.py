"""A transducer from training to words."""

import csv
import json
from dataclasses import replace

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_summarymixing.corpora.manifest import read_manifest, write_manifest
from speechbrain_summarymixing.data import sets
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import transcribe
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple
from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.training import experiment

YAML = "hparams/sumformer_transducer.yaml"
BY_HEART = {
    "lr": 0.01,
    "warmup_steps": 10,
    "d_model": 32,
    "vocab_size": 19,
    "token_type": "char",
    "batch_seconds": 6,
    "dropout": 0,
    "speeds": "[100]",
    "time_drops": 0,
    "frequency_drops": 0,
    "number_of_epochs": 5,
    "ctc_epochs": 3,
    "test_beam_size": 8,
    "max_symbols": 15,  # what is known by heart may be said at one frame
    "averaged_checkpoints": 1,
}


@pytest.fixture(scope="module")
def by_heart(command, noises, tmp_path_factory):
    """The folder of a run that has learnt its test utterances by heart, and they."""
    folder = tmp_path_factory.mktemp("by heart")
    rows = read_manifest(noises / "test.csv")[:3]
    write_manifest(folder / "test.csv", rows)
    for split, copies in (("train", 40), ("valid", 1)):
        again = [replace(r, ID=f"{r.ID}-{split}-{i}") for r in rows for i in range(copies)]
        write_manifest(folder / f"{split}.csv", again)
    options = {f"{split}_csv": folder / f"{split}.csv" for split in ("train", "valid", "test")}
    experiment.run(command(folder / "out", yaml=YAML, **BY_HEART, **options), Transducer)
    return folder / "out", rows


def test_what_is_learnt_is_measured_and_transcribed(by_heart):
    folder, rows = by_heart
    history = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    losses = [float(row["valid_loss"]) for row in history]
    assert losses[-1] < losses[0] / 5
    results = json.loads((folder / "results.json").read_text())["test"]["test"]
    assert results["WER"] < 60 and float(history[-1]["valid_WER"]) < 100  # by beam, and greedy
    model = transcribe.load_model(folder / "pretrained", "cpu")
    files = [row.wav for row in rows]
    answers = list(transcribe.transcribe(model, files, segment_seconds=5.0))
    stats = ErrorRateStats()
    texts = ([answer.text.split() for answer in answers], [row.wrd.split() for row in rows])
    stats.append([row.ID for row in rows], *texts)
    assert stats.summarize("WER") == pytest.approx(results["WER"])
    for answer in answers:
        assert [word.word for word in answer.words] == answer.text.split()
        assert all(0 < word.confidence <= 1 for word in answer.words)


def test_a_stream_of_the_export_says_the_same(by_heart):
    folder, rows = by_heart
    model = EncoderDecoderASR.from_hparams(source=str(folder / "pretrained"))
    waveforms = [model.load_audio(row.wav) for row in rows]
    encoded, lengths = encode(model, waveforms)
    for search in (model.hparams.greedy_search, model.mods.decoder):
        state, heard = search.start(len(rows)), [[] for _ in rows]
        for start in range(0, encoded.size(1), 4):
            chunk = encoded[:, start : start + 4]
            left = (lengths - start).clamp(0, chunk.size(1))
            told, state = search.step(chunk, state, left)
            heard = [before + new for before, new in zip(heard, told)]
        heard = [told + rest for told, rest in zip(heard, search.rest(state))]
        tokens = [[emission.token for emission in row] for row in heard]
        assert tokens == search(encoded, lengths / encoded.size(1))[0]
        assert any(tokens)


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_streams_of_the_export_say_the_same_in_any_split(by_heart, decoder):
    folder, rows = by_heart
    loaded = transcribe.load_model(folder / "pretrained", "cpu")
    model = StreamingModel(loaded, chunk_ms=160, decoder=decoder)
    if decoder == "beam":
        other = StreamingModel(loaded, chunk_ms=160, decoder="beam", beam_size=1)
        assert other.search.beam_size == 1 and model.search.beam_size > 1
    samples = [loaded.load_audio(row.wav) for row in rows[:3]]
    texts = []
    for size in (10**6, 1000, 2560):
        streams = [model.open() for _ in samples]
        for stream, sound in zip(streams, samples):
            for piece in sound.split(size):
                stream.put(piece)
                if len(piece) < len(sound):
                    model.advance()
            stream.end()
        model.advance()
        texts.append([stream.text for stream in streams])
        for stream in streams:
            stream.close()
    assert texts[0] == texts[1] == texts[2] and any(texts[0])


def encode(model, waveforms):
    """The encoder's frames (B, T, D) of waveforms and their lengths (B,)."""
    whole = model.hparams.compute_features.samples
    padded, lengths = batch_pad_right([pad_to_multiple(w, whole) for w in waveforms])
    encoded = model.encode_batch(padded, lengths)
    return encoded, (lengths * encoded.size(1)).round().long()


def test_ctc_joins_in_the_first_epochs(command, tmp_path):
    hparams, run_opts = experiment.start(command(tmp_path, yaml=YAML, ctc_epochs=2, dropout=0))
    train, valid, tests = sets.manifests(hparams)
    brain = Transducer(hparams["modules"], hparams["optimizer"], hparams, run_opts)
    brain.targets = Transducer.prepare(hparams, train, {**valid, **tests})
    dataset, _ = brain.train_loading(train)
    batch = PaddedBatch([dataset[index] for index in range(3)])
    brain.hparams.feature_augment = None
    brain.on_stage_start(sb.Stage.TRAIN, 1)
    brain.compute_forward(batch, sb.Stage.TRAIN)  # learns the features' statistics
    brain.modules.eval()
    brain.on_stage_start(sb.Stage.VALID, 1)
    alone = brain.compute_objectives(
        brain.compute_forward(batch, sb.Stage.VALID), batch, sb.Stage.VALID
    )
    assert list(brain.measured) == batch.id
    for epoch, weight, joins in ((1, 0.3, True), (2, 0.3, True), (3, 0.3, False), (1, 0.0, False)):
        brain.hparams.epoch_counter.current, brain.hparams.ctc_weight = epoch, weight
        brain.modules.zero_grad()
        predictions = brain.compute_forward(batch, sb.Stage.TRAIN)
        together = brain.compute_objectives(predictions, batch, sb.Stage.TRAIN)
        assert together.isfinite() and torch.isclose(alone, together) == (not joins)
        together.backward()
        assert all((p.grad is not None) == joins for p in hparams["ctc_lin"].parameters())


@pytest.mark.parametrize(
    "options, error",
    [
        ({"num_decoder_layers": 1}, "--num_decoder_layers is 1, .* no attention decoder: leave it"),
        ({"lm_folder": "models/lm"}, "--lm_folder is models/lm, .* takes no language model"),
        ({"ctc_weight": 1.0}, r"--ctc_weight is 1\.0, but must be from 0 to below 1"),
    ],
)
def test_what_a_transducer_cannot_have_is_told(options, error):
    allowed = {"num_decoder_layers": 0, "lm_folder": None, "ctc_weight": 0.3}
    with pytest.raises(UserError, match=error):
        Transducer.prepare({**allowed, **options}, {}, {})
