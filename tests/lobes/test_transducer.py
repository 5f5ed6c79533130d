"""Transducers against all alignments: the loss, both searches, and streams in chunks."""

from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import run_python

from speechbrain_summarymixing.lobes.transducer import (
    BLANK,
    LSTMPredictor,
    StatelessPredictor,
    TransducerHead,
    transducer_loss,
)
from speechbrain_summarymixing.lobes.transducer_search import TransducerBeam, TransducerGreedy
from speechbrain_summarymixing.nnet.streaming import join_rows, put_rows, reset_rows, take_rows

D = 5
PREDICTORS = {
    "stateless": partial(StatelessPredictor, width=6, context=3),
    "one token": partial(StatelessPredictor, width=6, context=1),
    "lstm": partial(LSTMPredictor, width=6, num_layers=2),
}
SEEDS = st.integers(0, 2**32 - 1)


def head(predictor="stateless", vocab_size=3, seed=0):
    """One whose scores differ as those of a trained one."""
    torch.manual_seed(seed)
    made = TransducerHead(
        vocab_size, predictor=PREDICTORS[predictor], encoder_width=D, joint_width=8
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made.double().eval().requires_grad_(False)


def alignments(frames, tokens, most):
    """How many of the tokens each frame has, in all ways, with at most so many at one."""
    for counts in product(range(min(most, tokens) + 1), repeat=frames):
        if sum(counts) == tokens:
            yield counts


def log_probability(model, encoded, tokens, most):
    """Of tokens, the sum over their alignments with frames (T, D), each followed literally."""
    log_probs = model(encoded[None], torch.tensor([tokens], dtype=torch.long))[0].log_softmax(-1)
    ways = []
    for counts in alignments(len(encoded), len(tokens), most):
        total, said = 0.0, 0
        for frame, count in enumerate(counts):
            for token in tokens[said : said + count]:
                total, said = total + log_probs[frame, said, token], said + 1
            total = total + log_probs[frame, said, BLANK]
        ways.append(total)
    return torch.stack(ways).logsumexp(0)


def greedy_by_hand(model, encoded, most):
    found = []
    for number, frame in enumerate(encoded):
        for _ in range(most):
            predicted, _ = model.predictor(torch.tensor([[BLANK, *(e[0] for e in found)]]))
            log_probs = model.join(frame, predicted[0, -1]).log_softmax(-1)
            if log_probs.argmax() == BLANK:
                break
            found.append((int(log_probs.argmax()), number, float(log_probs.max())))
    return found


def searches(model, beam_size=4, most=2):
    return {
        "greedy": TransducerGreedy(model, max_symbols=most),
        "beam": TransducerBeam(model, beam_size=beam_size, max_symbols=most),
    }


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_loss_is_that_of_all_alignments_with_its_gradients(predictor):
    model = head(predictor).requires_grad_(True)
    encoded, tokens = torch.randn(4, 4, D).double(), torch.randint(1, 3, (4, 3))
    frames, said = (4, 3, 4, 1), (3, 2, 0, 1)
    for row, count in enumerate(said):
        tokens[row, count:] = 0
    literal = -sum(
        log_probability(model, encoded[i, :t], tokens[i, :u].tolist(), most=u)
        for i, (t, u) in enumerate(zip(frames, said))
    )
    lengths, tokens_lengths = torch.tensor(frames) / 4, torch.tensor(said) / 3
    loss = transducer_loss(model(encoded, tokens), tokens, lengths, tokens_lengths)
    torch.testing.assert_close(loss.double(), literal / 4, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    expected = torch.autograd.grad(literal / 4, weights)
    for found, wanted in zip(torch.autograd.grad(loss, weights), expected):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_padding_changes_neither_loss_nor_gradient():
    model = head("lstm").requires_grad_(True)
    encoded, tokens = torch.randn(2, 6, D).double(), torch.randint(1, 3, (2, 4))
    weights = list(model.parameters())

    def loss(row, frames, said):
        part, labels = encoded[row : row + 1, :frames], tokens[row : row + 1, :said]
        return transducer_loss(model(part, labels), labels, torch.ones(1), torch.ones(1))

    mean = (loss(0, 6, 4) + loss(1, 3, 2)) / 2
    together = transducer_loss(
        model(encoded, tokens), tokens, torch.tensor([1, 0.5]), torch.tensor([1, 0.5])
    )
    torch.testing.assert_close(together, mean)
    for found, wanted in zip(*(torch.autograd.grad(x, weights) for x in (together, mean))):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_an_utterance_without_tokens_has_a_loss():
    model, encoded = head(), torch.randn(1, 3, D).double()
    nothing = torch.zeros(1, 0, dtype=torch.long)
    loss = transducer_loss(model(encoded, nothing), nothing, torch.ones(1), torch.ones(1))
    torch.testing.assert_close(loss.double(), -log_probability(model, encoded[0], [], most=0))


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_the_best_of_all_sequences(predictor, seed):
    model, most, frames = head(predictor, seed=seed), 2, 3
    encoded = torch.randn(1, frames, D).double()
    every = [s for n in range(frames * most + 1) for s in product((1, 2), repeat=n)]
    literal = {s: float(log_probability(model, encoded[0], list(s), most)) for s in every}
    search = TransducerBeam(model, beam_size=len(every), max_symbols=most)
    _, state = search.step(encoded, search.start(1))
    scores = sorted(state.scores[0].tolist(), reverse=True)
    assert scores == pytest.approx(sorted(literal.values(), reverse=True))
    assert search(encoded, torch.ones(1))[0] == [list(max(literal, key=literal.get))]


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_search_takes_the_best_token_while_it_is_no_blank(predictor, seed):
    model = head(predictor, vocab_size=4, seed=seed)
    encoded, lengths = torch.randn(3, 8, D).double(), (8, 5, 1)
    search = TransducerGreedy(model, max_symbols=2)
    found, _ = search.step(encoded, search.start(3), torch.tensor(lengths))
    for row, frames, emissions in zip(encoded, lengths, found):
        by_hand = greedy_by_hand(model, row[:frames], most=2)
        assert [e[:2] for e in emissions] == [e[:2] for e in by_hand]
        assert [e[2] for e in emissions] == pytest.approx([e[2] for e in by_hand])
    assert any(found)


@pytest.mark.parametrize("kind", ["greedy", "beam"])
@settings(max_examples=15)
@given(st.sampled_from(sorted(PREDICTORS)), st.lists(st.integers(0, 6), max_size=6), SEEDS)
def test_a_stream_says_what_the_whole_says_whatever_the_others_do(kind, predictor, sizes, seed):
    model = head(predictor, vocab_size=6, seed=seed)
    frames, streams = sum(sizes), 3
    encoded = torch.randn(streams, frames, D).double()
    search = searches(model)[kind]
    whole = []
    for row in encoded:  # each alone
        told, state = search.step(row[None], search.start(1))
        whole.append(told[0] + search.rest(state)[0])
    _, state = search.step(torch.randn(streams, 4, D).double(), search.start(streams))
    state, heard = reset_rows(state, torch.ones(streams, dtype=torch.bool)), [[], [], []]
    for chunk in encoded.split(sizes, dim=1) if sizes else ():
        told, state = search.step(chunk, state)
        heard = [before + new for before, new in zip(heard, told)]
    heard = [told + rest for told, rest in zip(heard, search.rest(state))]
    assert [[e.token for e in row] for row in heard] == [[e.token for e in row] for row in whole]
    if kind == "greedy":
        assert [[e.frame for e in r] for r in heard] == [[e.frame for e in r] for r in whole]
    for row in heard:
        assert all(0 <= e.frame < frames and e.log_prob <= 0 for e in row)


@settings(max_examples=15)
@given(
    st.sampled_from(["greedy", "beam"]),
    st.lists(st.tuples(st.integers(1, 6), st.none() | st.integers(0, 9)), max_size=6),
    SEEDS,
)
def test_what_is_settled_stays(kind, pieces, seed):
    search = searches(head(vocab_size=6, seed=seed))[kind]
    state, known = search.start(2), [[], []]
    for size, count in pieces:
        told, state = search.step(torch.randn(2, size, D).double(), state)
        rests = search.rest(state)
        counts = [None if count is None else min(count, len(rests[0])), None]
        state = search.settle(state, counts)
        known = [before + new for before, new in zip(known, told)]
        known[0] += rests[0][: counts[0] or 0]
        rests[0] = rests[0][counts[0] or 0 :]
        assert search.rest(state) == rests
        frames = [[emission.frame for emission in row] for row in known]
        assert frames == [sorted(row) for row in frames]


def test_a_state_of_streams_that_differ_in_what_is_not_told():
    model = head("lstm", vocab_size=6, seed=4)
    search, encoded = searches(model)["beam"], torch.randn(3, 12, D).double()
    alone = [search(row[None], torch.ones(1))[0][0] for row in encoded]
    state, told = join_rows(search.start(1), search.start(2)), [[], [], []]
    for frame in range(12):  # each hears when the others do not
        for row in range(3):
            index = torch.tensor([row])
            new, one = search.step(encoded[index, frame : frame + 1], take_rows(state, index))
            state, told[row] = put_rows(state, index, one), told[row] + new[0]
    found = [new + rest for new, rest in zip(told, search.rest(state))]
    assert [[emission.token for emission in row] for row in found] == alone


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_streams_start_and_end_apart(kind):
    model = head("lstm", vocab_size=6, seed=4)
    search = searches(model)[kind]
    first, second, third = torch.randn(3, 12, D).double()
    alone = [search(x[None], torch.ones(1))[0][0] for x in (first, second[:5], third[:6])]
    # the second row ends after 5 frames and hears the third utterance in its place
    state = search.start(2)
    chunk = torch.stack((first[:6], second[:6]))
    told, state = search.step(chunk, state, torch.tensor([6, 5]))
    ended = told[1] + search.rest(state)[1]
    state = reset_rows(state, torch.tensor([False, True]))
    more, state = search.step(torch.stack((first[6:], third[:6])), state)
    heard = told[0] + more[0] + search.rest(state)[0], ended, more[1] + search.rest(state)[1]
    assert [[e.token for e in row] for row in heard] == alone
    assert any(alone) and max(e.frame for e in heard[0]) >= 6
    assert all(e.frame < 6 for e in heard[2])


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_of_a_batch_each_is_decoded_as_if_alone(kind):
    model = head(vocab_size=6, seed=3)
    encoded, lengths = torch.randn(3, 10, D).double(), torch.tensor([1.0, 0.7, 0.1])
    search = searches(model)[kind]
    tokens, frames, log_probs, nothing = search(encoded, lengths)
    for row, length, *found in zip(encoded, (10, 7, 1), tokens, frames, log_probs):
        alone = search(row[None, :length], torch.ones(1))
        assert found[:2] == [alone[0][0], alone[1][0]]
        assert found[2] == pytest.approx(alone[2][0])
    assert nothing is None and any(tokens)


def test_a_beam_of_one_token_more_is_never_less_probable():
    model = head("lstm", vocab_size=5, seed=2)
    encoded = torch.randn(1, 9, D).double()
    best = [
        search.step(encoded, search.start(1))[1].scores.max()
        for search in (TransducerBeam(model, beam_size=k, max_symbols=2) for k in (1, 4, 200))
    ]
    assert best[0] <= best[1] + 1e-9 and best[1] <= best[2] + 1e-9


def test_chunks_tell_what_all_hypotheses_have_before_the_end():
    model = head("lstm", vocab_size=5, seed=2)
    search = searches(model)["beam"]
    state, told = search.start(1), []
    for chunk in torch.randn(1, 60, D).double().split(5, dim=1):
        new, state = search.step(chunk, state)
        told.append(len(new[0]))
    assert sum(told[:-1]) > sum(told) / 2 and state.untold.size(2) < 60


@pytest.mark.parametrize("search", [TransducerGreedy, partial(TransducerBeam, beam_size=3)])
def test_the_python_of_the_recipe(search):
    search = search(head(), max_symbols=2)
    encoded = torch.randn(1, 40, D, dtype=torch.float64)
    names = run_python(
        "recipes/LibriSpeech/ASR/transducer/README.md", search=search, encoded=encoded
    )
    told, state = search.step(encoded, search.start(1))
    assert names["told"] == told[0] + search.rest(state)[0]
