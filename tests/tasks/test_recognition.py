"""What counts as an error of recognition, and by which search it is tested."""

from types import SimpleNamespace

import pytest
import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.decoders import ctc_greedy_decode

from speechbrain_summarymixing.data import sets
from speechbrain_summarymixing.data.tokens import train_tokenizer
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.training import experiment


@pytest.fixture
def measured(tmp_path):
    """A function that measures what was heard of what was said, by a unit of errors."""

    def measure(unit, said, heard, tokens):
        brain = ASR.__new__(ASR)
        brain.hparams = SimpleNamespace(error_unit=unit)
        path = tmp_path / f"{tokens}.model"
        brain.targets = train_tokenizer(said, path, vocab_size=tokens, token_type="char")
        brain.measured = {}
        keys = [str(index) for index in range(len(said))]
        hypotheses = [brain.targets.encode(text) for text in heard]
        brain.measure(SimpleNamespace(id=keys, wrd=said), hypotheses)
        rows = [SimpleNamespace(ID=key, duration=1.5) for key in keys]
        return brain.metric, brain.scores(rows), brain.errors(rows), brain.validation_metric()

    return measure


def test_characters_are_counted_where_words_are_not_apart(measured):
    said, heard = ["而对楼市", "一二线城市"], ["而楼市", "一二线市城"]
    metric, scores, errors, value = measured("character", said, heard, 12)
    assert metric == "CER" and errors == [("0", 1, 4), ("1", 2, 5)]
    assert scores["CER"] == value == pytest.approx(100 * 3 / 9)
    assert scores["CER_by_seconds"]["0-2 s"] == {"utterances": 2, "CER": scores["CER"]}
    assert "WER" not in scores and scores["CER_95"][0] <= scores["CER"] <= scores["CER_95"][1]


def test_words_are_counted_otherwise(measured):
    metric, scores, errors, value = measured("word", ["AB BA", "A"], ["AB B", "A"], 6)
    assert metric == "WER" and errors == [("0", 1, 2), ("1", 0, 1)]
    assert scores["WER"] == value == pytest.approx(100 / 3) and "CER" not in scores


@pytest.fixture
def begun(command, tmp_path):
    """A function that returns a task's brain before training, and a batch of its tests."""

    def begin(task, **options):
        hparams, run_opts = experiment.start(command(tmp_path / "out", **options))
        train, valid, tests = sets.manifests(hparams)
        brain = task(hparams["modules"], hparams["optimizer"], hparams, run_opts)
        brain.targets = task.prepare(hparams, train, {**valid, **tests})
        dataset, _ = brain.eval_loading("test", tests)
        brain.modules.eval()
        brain.hparams.normalize.train()
        batch = PaddedBatch([dataset[index] for index in range(3)])
        brain.features(batch, sb.Stage.TRAIN)  # learns their statistics
        brain.modules.eval()
        return brain, batch

    return begin


def hypotheses(brain, batch, **options):
    """What a test finds with other settings, as lists of numbers."""
    vars(brain.hparams).update(options)
    vars(brain).pop("_search", None)
    with torch.no_grad():
        found = brain.compute_forward(batch, sb.Stage.TEST)[-1]
    return [list(map(int, tokens)) for tokens in found]


def test_each_search_of_tests_is_that_of_transcribe(begun):
    brain, batch = begun(ASR)
    features, lengths = brain.features(batch.to("cpu"), sb.Stage.TEST)
    with torch.no_grad():
        frames = brain.modules.front_end(features, lengths)
        encoded = brain.modules.transformer.encode(frames, lengths)
        log_probs = brain.modules.ctc_lin(encoded).log_softmax(-1)
        joint = brain.hparams.test_search(encoded, lengths)[0]
    greedy = ctc_greedy_decode(log_probs, lengths, blank_id=0)
    pieces = [brain.targets.id_to_piece(token) for token in range(30)]
    beam = CTCBeam(pieces, blank_index=0, beam_size=3)
    counts = (lengths * log_probs.size(1)).round().int()
    beams = [beam.search(row[:count])[0][0] for row, count in zip(log_probs, counts)]
    joint = [list(map(int, tokens)) for tokens in joint]
    assert hypotheses(brain, batch) == hypotheses(brain, batch, test_decoder="joint") == joint
    assert hypotheses(brain, batch, test_decoder="greedy") == greedy
    assert hypotheses(brain, batch, test_decoder="beam", test_beam_size=3) == beams
    assert joint != greedy != beams != joint
    hparams = {**vars(brain.hparams), "test_decoder": None}
    for options, told in (
        ({"test_decoder": "viterbi"}, "--test_decoder is viterbi.*joint and greedy and beam"),
        ({"ngram": "x.arpa"}, "give --test_decoder beam"),
        ({"test_decoder": "beam", "ngram": "x.arpa"}, "--ngram is x.arpa: no such file"),
        ({"num_decoder_layers": 0, "test_decoder": "joint"}, "this model has greedy and beam"),
    ):
        with pytest.raises(UserError, match=told):  # by ASR.prepare, before training
            ASR.search({**hparams, **options}, brain.targets)


def test_without_a_decoder_the_default_is_greedy(begun):
    brain, batch = begun(ASR, num_decoder_layers=0, ctc_weight=1.0)
    default = hypotheses(brain, batch)
    assert default == hypotheses(brain, batch, test_decoder="greedy")
    assert default != hypotheses(brain, batch, test_decoder="beam")


def test_a_transducer_has_its_own(begun):
    brain, batch = begun(Transducer, yaml="hparams/sumformer_transducer.yaml")
    default = hypotheses(brain, batch)
    assert default == hypotheses(brain, batch, test_decoder="beam")
    brain.hparams.test_search.forward = None
    assert len(hypotheses(brain, batch, test_decoder="greedy")) == 3


def test_a_language_model_joins_in_the_joint_search_alone():
    hparams = {"ctc_weight": 0.3, "num_decoder_layers": 1, "lm_folder": "x"}
    with pytest.raises(UserError, match="--lm_folder is x.*--test_decoder is greedy"):
        ASR.prepare({**hparams, "test_decoder": "greedy"}, {}, {})
