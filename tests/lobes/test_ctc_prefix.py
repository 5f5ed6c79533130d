import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from speechbrain.decoders.ctc import CTCPrefixScore
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.ctc_prefix import CTCPrefixes, CTCScorer

BLANK, EOS = 0, 2


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)  # SpeechBrain's scores have the default
    yield
    torch.set_default_dtype(torch.float32)


def log_probs_of(utterances, frames, vocabulary, peakiness, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (utterances, frames, vocabulary)
    return (peakiness * torch.randn(shape, generator=generator)).log_softmax(-1)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    beams=st.integers(1, 3),
    vocabulary=st.integers(3, 7),
    peakiness=st.sampled_from([1.0, 5.0, 20.0]),
    steps=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_scores_are_speechbrains(float64, **drawn):
    _compare(**drawn)


def _compare(lengths, beams, vocabulary, peakiness, steps, seed, tolerance=1e-9):
    log_probs = log_probs_of(len(lengths), max(lengths), vocabulary, peakiness, seed)
    lengths = torch.tensor(lengths)
    torch.manual_seed(seed)
    ours = CTCPrefixes(log_probs, lengths, blank_index=BLANK, eos_index=EOS)
    theirs = CTCPrefixScore(log_probs.clone(), lengths, BLANK, EOS)
    tokens, state, expected_state = torch.ones(len(lengths) * beams, dtype=torch.long), None, None
    for _ in range(min(steps, max(lengths))):  # beyond them SpeechBrain's fail
        scores, memory = ours.score(tokens, state)
        expected, their_memory = theirs.forward_step(tokens, expected_state)
        possible = their_memory[1] > -1e5  # others have not enough frames
        assert torch.equal(memory[2] > -1e5, possible)
        if state is not None:
            possible &= expected_state[1] > -1e5
        torch.testing.assert_close(
            scores[possible], expected[possible], atol=tolerance, rtol=tolerance
        )
        chosen = torch.randint(beams * vocabulary, (len(lengths), beams))
        chosen = torch.where(chosen % vocabulary < 3, chosen - chosen % vocabulary + 1, chosen)
        tokens = (chosen % vocabulary).flatten()  # 1 or more than 2: repetitions, and no controls
        state = ours.permute(memory, chosen)
        expected_state = theirs.permute_mem(their_memory, chosen)


def test_long_speech_is_scored_as_by_the_loop_over_frames(float64):
    _compare([900, 400], 2, 5, 20.0, 5, 0, tolerance=1e-8)


def test_scores_wait_for_no_host_and_make_no_tensor_on_the_wrong_device():
    with FakeTensorMode(), torch.device("cuda"):  # which has no values to wait for
        scorer = CTCScorer(torch.nn.Linear(8, 6), BLANK, EOS)
        scorer.reset_mem(torch.randn(2, 20, 8), torch.tensor([20, 15]))
        memory, tokens = None, torch.ones(6, dtype=torch.long)
        for _ in range(3):
            scores, memory = scorer.score(tokens, memory, None, None)
            memory = scorer.permute_mem(memory, torch.zeros(2, 3, dtype=torch.long))
    assert scores.shape == (6, 6) and scores.device.type == "cuda"
    assert {tensor.device.type for tensor in memory} == {"cuda"}
