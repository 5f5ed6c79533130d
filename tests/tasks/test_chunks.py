"""Training on dynamic chunks, tests with chunks, and recognisers without a decoder."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from speechbrain.utils.metric_stats import ErrorRateStats
from tiny import SMALL

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple
from speechbrain_summarymixing.tasks import chunks
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.understanding import Understanding
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import load_hyperparams

HPARAMS = Path(__file__).parents[2] / "hparams"
KEYS = {
    "seed": 1, "chunk_frames": [8, 32], "chunk_probability": 0.6, "left_chunks": [2, 16],
    "left_chunks_probability": 0.75, "test_chunks": None,
}  # fmt: skip


# ---- what is drawn


def test_the_seed_the_epoch_and_the_ids_decide_and_the_generator_goes_on_as_before():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)

    def drawn(seed=1, epoch=1, last="b"):
        hparams = {**KEYS, "seed": seed}
        return [chunks.drawn_chunks(hparams, epoch, [str(n), last]) for n in range(30)]

    draws = [drawn(), drawn(seed=2), drawn(epoch=2), drawn(last="c")]
    assert drawn() == draws[0]
    assert all(a != b for index, a in enumerate(draws) for b in draws[:index])
    assert torch.rand(3).equal(expected)


def test_draws_are_within_their_bounds_and_as_frequent_as_asked():
    drawn = [chunks.drawn_chunks(KEYS, epoch, "u") for epoch in range(2000)]
    chunked = [config for config in drawn if config is not None]
    limited = [c.left_context_size for c in chunked if c.left_context_size is not None]
    assert {c.chunk_size for c in chunked} == set(range(8, 33))
    assert set(limited) == set(range(2, 17))
    # five deviations of a binomial
    assert len(chunked) / 2000 == pytest.approx(0.6, abs=0.055)
    assert len(limited) / len(chunked) == pytest.approx(0.75, abs=0.063)


@pytest.mark.parametrize(
    "change, left, chunked",
    [
        ({"chunk_frames": None}, {None}, 0),
        ({"chunk_probability": 0.0}, {None}, 0),
        ({"chunk_probability": 1.0, "left_chunks": None}, {None}, 50),
        ({"chunk_probability": 1.0, "left_chunks_probability": 0.0}, {None}, 50),
        ({"chunk_probability": 1, "left_chunks_probability": 1, "left_chunks": [0, 0]}, {0}, 50),
    ],
)
def test_the_ends_of_what_can_be_asked_for(change, left, chunked):
    drawn = [chunks.drawn_chunks({**KEYS, **change}, epoch, "u") for epoch in range(50)]
    found = [config for config in drawn if config is not None]
    assert len(found) == chunked
    assert {config.left_context_size for config in found} <= left


# ---- what is refused before anything is trained


@pytest.mark.parametrize(
    "key, value, rule",
    [
        ("chunk_frames", 8, "two whole numbers"),
        ("chunk_frames", [8], "two whole numbers"),
        ("chunk_frames", [8, 16.5], "two whole numbers"),
        ("chunk_frames", [True, 16], "two whole numbers"),
        ("chunk_frames", [0, 16], "from 1 on"),
        ("chunk_frames", [32, 8], "the lower one first"),
        ("left_chunks", [-1, 4], "from 0 on"),
        ("left_chunks", "all", "two whole numbers"),
        ("chunk_probability", 1.5, "0 to 1"),
        ("left_chunks_probability", -0.1, "0 to 1"),
        ("test_chunks", [16, 4], "a list of"),
        ("test_chunks", [[16]], "a list of"),
        ("test_chunks", [[0, None]], "a list of"),
        ("test_chunks", [[16, -1]], "a list of"),
        ("test_chunks", 16, "a list of"),
    ],
)
def test_a_wrong_value_is_told_by_its_key(key, value, rule):
    with pytest.raises(UserError) as told:
        chunks.check_chunks({**KEYS, key: value})
    assert f"--{key} is {value}" in str(told.value).replace("'", "") and rule in str(told.value)


def small(yaml, tmp_path, **options):
    return load_hyperparams(
        HPARAMS / f"{yaml}.yaml", {**read(SMALL), "output_folder": str(tmp_path), **options}
    )


def read(options):
    return {key: yaml.safe_load(str(value)) for key, value in options.items()}


@pytest.mark.parametrize(
    "system, options",
    [
        ("branchformer_hypermixer", {}),
        ("branchformer_fastformer", {}),
        ("sumformer_decay", {}),
        ("contextnet", {"front_end_channels": []}),
        ("sumformer", {"causal": True}),
    ],
)
@pytest.mark.parametrize("key, value", [("chunk_frames", [8, 32]), ("test_chunks", [[16, None]])])
def test_an_encoder_that_always_sees_all_says_so_at_once(system, options, key, value, tmp_path):
    hparams = small(system, tmp_path, **options)
    chunks.check_chunks(hparams)
    with pytest.raises(UserError, match=rf"--{key} is .* takes no chunks .*sumformer_streaming"):
        chunks.check_chunks({**hparams, key: value})


@pytest.mark.parametrize("key, value", [("ctc_weight", 0.5), ("lm_folder", "x")])
def test_what_has_no_meaning_without_a_decoder_is_refused(key, value):
    hparams = {"num_decoder_layers": 0, "ctc_weight": 1.0, "lm_folder": None, key: value}
    with pytest.raises(UserError, match=f"--{key} is {value}.*--num_decoder_layers"):
        ASR.prepare(hparams, {}, {})


def test_understanding_needs_a_decoder():
    hparams = {"num_decoder_layers": 0, "ctc_weight": 1.0, "lm_folder": None}
    with pytest.raises(UserError, match="--num_decoder_layers is 0.*understanding"):
        Understanding.prepare(hparams, {}, {})


# ---- what training and tests see


@pytest.fixture
def seen(monkeypatch):
    """The chunks of each call of the encoder, by whether it trained."""
    calls, encode = {True: [], False: []}, SummaryMixingASR._encode

    def noted(self, src, wav_len, dynchunktrain_config):
        calls[self.training].append((tuple(src.shape[:2]), dynchunktrain_config))
        return encode(self, src, wav_len, dynchunktrain_config)

    monkeypatch.setattr(SummaryMixingASR, "_encode", noted)
    return calls


def test_systems_of_a_seed_see_the_same_and_validation_sees_all(command, seen, tmp_path):
    runs = []
    for name in ("sumformer_streaming", "conformer_attention_streaming"):
        options = {"num_decoder_layers": 0, "number_of_epochs": 1, "test_chunks": "[[4, 1]]"}
        experiment.run(command(tmp_path / name, yaml=HPARAMS / f"{name}.yaml", **options), ASR)
        runs.append((list(seen[True]), list(seen[False])))
        for calls in seen.values():
            calls.clear()
    (trained, evaluated), (others, _) = runs
    assert trained == others
    configs = [config for _, config in trained]
    assert None in configs and len({c.chunk_size for c in configs if c is not None}) >= 3
    # the check before training, the validations and the test, then the test with chunks
    first, *rest = [config for _, config in evaluated]
    assert first == DynChunkTrainConfig(1, 1)
    assert rest[:-1] == [None] * len(rest[:-1]) and rest[-1] == DynChunkTrainConfig(4, 1)


@pytest.mark.parametrize("layers", [0, 1])
def test_what_tests_measure_with_chunks_is_what_the_exported_model_says(
    layers, command, noises, tmp_path, monkeypatch
):
    heard, measure = {}, ASR.measure  # by the chunks, then by the utterance

    def noted(self, batch, hypotheses):
        heard.setdefault(str(self._test_chunks), {}).update(zip(batch.id, hypotheses))
        return measure(self, batch, hypotheses)

    monkeypatch.setattr(ASR, "measure", noted)
    # a learning rate of nothing: weights as they were made say much, and other things with chunks
    options = {
        "num_decoder_layers": layers, "ctc_weight": 1.0, "chunk_frames": "[2, 8]", "lr": 1e-9,
        "test_chunks": "[[8, null], [2, null], [2, 1]]", "number_of_epochs": 1, "d_model": 32,
    }  # fmt: skip
    experiment.run(command(tmp_path, **options), ASR)
    scores = json.loads((tmp_path / "results.json").read_text())["test"]["test"]
    assert [(c["chunk_ms"], c["left_ms"]) for c in scores["chunks"]] == [
        (320, None), (80, None), (80, 80),
    ]  # fmt: skip
    model = load_model(tmp_path / "pretrained", "cpu")
    assert isinstance(model, EncoderASR) == (layers == 0)
    configs = [None, *(DynChunkTrainConfig(*c) for c in ((8, None), (2, None), (2, 1)))]
    measured = [scores["WER"], *(c["WER"] for c in scores["chunks"])]
    said = [decoded(model, noises / "test.csv", config) for config in configs]
    for config, (tokens, errors), error in zip(configs, said, measured):
        assert tokens.items() <= heard[str(config)].items()  # which has validation's too
        assert errors == pytest.approx(error)
    assert all(tokens != said[0][0] for tokens, _ in said[1:])
    assert all(c["WER_95"][0] <= c["WER"] <= c["WER_95"][1] for c in scores["chunks"])
    card = (tmp_path / "pretrained/README.md").read_text()
    assert f"| WER on test, chunks of 80 ms, all of the past | {measured[2]:.2f}% |" in card
    assert f"| WER on test, chunks of 80 ms, 80 ms before them | {measured[3]:.2f}% |" in card
    told = {key: getattr(model.hparams, key) for key in chunks.TOLD}
    assert told == {
        "chunk_frames": [2, 8], "left_chunks": None,
        "test_chunks": [[8, None], [2, None], [2, 1]],
    }  # fmt: skip


def decoded(model, file, config):
    """The tokens and the word error rate of an exported model whose encoder sees chunks."""
    with open(file, newline="") as rows:
        rows = list(csv.DictReader(rows))
    hparams = model.hparams
    whole = hparams.compute_features.samples
    waveforms = [pad_to_multiple(read_audio(row["wav"], 16000), whole) for row in rows]
    wavs, lengths = batch_pad_right(waveforms)
    with torch.no_grad():
        features = hparams.normalize(hparams.compute_features(wavs, lengths), lengths)
        frames = hparams.front_end(features, lengths)
        encoded = hparams.transformer.encode(frames, lengths, dynchunktrain_config=config)
        if isinstance(model, EncoderASR):
            tokens = ctc_greedy_decode(hparams.ctc_lin(encoded), lengths, blank_id=0)
        else:
            tokens = hparams.test_search(encoded, lengths)[0]
    tokens = {row["ID"]: list(map(int, heard)) for row, heard in zip(rows, tokens)}
    said = [model.tokenizer.decode(heard).split() for heard in tokens.values()]
    stats = ErrorRateStats()
    stats.append(list(tokens), said, [row["wrd"].split() for row in rows])
    return tokens, stats.summarize("WER")


# ---- the export of a recogniser without a decoder


def test_a_recogniser_without_a_decoder_is_used_as_any_other(command, noises, tmp_path):
    options = {"num_decoder_layers": 0, "ctc_weight": 1.0, "lr": 1e-9, "number_of_epochs": 1}
    experiment.run(command(tmp_path, **options), ASR)
    assert not any(
        "decoder" in name
        for name in torch.load(tmp_path / "pretrained/model.ckpt", weights_only=True)
    )
    files = sorted(map(str, noises.glob("test-*.flac")))
    loaded = EncoderASR.from_hparams(source=str(tmp_path / "pretrained"))
    said = list(transcribe(load_model(tmp_path / "pretrained", "cpu"), files))
    assert [transcript.text for transcript in said] == [loaded.transcribe_file(f) for f in files]
    assert any(transcript.words for transcript in said)
    for transcript in said:
        assert " ".join(word.word for word in transcript.words) == transcript.text.strip()
        assert all(0 <= word.confidence <= 1 for word in transcript.words)
        assert all(0 <= word.begin < word.end for word in transcript.words)
    beam = transcribe(load_model(tmp_path / "pretrained", "cpu"), files, decoder="beam", nbest=2)
    assert all(len(s["nbest"]) == 2 for transcript in beam for s in transcript.segments)
    with pytest.raises(UserError, match="this model has greedy and beam"):
        transcribe(load_model(tmp_path / "pretrained", "cpu"), files, decoder="joint")
