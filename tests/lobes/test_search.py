import pytest
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CoverageScorer, CTCScorer, ScorerBuilder
from speechbrain.lobes.models.transformer.Transformer import TransformerDecoder
from speechbrain.nnet.linear import Linear
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.search import (
    BoundedByOwnLength,
    JointScorer,
    SteppingBeamSearcher,
)
from speechbrain_summarymixing.lobes.stepping_decoder import CrossAttention, DecoderState
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D, VOCABULARY = 16, 30
BOS, EOS = 1, 2
LENGTHS = torch.tensor([1.0, 0.4, 0.75])


class WholePrefixes(BoundedByOwnLength, S2STransformerBeamSearcher):
    pass


ATTENTION_AND_SUMMARY = pytest.mark.parametrize("summary_decoder", [False, True])


def model(seed=0, summary_decoder=True):
    torch.manual_seed(seed)
    small = {"nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 2, "d_ffn": 24}
    small.update(csgu_linear_units=24, kernel_size=3, summary_decoder=summary_decoder)
    net = SummaryMixingASR(
        VOCABULARY, 12, token_mixer=lambda: SummaryMixing(D), d_model=D, **small
    ).eval()
    with torch.no_grad():
        for parameter in net.decoder.parameters():  # so that the prefix has a say
            parameter.add_(0.3 * torch.randn_like(parameter))
    seq_lin, ctc_lin = (Linear(input_size=D, n_neurons=VOCABULARY) for _ in range(2))
    nn.init.normal_(seq_lin.w.weight, std=1.0)
    nn.init.normal_(ctc_lin.w.weight, std=1.0)
    return net, seq_lin, ctc_lin


def scorer(kind, ctc_lin, ours):
    if kind == "coverage":
        return ScorerBuilder(full_scorers=[CoverageScorer(VOCABULARY)], weights={"coverage": 5.0})
    if kind.startswith("ctc") and ours:
        return JointScorer(ctc_lin, ctc_weight=float(kind[3:]), blank_index=0, eos_index=EOS)
    if kind.startswith("ctc"):
        ctc = CTCScorer(ctc_lin, blank_index=0, eos_index=EOS)
        return ScorerBuilder(full_scorers=[ctc], weights={"ctc": float(kind[3:])})
    return None


def search(searcher, parts, beam, kind="none", lengths=LENGTHS, frames=24, **options):
    net, seq_lin, ctc_lin = parts
    generator = torch.Generator().manual_seed(beam)
    settings = {"min_decode_ratio": 0.0, "max_decode_ratio": 1.0, "temperature": 1.2}
    settings.update(using_eos_threshold=False, return_topk=True, topk=beam)
    settings.update(options)
    find = searcher(
        modules=[net, seq_lin], bos_index=BOS, eos_index=EOS, beam_size=beam,
        scorer=scorer(kind, ctc_lin, searcher is SteppingBeamSearcher), **settings,
    )  # fmt: skip
    with torch.no_grad():
        speech = torch.randn(len(lengths), frames, 12, generator=generator)
        return find(net.encode(speech, lengths), lengths)


def assert_same(found, expected, **tolerances):
    assert torch.equal(found[0], expected[0])  # tokens
    for numbers, expected_numbers in zip(found[1:], expected[1:]):  # lengths, scores, log_probs
        torch.testing.assert_close(numbers, expected_numbers, **tolerances)


@pytest.mark.parametrize("kind", ["none", "ctc0.4", "ctc1.0", "coverage"])
@pytest.mark.parametrize("beam", [1, 4, 10])
@pytest.mark.parametrize("seed", range(2))
@ATTENTION_AND_SUMMARY
def test_steps_find_what_whole_prefixes_find(kind, beam, seed, summary_decoder):
    parts = model(seed, summary_decoder)
    found = search(SteppingBeamSearcher, parts, beam, kind)
    expected = search(WholePrefixes, parts, beam, kind)
    assert_same(found, expected, atol=1e-4, rtol=1e-4)
    assert len({tuple(row) for row in found[0][:, 0].tolist()}) == len(LENGTHS)


@pytest.mark.parametrize(
    "options",
    [
        {"length_normalization": False},
        {"using_eos_threshold": True, "eos_threshold": 1.1},
        {"min_decode_ratio": 0.5},
        {"max_decode_ratio": 0.1},
        {"return_topk": False, "topk": 1},
    ],
    ids=str,
)
def test_options_of_the_search_keep_their_meaning(options):
    parts = model()
    found = search(SteppingBeamSearcher, parts, 4, "ctc0.4", **options)
    expected = search(WholePrefixes, parts, 4, "ctc0.4", **options)
    if options.get("return_topk") is False:
        assert found[0] == expected[0]
        torch.testing.assert_close(found[2], expected[2], atol=1e-4, rtol=1e-4)
    else:
        assert_same(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("seed", range(3))
def test_an_utterance_is_found_in_a_batch_as_speechbrain_finds_it_alone(seed, ratio):
    net, seq_lin, _ = model(seed)
    options = {
        "modules": [net, seq_lin], "bos_index": BOS, "eos_index": EOS, "beam_size": 4,
        "min_decode_ratio": 0.0, "max_decode_ratio": ratio, "using_eos_threshold": False,
    }  # fmt: skip
    find, theirs = SteppingBeamSearcher(**options), S2STransformerBeamSearcher(**options)
    torch.manual_seed(1)
    speech, frames = torch.randn(3, 24, 12), [24, 10, 18]
    with torch.no_grad():
        lengths = torch.tensor(frames) / 24
        tokens, _, scores, _ = find(net.encode(speech, lengths), lengths)
        for row, frame in enumerate(frames):
            encoded = net.encode(speech[row : row + 1, :frame], torch.ones(1))
            alone = theirs(encoded, torch.ones(1))
            assert alone[0][0] == tokens[row]
            torch.testing.assert_close(alone[2][0], scores[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["none", "coverage"])
def test_with_a_decoder_without_steps_it_is_speechbrains_searcher(kind):
    parts = model(summary_decoder=False)
    plain = TransformerDecoder(2, 2, 24, d_model=D, activation=nn.GELU, normalize_before=True)
    plain.eval().load_state_dict(parts[0].decoder.state_dict())
    parts[0].decoder = plain
    found = search(SteppingBeamSearcher, parts, 4, kind)
    assert_same(found, search(WholePrefixes, parts, 4, kind), atol=0.0, rtol=0.0)
    alike = {"lengths": torch.ones(3)}
    found = search(SteppingBeamSearcher, parts, 4, kind, **alike)
    theirs = search(S2STransformerBeamSearcher, parts, 4, kind, **alike)
    assert_same(found, theirs, atol=0.0, rtol=0.0)


@ATTENTION_AND_SUMMARY
def test_each_step_reads_one_token_and_the_memory_is_projected_once(monkeypatch, summary_decoder):
    parts, lengths, projected = model(summary_decoder=summary_decoder), [], []
    project = CrossAttention.project

    def counted(attention, memory, *mask):
        projected.append(tuple(memory.shape))
        return project(attention, memory, *mask)

    monkeypatch.setattr(CrossAttention, "project", counted)
    parts[0].decoder.layers[0].register_forward_pre_hook(
        lambda _, inputs: lengths.append(tuple(inputs[0].shape))
    )
    found = search(SteppingBeamSearcher, parts, 4)
    assert projected == 2 * [(3, 24, D)]  # once in each layer, for utterances and not for beams
    assert set(lengths) == {(12, 1, D)} and len(lengths) >= found[0].size(2) - 1


@ATTENTION_AND_SUMMARY
def test_a_step_waits_for_no_host_and_makes_no_tensor_on_the_wrong_device(summary_decoder):
    with FakeTensorMode(), torch.device("cuda"):  # which has no values to wait for
        net, seq_lin, _ = model(summary_decoder=summary_decoder)
        find = SteppingBeamSearcher(
            modules=[net, seq_lin], bos_index=BOS, eos_index=EOS, beam_size=3,
            min_decode_ratio=0.0, max_decode_ratio=1.0,
        )  # fmt: skip
        memory, tokens = None, torch.ones(6, dtype=torch.long)
        for _ in range(3):
            log_probs, memory, weights = find.forward_step(
                tokens, memory, torch.randn(6, 24, D), torch.full((6,), 20)
            )
            memory = find.permute_mem(memory, torch.arange(6))
    assert isinstance(memory, DecoderState) and memory.tokens == 3
    assert log_probs.shape == (6, VOCABULARY) and weights.shape == (6, 24)
    tensors = (log_probs, weights, *memory.past[0], *memory.memories[0])
    assert {tensor.device.type for tensor in tensors} == {"cuda"}


def test_speech_that_is_too_short_for_a_token_gets_one_step():
    parts = model()
    hypotheses, _, scores, _ = search(SteppingBeamSearcher, parts, 3, max_decode_ratio=0.01)
    assert hypotheses.size(-1) <= 1 and scores.isfinite().all()
