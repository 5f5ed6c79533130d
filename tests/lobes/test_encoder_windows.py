"""Encoders that see no later frame, or no later chunk."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.models.transformer.Transformer import get_lookahead_mask
from speechbrain.lobes.models.transformer.TransformerASR import (
    EncoderWrapper,
    make_transformer_src_mask,
)
from speechbrain.nnet.attention import MultiheadAttention, RelPosMHAXL, RoPEMHA
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.mixers import LinearHyperMixing, NoMixing
from speechbrain_summarymixing.nnet import selective_summary_mixing, summary_mixing
from speechbrain_summarymixing.nnet.fastformer import Fastformer
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.streaming import state_bytes
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16
SUMMARIES = {
    "summary": partial(SummaryMixing, D),
    "heads": partial(SummaryMixing, D, nhead=4),
    "lite": partial(SummaryMixing, D, local_branch=False),
    "fast": partial(SummaryMixing, D, shared_projection=True),
    "selective": partial(SelectiveSummaryMixing, D, nhead=4, neighbours=4, summaries=2),
}
MIXERS = {
    **SUMMARIES,
    "regular attention": partial(MultiheadAttention, nhead=4, d_model=D),
    "relative attention": partial(RelPosMHAXL, num_heads=4, embed_dim=D),
    "rotary attention": partial(RoPEMHA, num_heads=4, embed_dim=D),
    "none": NoMixing,
}
SEES_ALL = {
    "decay": partial(SummaryMixing, D, decay=0.9),
    "Fastformer": partial(Fastformer, D, nhead=4),
    "HyperMixing": partial(LinearHyperMixing, D, 32, nhead=4),
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
every_summary = pytest.mark.parametrize("mixer", SUMMARIES.values(), ids=SUMMARIES)
every_encoder = pytest.mark.parametrize("encoder", ["branchformer", "conformer", "transformer"])


def model(mixer, encoder, **options):
    torch.manual_seed(0)
    widths = {"d_model": D, "nhead": 2, "d_ffn": 32, "csgu_linear_units": 24, "kernel_size": 5}
    options = {"num_encoder_layers": 2, "num_decoder_layers": 1, **widths, **options}
    return SummaryMixingASR(30, 12, token_mixer=mixer, encoder_module=encoder, **options).eval()


@every_encoder
@every_mixer
@settings(max_examples=4)
@given(frames=st.integers(2, 60), data=st.data())
def test_a_causal_encoder_sees_nothing_later(encoder, mixer, frames, data):
    net, x = model(mixer, encoder, causal=True), torch.randn(1, frames, 12)
    changed, seen = x.clone(), data.draw(st.integers(1, frames - 1))
    changed[:, seen:] += 1.0
    before, after = net.encode(x), net.encode(changed)
    torch.testing.assert_close(after[:, :seen], before[:, :seen])
    assert (after[:, seen] - before[:, seen]).abs().max() > 1e-3


@every_encoder
@every_mixer
@settings(max_examples=4)
@given(chunk=st.integers(1, 9), left=st.none() | st.integers(0, 3), data=st.data())
def test_a_chunk_sees_nothing_later(encoder, mixer, chunk, left, data):
    net, config = model(mixer, encoder), DynChunkTrainConfig(chunk, left)
    x, seen = torch.randn(1, 40, 12), chunk * data.draw(st.integers(1, 39 // chunk))
    changed = x.clone()
    changed[:, seen:] += 1.0
    before = net.encode(x, dynchunktrain_config=config)
    after = net.encode(changed, dynchunktrain_config=config)
    torch.testing.assert_close(after[:, :seen], before[:, :seen])
    assert (after[:, seen] - before[:, seen]).abs().max() > 1e-3


@every_encoder
@every_mixer
def test_left_context_ends_where_it_is_said_to(encoder, mixer):
    net, x = model(mixer, encoder, num_encoder_layers=1), torch.randn(1, 40, 12)
    changed = x.clone()
    changed[:, :12] += 1.0  # the first three chunks
    for left, same_from in ((0, 12 + 2), (1, 16 + 2), (2, 20 + 2)):  # the kernel reaches 2 back
        config = DynChunkTrainConfig(4, left)
        before = net.encode(x, dynchunktrain_config=config)
        after = net.encode(changed, dynchunktrain_config=config)
        torch.testing.assert_close(after[:, same_from:], before[:, same_from:])
    if mixer is not NoMixing:
        whole = [net.encode(y, dynchunktrain_config=DynChunkTrainConfig(4)) for y in (x, changed)]
        assert (whole[0] - whole[1])[:, 30:].abs().max() > 1e-4


@every_encoder
@every_mixer
@pytest.mark.parametrize("left", [None, 1])
@settings(max_examples=3)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=4), chunk=st.integers(1, 9))
def test_alone_and_in_any_batch(encoder, mixer, left, lengths, chunk):
    if left is not None and mixer is MIXERS["regular attention"]:
        pytest.skip("torch's attention is NaN where a frame of padding sees padding alone")
    net, longest = model(mixer, encoder), max(lengths)
    batch = torch.randn(len(lengths), longest, 12)
    relative = torch.tensor([n / longest for n in lengths])
    causal = model(mixer, encoder, causal=True)
    for encode in (
        partial(net.encode, dynchunktrain_config=DynChunkTrainConfig(chunk, left)),
        causal.encode,
    ):
        together = encode(batch, relative)
        for row, n in enumerate(lengths):
            alone = encode(batch[row : row + 1, :n], torch.ones(1))
            assert (together[row, :n] - alone[0]).abs().max() < 1e-4


@every_encoder
@every_summary
@pytest.mark.parametrize("left", [None, 0, 2])
def test_speechbrains_masks_are_recognised_as_windows(encoder, mixer, left, monkeypatch):
    net, x = model(mixer, encoder).encoder, torch.randn(2, 30, D)
    config = DynChunkTrainConfig(4, left)
    mask = make_transformer_src_mask(x, dynchunktrain_config=config)
    expected = net(x, dynchunktrain_config=config)[0]
    causal = net(x, src_mask=summary_mixing.Window())[0]
    by_product = [  # as on a GPU: the mask is not looked at
        layers_with(net, x, mask, config),
        layers_with(net, x, get_lookahead_mask(x), None),
    ]
    torch.testing.assert_close(by_product[0], expected)
    torch.testing.assert_close(by_product[1], causal)
    for module in (summary_mixing, selective_summary_mixing):  # no product with T x T
        monkeypatch.setattr(module, "allowed_frames", None, raising=False)
        monkeypatch.setattr(module, "attn_mask_mean", None, raising=False)
    assert torch.equal(net(x, src_mask=mask, dynchunktrain_config=config)[0], expected)
    assert torch.equal(net(x, src_mask=get_lookahead_mask(x))[0], causal)


def layers_with(encoder, x, mask, config):
    for layer in encoder.layers:
        x = layer(x, src_mask=mask, dynchunktrain_config=config)[0]
    return encoder.norm(x)


@every_encoder
@pytest.mark.parametrize("mixer", SEES_ALL.values(), ids=SEES_ALL)
def test_what_sees_the_whole_utterance_says_so(encoder, mixer):
    with pytest.raises(ValueError, match="whole"):
        model(mixer, encoder, causal=True).encode(torch.randn(1, 9, 12))
    with pytest.raises(ValueError, match="whole"):
        model(mixer, encoder).encode(
            torch.randn(1, 9, 12), dynchunktrain_config=DynChunkTrainConfig(4)
        )


def test_chunks_of_a_causal_encoder_are_refused():
    net = model(SUMMARIES["summary"], "conformer", causal=True)
    with pytest.raises(ValueError, match="chunk_size=4.*is causal"):
        net.encode(torch.randn(1, 9, 12), dynchunktrain_config=DynChunkTrainConfig(4))


@every_encoder
@every_summary
@pytest.mark.parametrize("window", ["causal", "chunks", "limited chunks"])
def test_an_hour_makes_no_square_tensor(encoder, mixer, window, largest_tensor):
    net, frames = model(mixer, encoder, causal=window == "causal"), 60 * 60 * 25
    config = {
        "causal": None,
        "chunks": DynChunkTrainConfig(16),
        "limited chunks": DynChunkTrainConfig(16, 4),
    }
    with torch.no_grad(), largest_tensor as largest:
        encoded = net.encode(torch.randn(1, frames, 12), dynchunktrain_config=config[window])
    assert encoded.isfinite().all()
    assert largest.elements <= 100 * frames


@every_encoder
@every_summary
@pytest.mark.parametrize("causal", [True, False])
def test_training_reaches_every_parameter_on_any_device(encoder, mixer, causal):
    config = None if causal else DynChunkTrainConfig(4, 2)
    net = model(mixer, encoder, causal=causal).train()
    tokens = torch.randint(1, 30, (2, 4))
    encoded, decoded = net(torch.randn(2, 9, 12), tokens, torch.ones(2), 0, config)
    (encoded.square().mean() + decoded.square().mean()).backward()
    silent = [n for n, p in net.encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    with FakeTensorMode(), torch.device("cuda"):
        net = model(mixer, encoder, causal=causal)
        src, tokens = torch.randn(2, 30, 12), torch.ones(2, 4, dtype=torch.long)
        encoded, _ = net(src, tokens, torch.ones(2), 0, config)
    assert encoded.device.type == "cuda"


def test_a_stream_does_not_go_on_after_a_partial_chunk():
    encoder = model(SUMMARIES["heads"], "branchformer").encoder
    context = encoder.make_streaming_context(DynChunkTrainConfig(8, None))
    encoder.forward_streaming(torch.rand(1, 16, 16), context)
    encoder.forward_streaming(torch.rand(1, 5, 16), context)
    with pytest.raises(ValueError, match="the 21 frames before end inside a chunk of 8"):
        encoder.forward_streaming(torch.rand(1, 8, 16), context)
    net = model(SUMMARIES["heads"], "conformer")
    context = net.make_streaming_context(DynChunkTrainConfig(8, None))
    net.encode_streaming(torch.rand(1, 5, 12), context)
    with pytest.raises(ValueError, match="the 5 frames before end inside a chunk of 8"):
        net.encode_streaming(torch.rand(1, 8, 12), context)


@every_encoder
@pytest.mark.parametrize("mixer", [*map(SUMMARIES.get, ("heads", "lite", "selective")), NoMixing])
@pytest.mark.parametrize("causal", [True, False])
@settings(max_examples=4)
@given(chunk=st.integers(1, 9), left=st.none() | st.integers(0, 3), data=st.data())
def test_speech_in_parts_is_encoded_as_the_whole(encoder, mixer, causal, chunk, left, data):
    net, x = model(mixer, encoder, causal=causal), torch.randn(2, 50, 12)
    config, streamed = DynChunkTrainConfig(chunk, left), []
    context, wrapper = net.make_streaming_context(config), EncoderWrapper(net)
    rest = x
    with torch.no_grad():
        while rest.size(1):
            take = data.draw(st.integers(1, 3)) * (1 if causal else chunk)
            streamed.append(wrapper.forward_streaming(rest[:, :take], context))
            rest = rest[:, take:]
        whole = net.encode(x, dynchunktrain_config=None if causal else config)
    torch.testing.assert_close(torch.cat(streamed, 1), whole, atol=1e-4, rtol=1e-4)


@every_encoder
@pytest.mark.parametrize("name", ["summary", "selective"])
def test_what_a_stream_keeps_does_not_grow(encoder, name):
    net = model(SUMMARIES[name], encoder)
    context, sizes = net.make_streaming_context(DynChunkTrainConfig(4, 2)), []
    for _ in range(8):
        net.encode_streaming(torch.randn(1, 8, 12), context)
        sizes.append(state_bytes(context.encoder_context.state))
    assert sizes[0] > 0 and len(set(sizes)) == 1


@every_encoder
def test_what_cannot_go_on_says_so(encoder):
    net = model(MIXERS["relative attention"], encoder)
    with pytest.raises(ValueError, match="RelPosMHAXL, which does not declare supports_streaming"):
        net.make_streaming_context(DynChunkTrainConfig(4))
    net = model(SEES_ALL["decay"], encoder)
    with pytest.raises(ValueError, match="SummaryMixing, which does not declare supports_stream"):
        net.make_streaming_context(DynChunkTrainConfig(4))


COMPILED = [
    ("branchformer", name, causal) for name in ("summary", "selective") for causal in (True, False)
]
COMPILED += [("conformer", "selective", False), ("transformer", "selective", False)]


@pytest.mark.parametrize(
    "encoder, name, causal",
    [COMPILED[0], *(pytest.param(*one, marks=pytest.mark.slow) for one in COMPILED[1:])],
)
def test_it_compiles_to_one_graph_for_all_lengths(encoder, causal, name):
    torch._dynamo.reset()
    config = None if causal else DynChunkTrainConfig(4, 2)
    net = model(SUMMARIES[name], encoder, num_encoder_layers=1, causal=causal)
    encode = partial(net.encode, dynchunktrain_config=config)
    compiled = torch.compile(encode, fullgraph=True, dynamic=True, backend="eager")
    for lengths in ([1.0, 0.5], [0.3, 1.0, 0.7]):
        src = torch.randn(len(lengths), 10 + 10 * len(lengths), 12)
        lengths = torch.tensor(lengths)
        torch.testing.assert_close(compiled(src, lengths), encode(src, lengths))
