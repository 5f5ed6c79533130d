import math
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.models.transformer.Transformer import PositionalEncoding
from speechbrain.lobes.models.transformer.TransformerASR import EncoderWrapper
from speechbrain.nnet.attention import MultiheadAttention, RelPosEncXL, RelPosMHAXL, RoPEMHA
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.mixers import LinearHyperMixing, NoMixing
from speechbrain_summarymixing.lobes.positions import AddSinePositions, RelativePositions
from speechbrain_summarymixing.nnet.fastformer import Fastformer
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16
MIXERS = {
    "summary": partial(SummaryMixing, D),
    "heads": partial(SummaryMixing, D, nhead=4),
    "lite": partial(SummaryMixing, D, local_branch=False),
    "fast": partial(SummaryMixing, D, shared_projection=True),
    "selective": partial(SelectiveSummaryMixing, D, nhead=4, neighbours=4),
    "regular attention": partial(MultiheadAttention, nhead=4, d_model=D),
    "decay": partial(SummaryMixing, D, decay=0.9),
    "relative attention": partial(RelPosMHAXL, num_heads=4, embed_dim=D),
    "rotary attention": partial(RoPEMHA, num_heads=4, embed_dim=D),
    "Fastformer": partial(Fastformer, D, nhead=4),
    "HyperMixing": partial(LinearHyperMixing, D, 32, nhead=4),
    "none": NoMixing,
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
every_encoder = pytest.mark.parametrize("encoder", ["branchformer", "conformer", "transformer"])


SMALL = {
    "d_model": D,
    "nhead": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 1,
    "d_ffn": 32,
    "csgu_linear_units": 24,
    "kernel_size": 5,
}


def model(mixer=MIXERS["summary"], **options):
    torch.manual_seed(0)
    options = {**SMALL, **options}
    return SummaryMixingASR(30, 12, token_mixer=mixer, **options).eval()


@every_encoder
@every_mixer
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_encoder_output_is_the_same_alone_and_in_any_batch(encoder, mixer, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    net, longest = model(mixer, encoder_module=encoder), max(lengths)
    batch = torch.randn(len(lengths), longest, 12, generator=generator)
    together = net.encode(batch, torch.tensor([n / longest for n in lengths]))
    for row, n in enumerate(lengths):
        alone = net.encode(batch[row : row + 1, :n], torch.ones(1))
        assert (together[row, :n] - alone[0]).abs().max() < 1e-4


@every_encoder
@every_mixer
def test_forward_encode_and_decode_agree(encoder, mixer):
    net = model(mixer, encoder_module=encoder)
    src, tgt = torch.randn(3, 20, 12), torch.randint(1, 30, (3, 6))
    lengths = torch.tensor([1.0, 0.5, 0.75])
    encoded, decoded = net(src, tgt, lengths)
    torch.testing.assert_close(net.encode(src, lengths), encoded)
    torch.testing.assert_close(EncoderWrapper(net)(src, lengths), encoded)
    prediction, _ = net.decode(tgt, encoded, torch.round(lengths * 20).int())
    torch.testing.assert_close(prediction, decoded)


@every_encoder
@every_mixer
def test_every_parameter_learns(encoder, mixer):
    net = model(mixer, encoder_module=encoder).train()
    encoded, decoded = net(torch.randn(2, 9, 12), torch.randint(1, 30, (2, 4)), torch.ones(2))
    (encoded.square().mean() + decoded.square().mean()).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # a decoder without padding has keys' biases that softmax cancels
    assert [n for n in silent if n.startswith("encoder.")] == []


@every_encoder
@pytest.mark.parametrize(
    "name", ["summary", "lite", "selective", "decay", "Fastformer", "HyperMixing"]
)
def test_an_hour_encodes_in_memory_that_grows_with_its_length(encoder, name, largest_tensor):
    net, frames = model(MIXERS[name], encoder_module=encoder), 60 * 60 * 25
    with torch.no_grad(), largest_tensor as largest:
        assert net.encode(torch.randn(1, frames, 12)).isfinite().all()
    assert largest.elements <= 100 * frames


def test_positions_equal_speechbrains_table_and_go_on_from_anywhere():
    add, zeros = AddSinePositions(8), torch.zeros(1, 50, 8)
    torch.testing.assert_close(add(zeros), PositionalEncoding(8, 50)(zeros))
    assert add.state_dict() == {}
    hour = add(torch.zeros(1, 90_000, 8))
    late = add(torch.zeros(2, 30, 8), start=torch.tensor([20, 89_970]))
    torch.testing.assert_close(late[0], add(zeros)[0, 20:], atol=1e-6, rtol=0)
    torch.testing.assert_close(late[1], hour[0, -30:], atol=1e-6, rtol=0)
    exact = math.sin(89_999 * 10_000 ** (-2 / 8))
    assert abs(hour[0, -1, 2].item() - exact) < 1e-6


@pytest.mark.parametrize("frames", [1, 2, 50])
def test_relative_positions_equal_speechbrains(frames):
    x, positions = torch.zeros(1, frames, 8), RelativePositions(8)
    expected = RelPosEncXL(8)
    torch.testing.assert_close(positions(x), expected(x))
    assert positions.state_dict().keys() == expected.state_dict().keys()
    # left and right alike: one day they may not be there (speechbrain#3070), then here neither
    assert expected(x).equal(expected(x).flip(1))


def test_layers_have_mixers_of_their_own_and_keep_their_initialisation():
    drawn = []

    def make():
        drawn.append(SummaryMixing(D))
        return drawn[-1]

    torch.manual_seed(1)
    before = []
    make_and_note = lambda: before.append(make().state_dict()) or drawn[-1]  # noqa: E731
    states = []

    def make_noted():
        mixer = make_and_note()
        states.append({k: v.clone() for k, v in mixer.state_dict().items()})
        return mixer

    net = model(make_noted)
    mixers = [layer.mha_layer for layer in net.encoder.layers]
    assert len({id(mixer) for mixer in mixers}) == 2
    for mixer, state in zip(mixers, states):
        for name, value in mixer.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_merge_is_an_mlp_for_summary_mixing_and_linear_for_attention():
    hidden = 24
    net = model(partial(SummaryMixing, D, summary_dims=(D, hidden), local_dims=(D, hidden)))
    first, second = (m for m in net.encoder.layers[0].merge_proj if hasattr(m, "weight"))
    assert (first.in_features, first.out_features, second.out_features) == (2 * D, hidden, D)
    net = model(MIXERS["regular attention"])
    assert isinstance(net.encoder.layers[0].merge_proj, torch.nn.Linear)
    assert isinstance(model(MIXERS["selective"]).encoder.layers[0].merge_proj, torch.nn.Linear)


def test_sine_positions_only_where_the_mixer_brings_none():
    def has_sine(net):
        return any(isinstance(m, AddSinePositions) for m in net.custom_src_module.layers)

    assert has_sine(model())
    assert not has_sine(model(positional_encoding=None))
    assert not has_sine(model(MIXERS["relative attention"]))
    assert not has_sine(model(MIXERS["rotary attention"]))


def test_without_a_mixer_a_branchformer_keeps_its_convolution_branch_alone():
    layer = model(NoMixing).encoder.layers[0]
    names = {name.split(".")[0] for name, _ in layer.named_parameters()}
    assert names == {"convolution_branch", "norm_conv"}


@every_encoder
def test_hidden_states_and_layer_drop(encoder):
    net = model(output_hidden_states=True, encoder_module=encoder)
    encoded, hidden = net.encode(torch.randn(1, 7, 12))
    assert len(hidden) == 3 and encoded.shape == (1, 7, D)
    dropped = model(layerdrop_prob=0.999999, encoder_module=encoder).train()
    dropped(torch.randn(1, 7, 12), torch.ones(1, 2, dtype=torch.long))[0].sum().backward()
    assert all(p.grad is None for p in dropped.encoder.layers.parameters())


def test_without_a_decoder_only_encode_works():
    net = model(num_decoder_layers=0)
    assert net.encode(torch.randn(1, 7, 12)).shape == (1, 7, D)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"mixer": SummaryMixing(D)}, TypeError, "SummaryMixing module, which all layers"),
        ({"mixer": "SummaryMixing"}, TypeError, "'SummaryMixing', but must be a callable"),
        ({"encoder_module": "rnn"}, ValueError, "'rnn', but must be"),
        ({"positional_encoding": "learnt"}, ValueError, "'learnt', but must be"),
        ({"kernel_size": 4}, ValueError, "kernel_size is 4"),
        ({"encoder_module": "contextnet"}, ValueError, "ContextNet has neither mixers"),
    ],
)
def test_wrong_options_raise(options, error, message):
    with pytest.raises(error, match=message):
        model(**options)


@every_encoder
@every_mixer
def test_no_tensor_is_made_on_the_wrong_device(encoder, mixer):
    if getattr(mixer, "func", None) in (RelPosMHAXL, RoPEMHA):
        pytest.skip("SpeechBrain keeps its positions from one FakeTensorMode to the next")
    with FakeTensorMode(), torch.device("cuda"):
        net = SummaryMixingASR(30, 12, token_mixer=mixer, encoder_module=encoder, **SMALL)
        src = torch.randn(2, 3000, 12)
        tgt = torch.ones(2, 4, dtype=torch.long)
        encoded, decoded = net(src, tgt, torch.ones(2))
    assert encoded.device.type == decoded.device.type == "cuda"


COMPILED = [("branchformer", name) for name in MIXERS if name != "rotary attention"]
COMPILED += product(("conformer", "transformer"), ("summary", "selective", "relative attention"))


@pytest.mark.parametrize("encoder, name", COMPILED)
def test_the_encoder_compiles_to_one_graph_for_all_lengths(encoder, name):
    torch._dynamo.reset()
    net = model(MIXERS[name], encoder_module=encoder, num_encoder_layers=1)
    compiled = torch.compile(net.encode, fullgraph=True, dynamic=True, backend="eager")
    for lengths in ([1.0, 0.5], [0.3, 1.0, 0.7]):
        src = torch.randn(len(lengths), 10 + 10 * len(lengths), 12)
        lengths = torch.tensor(lengths)
        torch.testing.assert_close(compiled(src, lengths), net.encode(src, lengths))
