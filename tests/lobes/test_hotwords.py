"""Hotwords: against all that can be said, literally scored."""

import itertools
import math
import re

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis.strategies import lists, sampled_from, text
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.sources import load_tokenizer
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam, TextScores
from speechbrain_summarymixing.lobes.ctc_search import CTCPrefixBeam
from speechbrain_summarymixing.lobes.hotwords import Hotwords, fewest, hotwords_of

ALL = {"beam_prune_logp": -1e9, "token_prune_min_logp": -1e9}
PIECES = ["<blk>", "<s>", "</s>", "▁a", "b", "▁ab"]


def literally(log_probs, words, weight):
    """(tokens, score) of all that can be said, by all alignments; the best first."""
    frames, total = len(log_probs), {}
    for path in itertools.product((0, 3, 4, 5), repeat=frames):
        said = tuple(t for i, t in enumerate(path) if t and (i == 0 or path[i - 1] != t))
        value = sum(float(log_probs[i, t]) for i, t in enumerate(path))
        total[said] = numpy.logaddexp(total.get(said, -math.inf), value)
    tokens = {"ab": 1, "abb": 2, "a": 1}  # ▁ab; ▁ab b; ▁a
    for said in total:
        spelt = "".join(PIECES[token] for token in said).replace("▁", " ").split()
        total[said] += sum(weight * tokens[word] for word in spelt if word in words)
    return sorted(total.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("seed, words", enumerate((["ab"], ["abb"], ["a", "abb"], ["abb", "ab"])))
def test_the_search_finds_what_is_best_with_the_words(seed, words):
    random = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(5, 6, generator=random)
    log_probs[:, 1:3] = -1e4
    log_probs = log_probs.log_softmax(1)
    options = {"blank_index": 0, "beam_size": 2000, "hotwords": words, "hotword_weight": 1.5, **ALL}
    found = CTCBeam(PIECES, **options).search(log_probs, nbest=8)
    expected = literally(log_probs, words, 1.5)[:8]
    assert [tuple(tokens) for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([s for _, s in expected], abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_wherever_they_end_find_what_the_whole_has(size):
    random = torch.Generator().manual_seed(size)
    encoded = torch.randn(1, 12, 6, generator=random)
    encoded[..., 1:3] = -30
    beam = CTCBeam(PIECES, blank_index=0, beam_size=4, hotwords="abb", hotword_weight=3.0)
    search = CTCPrefixBeam(torch.nn.Identity(), beam)
    found, state = [], search.start(1)
    for chunk in encoded.split(size, dim=1):
        told, state = search.step(chunk, state)
        found += told[0]
    found += search.rest(state)[0]
    assert [one.token for one in found] == beam.search(encoded[0].log_softmax(1))[0][0]


@given(lists(text("ab", min_size=1, max_size=5), min_size=1, max_size=4), text("ab", max_size=6))
def test_a_beginning_has_its_share_and_what_goes_on_otherwise_none(words, word):
    scores = Hotwords(words, ["", "", "", "▁", "a", "b"], weight=2.0)
    tokens = {one: 1 + len(one) for one in words}
    shares = [2.0 * tokens[one] * len(word) / len(one) for one in words if one.startswith(word)]
    expected = max(shares, default=0.0) if word else 0.0
    assert scores.score_partial_token(word) == pytest.approx(expected)
    assert scores.score(None, word)[0] == (2.0 * tokens[word] if word in words else 0.0)


def test_scores_of_n_grams_are_added():
    class Counts:
        order = 3

        def get_start_state(self):
            return 0

        def score(self, state, word, is_last_word=False):
            return -float(len(word)), state + 1

        def score_partial_token(self, word):
            return -10.0

    scores = Hotwords(["ab"], PIECES, weight=2.0, scorer=Counts())
    assert (scores.order, scores.get_start_state()) == (3, 0)
    assert scores.score(4, "ab") == (0.0, 5) and scores.score(4, "a") == (-1.0, 5)
    assert scores.score_partial_token("a") == -9.0 and scores.score_partial_token("b") == -10.0


def test_a_text_of_thousands_of_words_is_scored_whatever_is_known_of_it():
    class Words:
        def get_start_state(self):
            return 0

        def score(self, state, word, is_last_word=False):
            return 0.5 if is_last_word else len(word), state + 1

    words = ["ab" * (1 + n % 3) for n in range(3000)]
    scores = TextScores(Words())
    expected = sum(map(len, words[:-1])) + 0.5
    assert scores[" ".join(words), True] == (expected, 3000)
    assert scores[" ".join(words[:7]), False] == (sum(map(len, words[:7])), 7)


@given(text("abc", max_size=7), lists(sampled_from(["a", "b", "ab", "ba", "aba", "c"])))
def test_the_fewest_pieces(word, pieces):
    def literal(rest):
        fits = [1 + literal(rest[len(piece) :]) for piece in pieces if rest.startswith(piece)]
        return min(fits, default=math.inf) if rest else 0

    expected = literal(word)
    assert fewest(word, set(pieces)) == (None if expected == math.inf else expected)


def test_the_spelling_of_a_tokenizer_is_one_of_the_fewest_or_longer():
    tokenizer = load_tokenizer(EXAMPLE / "tokenizer.ckpt")
    pieces = {tokenizer.id_to_piece(token) for token in range(3, 80)}
    for word in " ".join(SAID.values()).split():
        assert 1 <= fewest("▁" + word, pieces) <= len(tokenizer.encode(word))


def test_words_come_from_a_file_a_text_or_a_list(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("ANNA\nBOB, CLARA\n")
    assert hotwords_of(str(path)) == hotwords_of(path) == ["ANNA", "BOB", "CLARA"]
    assert hotwords_of("ANNA,BOB  CLARA") == hotwords_of(["ANNA", "BOB", "CLARA"])


def test_what_cannot_be_is_told(capsys):
    command = ["transcribe", "--device=cpu", "--decoder=beam", str(EXAMPLE), FILES[0]]
    assert cli.main([*command, "--hotwords=ANNA,Éva", "--hotword-weight=3"]) == 1
    told = r"'Éva', which the model's tokens cannot spell \(they have no 'avÉ'\)"
    assert re.search(told, capsys.readouterr().err)
    model = load_model(EXAMPLE, "cpu")
    for options, told in (
        ({"hotwords": "none.txt"}, "none.txt: no such file"),
        ({"hotwords": ","}, "which has no words"),
        ({"hotwords": "ANNA", "hotword_weight": -1.0}, "--hotword-weight is -1.0.*above 0"),
        ({"hotword_weight": 3.0}, "give --hotwords too"),
        ({"hotwords": "ANNA", "decoder": "greedy"}, "--hotwords is ANNA.*give --decoder beam"),
    ):
        with pytest.raises(UserError, match=told):
            transcribe(model, FILES, **{"decoder": "beam", **options})
