"""Searches that one may choose: CTC's against all alignments, and what each model offers."""

import itertools
import json
import math
import sys
from functools import partial
from types import SimpleNamespace

import numpy
import pytest
import torch
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.decoding import Decoder
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam, SpelledScorer
from speechbrain_summarymixing.lobes.transducer import StatelessPredictor, TransducerHead
from speechbrain_summarymixing.lobes.transducer_search import TransducerBeam, TransducerGreedy

ALL = {"beam_prune_logp": -1e9, "token_prune_min_logp": -1e9}
PIECES = ["<unk>", "▁a", "b", "▁ab"]  # of which two texts are written in two ways


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


def summed(log_probs):
    """(tokens, log-probability) of all that can be said, by all alignments; the best first."""
    frames, size = log_probs.shape
    total = {}
    for path in itertools.product(range(size), repeat=frames):
        said = tuple(t for i, t in enumerate(path) if t and (i == 0 or path[i - 1] != t))
        value = sum(float(log_probs[i, t]) for i, t in enumerate(path))
        total[said] = numpy.logaddexp(total.get(said, -math.inf), value)
    return sorted(total.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("seed", range(6))
def test_the_beam_finds_the_sums_over_all_alignments(seed):
    random = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(5, 4, generator=random)).log_softmax(1)
    found = CTCBeam(PIECES, blank_index=0, beam_size=2000, **ALL).search(log_probs, nbest=5)
    expected = summed(log_probs)[:5]
    assert [tuple(tokens) for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=1e-5)


def test_of_a_sure_model_every_beam_finds_what_greedy_search_finds():
    random = torch.Generator().manual_seed(0)
    path = torch.randint(0, 4, (60,), generator=random)
    log_probs = (8.0 * torch.eye(4)[path]).log_softmax(1)
    greedy = [int(t) for i, t in enumerate(path) if t and (i == 0 or path[i - 1] != t)]
    for size in (1, 2, 10, 50):
        ((tokens, _),) = CTCBeam(PIECES, blank_index=0, beam_size=size).search(log_probs)
        assert tokens == greedy


def test_wider_beams_find_no_less_probable_texts_in_speech(model):
    scores = []
    for size in (1, 4, 16):
        decoder = Decoder(model, "beam", beam_size=size)
        wavs = model.load_audio(FILES[0]).unsqueeze(0)
        ((best, *_),) = decoder(wavs, torch.ones(1))
        scores.append(best.score)
    assert scores[0] <= scores[1] + 1e-6 <= scores[2] + 2e-6


def test_each_search_finds_the_words_and_the_joint_one_is_the_default(model):
    said = list(SAID.values())
    assert [t.text for t in transcribe(model, FILES)] == said
    assert [t.text for t in transcribe(model, FILES, decoder="joint", beam_size=3)] == said
    for options in ({"decoder": "greedy"}, {"decoder": "beam", "beam_size": 4}):
        found = list(transcribe(model, FILES, **options))
        right = [a == b for t, s in zip(found, said) for a, b in zip(t.text.split(), s.split())]
        assert sum(right) > 0.8 * len(right)
        assert all([w.word for w in t.words] == t.text.split() for t in found)


def test_greedy_search_runs_no_decoder(model, monkeypatch):
    monkeypatch.setattr(model.mods.decoder, "forward", None)
    assert next(iter(transcribe(model, FILES[1:2], decoder="greedy"))).text == SAID["code"]


def test_tokens_that_spell_nothing_leave_no_spaces(model, monkeypatch):
    """Of a token "▁" at a text's end, or by itself, sentencepiece keeps a space."""
    (heard,) = transcribe(model, FILES[:1], decoder="greedy")
    decode = model.tokenizer.decode_ids
    monkeypatch.setattr(model.tokenizer, "decode_ids", lambda tokens: f" {decode(tokens)}  ")
    (found,) = transcribe(model, FILES[:1], decoder="greedy")
    assert found.text == heard.text == " ".join(word.word for word in heard.words)


@pytest.mark.parametrize("search", ["beam", "joint"])
def test_the_best_hypotheses_are_told_with_scores_that_fall(search, capsys):
    command = ["transcribe", "--device=cpu", f"--decoder={search}", "--beam-size=5", "--nbest=3"]
    assert cli.main([*command, "--format=json", str(EXAMPLE), *FILES[:2]]) == 0
    for line in capsys.readouterr().out.splitlines():
        found = json.loads(line)
        (segment,) = found["segments"]
        texts, scores = zip(*((one["text"], one["score"]) for one in segment["nbest"]))
        assert segment["begin"] == 0.0 and found["text"] == texts[0] and len(set(texts)) == 3
        assert list(scores) == sorted(scores, reverse=True) and len(set(scores)) == 3


def test_the_joint_search_is_as_before_after_it_was_told_more(model):
    list(transcribe(model, FILES[:1], nbest=3, beam_size=4))
    assert model.transcribe_file(FILES[0]) == SAID["bus"]
    assert model.mods.decoder.beam_size != 4


def test_what_a_search_does_not_have_is_refused(model, tmp_path, monkeypatch):
    for options, told in (
        ({"decoder": "greedy", "nbest": 2}, "--nbest is 2"),
        ({"decoder": "greedy", "beam_size": 2}, "has no beam"),
        ({"beam_size": 0}, "must be 1 or more"),
        ({"ngram": "x.arpa"}, "give --decoder beam"),
        ({"decoder": "beam", "ngram": tmp_path / "x.arpa"}, "no such file"),
        ({"decoder": "beam", "beam_size": 2, "nbest": 3}, "--beam-size as large"),
    ):
        with pytest.raises(UserError, match=told):
            transcribe(model, FILES, **options)
    monkeypatch.setitem(sys.modules, "kenlm", None)
    (tmp_path / "x.arpa").touch()
    with pytest.raises(UserError, match=r"speechbrain-summarymixing\[ngram\]"):
        transcribe(model, FILES, decoder="beam", ngram=tmp_path / "x.arpa")


def test_the_language_model_is_told_words_and_each_of_them_once():
    """Of a unigram model the score of a text is that of its words, whatever tokens spell them."""
    told = {"a": -3.0, "b": -1.0, "ab": -0.5}
    scorer = SimpleNamespace(
        order=1,
        get_start_state=lambda: None,
        score=lambda state, word, last: (told.get(word, -9.0), None),
        score_partial_token=lambda word: 0.0,
    )
    for seed in range(4):
        random = torch.Generator().manual_seed(seed)
        log_probs = torch.randn(5, 4, generator=random).log_softmax(1)
        search = CTCBeam(PIECES, blank_index=0, beam_size=2000, **ALL)
        search.lm = SpelledScorer(scorer, PIECES)
        found = search.search(log_probs, nbest=8)
        acoustic = dict(summed(log_probs))
        for tokens, score in found:
            words = "".join(PIECES[token] for token in tokens).replace("▁", " ").split()
            expected = acoustic[tuple(tokens)] + sum(told.get(word, -9.0) for word in words)
            assert score == pytest.approx(expected, abs=1e-5)


ARPA = """\\data\\
ngram 1=5
ngram 2=1

\\1-grams:
-1\t<unk>
-99\t<s>\t0
-1\t</s>
{}

\\2-grams:
-0.1\t<s> ab

\\end\\
"""


def test_n_grams_choose_between_words_that_sound_alike(tmp_path):
    pytest.importorskip("kenlm", reason="n-grams need the extra [ngram]")
    path = tmp_path / "words.arpa"
    log_probs = torch.tensor([[0.1, 0.45, 0.1, 0.35], [0.6, 0.1, 0.2, 0.1]]).log()

    def best(a, ab):
        path.write_text(ARPA.format(f"{a}\ta\t0\n{ab}\tab\t0"))
        search = CTCBeam(PIECES, blank_index=0, beam_size=20, ngram=path, **ALL)
        return search.search(log_probs)[0][0]

    assert CTCBeam(PIECES, blank_index=0, beam_size=20, **ALL).search(log_probs)[0][0] == [1]
    assert best(-0.1, -6.0) == [1]
    assert best(-6.0, -0.1) in ([3], [1, 2])


def test_a_transducer_has_searches_of_its_own_which_tell_the_frames():
    torch.manual_seed(0)
    predictor = partial(StatelessPredictor, width=16)
    head = TransducerHead(30, predictor=predictor, encoder_width=24, joint_width=32).eval()
    torch.nn.init.normal_(head.output.weight)
    torch.nn.init.zeros_(head.output.bias)
    searches = {
        "greedy": TransducerGreedy(head, max_symbols=1),
        "beam": TransducerBeam(head, beam_size=3, max_symbols=1),
    }
    encoded, lengths = torch.randn(2, 12, 24), torch.tensor([1.0, 0.5])
    model = SimpleNamespace(
        device="cpu",
        encode_batch=lambda wavs, lengths: encoded,
        tokenizer=None,
        mods=SimpleNamespace(decoder=searches["beam"]),
        hparams=SimpleNamespace(greedy_search=searches["greedy"]),
    )
    for name in (None, "greedy", "beam"):
        tokens, frames, log_probs, _ = searches[name or "beam"](encoded, lengths)
        assert all(tokens)
        for found, *expected in zip(Decoder(model, name)(encoded, lengths), tokens, frames):
            assert found[0].tokens == expected[0]
            spelt = [f for t, f in zip(*expected) if t > 2]
            assert [(span.start, span.stop) for span in found[0].spans] == [
                (frame, frame + 1) for frame in spelt
            ]
    for options, told in (({"name": "joint"}, "beam and greedy"), ({"nbest": 2}, "best alone")):
        with pytest.raises(UserError, match=told):
            Decoder(model, **options)


def test_a_search_with_options_leaves_that_of_the_model_alone(model):
    own = model.mods.decoder
    before = own.beam_size, own.topk
    narrow, many = Decoder(model, "joint", beam_size=1), Decoder(model, "joint", nbest=3)
    assert (narrow.search.search.beam_size, many.search.search.topk) == (1, 3)
    assert (own.beam_size, own.topk) == before != (1, 3)
    said = [next(transcribe(model, FILES[:1], beam_size=size)) for size in (1, None)]
    assert [one.text for one in said] == 2 * [next(iter(SAID.values()))]
    assert (own.beam_size, own.topk) == before
