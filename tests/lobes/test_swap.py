"""Self-attention swapped in whatever model: what all have in common, and SpeechBrain's."""

import copy
from functools import partial

import pytest
import torch
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoderLayer
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from swap_hosts import (
    HOSTS,
    LAYERS,
    RELATIVE,
    D,
    make_mixer,
    mixers,
    padding,
    run_speechbrain,
    speechbrain,
    swapped,
    torch_encoder,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.lobes.swap import (
    HuggingFaceSelfAttention,
    swap_self_attention,
)
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

every_host = pytest.mark.parametrize("build, run", HOSTS.values(), ids=HOSTS)


@every_host
@torch.no_grad()
def test_an_utterance_is_the_same_alone_and_in_a_batch_whatever_the_padding(build, run):
    model = swapped(build)
    x, lengths = torch.randn(3, 9, D), torch.tensor([9, 4, 7])
    spoilt = x.masked_fill(padding(x, lengths).unsqueeze(-1), 1e3)
    together, other = run(model, x, lengths), run(model, spoilt, lengths)
    for row, n in enumerate(lengths):
        alone = run(model, x[row : row + 1, :n], lengths[row : row + 1])
        torch.testing.assert_close(together[row, :n], alone[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other[row, :n], together[row, :n], rtol=1e-4, atol=1e-5)


@every_host
def test_training_reaches_every_mixer_parameter(build, run):
    model = swapped(build).train()
    assert len(mixers(model)) == LAYERS
    run(model, torch.randn(2, 9, D), torch.tensor([9, 5])).square().mul(
        torch.randn(2, 9, D)
    ).sum().backward()
    for mixer in mixers(model):
        assert [n for n, p in mixer.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_host
@torch.no_grad()
def test_state_dict_loads_into_another_swapped_model_and_a_copy_is_equal(build, run):
    model, other = swapped(build), swapped(build, seed=1)
    x, lengths = torch.randn(2, 9, D), torch.tensor([9, 5])
    expected = run(model, x, lengths)
    assert not torch.equal(run(other, x, lengths), expected)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(other, x, lengths), expected)
    assert torch.equal(run(copy.deepcopy(model), x, lengths), expected)


@every_host
@torch.no_grad()
def test_mixers_follow_the_type_and_mode_and_replace_mixers(build, run):
    model = build().double().eval()
    assert swap_self_attention(model, partial(SelectiveSummaryMixing, D)) == LAYERS
    x, lengths = torch.randn(2, 9, D, dtype=torch.double), torch.tensor([9, 5])
    before = run(model, x, lengths)
    assert swap_self_attention(model, make_mixer) == LAYERS
    assert len(mixers(model)) == LAYERS
    assert not any(isinstance(module, SelectiveSummaryMixing) for module in model.modules())
    assert not any(mixer.training for mixer in mixers(model))
    after = run(model, x, lengths)
    assert after.dtype == torch.double and not torch.equal(before, after)


@every_host
def test_mixers_follow_the_device(build, run):
    model = build().to("meta")
    swap_self_attention(model, make_mixer)
    assert {p.device.type for mixer in mixers(model) for p in mixer.parameters()} == {"meta"}


def torch_layer(batch_first, x, lengths):
    layer = nn.TransformerEncoderLayer(D, 2, 24, batch_first=batch_first)  # a copy loses its mode
    assert swap_self_attention(layer, make_mixer) == 1
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    return layer(x if batch_first else x.transpose(0, 1), mask, padding(x, lengths))


def hugging_face_attention(x, lengths):
    attention = HuggingFaceSelfAttention(make_mixer(), num_outputs=2)
    mask = ~padding(x, lengths)[:, None, None].expand(2, 1, 9, 9)
    return attention(x, attention_mask=mask)[0]


@pytest.mark.parametrize(
    "output",
    [
        partial(torch_layer, True),
        partial(torch_layer, False),
        hugging_face_attention,
        lambda x, lengths: run_speechbrain(swapped(HOSTS["transformer"][0]), x, lengths),
    ],
    ids=["torch, batch first", "torch, time first", "hugging face", "transformer"],
)
def test_no_tensor_is_made_on_the_wrong_device(output, monkeypatch):
    monkeypatch.setattr(nn.Module, "to", lambda self, **_: self)  # fails under FakeTensorMode
    with FakeTensorMode(), torch.device("cuda"):
        y = output(torch.randn(2, 9, D), torch.tensor([9, 5]))
    assert y.device.type == "cuda"


@torch.no_grad()
@pytest.mark.parametrize("encoder_module", ["transformer", "conformer"])
def test_a_causal_encoder_of_speechbrain_sees_no_future(encoder_module):
    causal = {"causal": True, "encoder_module": encoder_module, "kernel_size": 3}
    model = swapped(partial(speechbrain, **causal, **RELATIVE))
    x = torch.randn(2, 9, D)
    changed = torch.cat([x[:, :5], torch.randn(2, 4, D)], dim=1)
    lengths = torch.tensor([9, 9])
    before, after = run_speechbrain(model, x, lengths), run_speechbrain(model, changed, lengths)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_a_conformer_of_speechbrain_streams_as_it_encodes():
    conformer = {"encoder_module": "conformer", "kernel_size": 5, **RELATIVE}
    model = swapped(partial(speechbrain, **conformer))
    chunks, x = DynChunkTrainConfig(4, 1), torch.randn(2, 16, D)
    context = model.make_streaming_context(chunks)
    streamed = [model.encode_streaming(chunk, context) for chunk in x.split(4, dim=1)]
    whole = model.encode(x, torch.ones(2), dynchunktrain_config=chunks)
    torch.testing.assert_close(torch.cat(streamed, dim=1), whole)


@torch.no_grad()
def test_a_language_model_of_speechbrain_sees_no_future():
    torch.manual_seed(0)
    model = TransformerLM(30, D, nhead=2, num_encoder_layers=LAYERS, num_decoder_layers=0, d_ffn=24)
    assert swap_self_attention(model.eval(), make_mixer) == LAYERS
    tokens = torch.randint(1, 30, (2, 8))
    changed = torch.cat([tokens[:, :5], 30 - tokens[:, 5:]], dim=1)
    torch.testing.assert_close(model(tokens)[:, :5], model(changed)[:, :5])


@pytest.mark.parametrize("encoder_module", ["transformer", "conformer", "branchformer"])
def test_the_decoder_of_speechbrain_keeps_its_attention(encoder_module):
    torch.manual_seed(0)
    model = speechbrain(encoder_module=encoder_module)
    kept = list(model.decoder.modules())
    assert swap_self_attention(model, make_mixer) == LAYERS
    assert all(a is b for a, b in zip(kept, model.decoder.modules(), strict=True))
    encoded, decoded = model(torch.randn(2, 9, D), torch.randint(1, 30, (2, 4)), torch.ones(2))
    assert encoded.shape == (2, 9, D) and decoded.shape == (2, 4, D)


def test_the_decoder_of_this_project_keeps_its_attention():
    model = SummaryMixingASR(
        30, D, token_mixer=make_mixer, encoder_module="transformer", d_model=D, nhead=2,
        num_encoder_layers=LAYERS, num_decoder_layers=1, d_ffn=24,
    )  # fmt: skip
    kept = list(model.decoder.modules())
    assert any(isinstance(module, nn.MultiheadAttention) for module in kept)
    assert swap_self_attention(model, make_mixer) == LAYERS
    assert all(a is b for a, b in zip(kept, model.decoder.modules(), strict=True))


@torch.no_grad()
def test_the_output_is_that_of_a_model_built_around_the_mixer():
    options = dict(d_model=D, nhead=2, num_encoder_layers=LAYERS, num_decoder_layers=0, d_ffn=24)
    built = SummaryMixingASR(
        30, D, token_mixer=make_mixer, encoder_module="transformer", **options
    ).eval()
    model = swapped(
        partial(speechbrain, encoder_module="transformer", num_decoder_layers=0,
                activation=nn.GELU)
    )  # fmt: skip
    state = {k: v for k, v in built.state_dict().items() if k in model.state_dict()}
    assert all(name in state for name, _ in model.named_parameters())
    model.load_state_dict(state, strict=False)
    x, lengths = torch.randn(2, 9, D), torch.tensor([9, 5])
    ours, theirs = run_speechbrain(built, x, lengths), run_speechbrain(model, x, lengths)
    valid = ~padding(x, lengths)
    torch.testing.assert_close(ours[valid], theirs[valid])


one_mixer = SummaryMixing(D)
narrow = partial(SummaryMixing, 8)


@pytest.mark.parametrize(
    "makers, error, message",
    [
        ([lambda: None], TypeError, "returned None, but must return a new torch.nn.Module"),
        ([lambda: one_mixer] * 2, TypeError, "the same module twice"),
        ([make_mixer, narrow], ValueError, "d_model of the mixer is 8, .* width is 16"),
        ([partial(make_mixer, d_out=1)], ValueError, "d_out of the mixer is 1, .* width is 16"),
        ([make_mixer, lambda: 1 / 0], ZeroDivisionError, "division"),
    ],
)
@pytest.mark.parametrize("build", [speechbrain, partial(torch_encoder, True)])
def test_wrong_mixers_raise_and_leave_the_model_unchanged(build, makers, error, message):
    model, left = build(), iter(makers)
    before = list(model.modules())
    with pytest.raises(error, match=message):
        swap_self_attention(model, lambda: next(left)())
    assert all(a is b for a, b in zip(before, model.modules(), strict=True))


@pytest.mark.parametrize("mixer", [SummaryMixing(D), "SummaryMixing"])
def test_make_mixer_must_be_a_callable_that_is_no_module(mixer):
    with pytest.raises(TypeError, match="pass a callable|must be a callable"):
        swap_self_attention(torch_encoder(False), mixer)


def test_layers_may_be_swapped_for_no_mixing():
    layer = BranchformerEncoderLayer(D, 2, csgu_linear_units=24, attention_type="regularMHA").eval()
    x = torch.randn(2, 20, D)
    assert swap_self_attention(layer, NoMixing) == 1
    expected = layer(x)[0]
    layer.mha_layer = nn.Identity()
    layer.mha_layer.forward = lambda query, *args, **kwargs: (torch.zeros_like(query), None)
    torch.testing.assert_close(layer(x)[0], expected)


def test_models_without_known_layers_raise():
    with pytest.raises(ValueError, match="Linear holds no encoder layer .*Whisper"):
        swap_self_attention(nn.Linear(2, 2), make_mixer)
    with pytest.raises(ValueError, match="TransformerDecoder holds no encoder layer"):
        layer = nn.TransformerDecoderLayer(D, 2)
        swap_self_attention(nn.TransformerDecoder(layer, 1), make_mixer)
    with pytest.raises(TypeError, match="model is a dict"):
        swap_self_attention({}, make_mixer)


def test_layers_without_attention_raise():
    layer = BranchformerEncoderLayer(D, 2, csgu_linear_units=24, attention_type="RoPEMHA")
    with pytest.raises(ValueError, match="without a token mixer in its mha_layer"):
        swap_self_attention(layer, make_mixer)
    model = SummaryMixingASR(
        30, D, token_mixer=NoMixing, d_model=D, nhead=2, num_encoder_layers=1, d_ffn=24,
        num_decoder_layers=0, csgu_linear_units=24,
    )  # fmt: skip
    with pytest.raises(ValueError, match="MixerBranchformerLayer was built without"):
        swap_self_attention(model, make_mixer)
