import copy
from functools import partial

import pytest
import torch
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoderLayer
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.lobes.models.transformer.TransformerLM import TransformerLM
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.lobes.swap import (
    HuggingFaceSelfAttention,
    TorchSelfAttention,
    swap_self_attention,
)
from speechbrain_summarymixing.nnet.fastformer import Fastformer
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16
LAYERS = 2
make_mixer = partial(SummaryMixing, D)


def speechbrain(**options):
    defaults = {
        "d_model": D, "nhead": 2, "num_encoder_layers": LAYERS, "num_decoder_layers": 1,
        "d_ffn": 24, "csgu_linear_units": 24, "kernel_size": 1, "normalize_before": True,
        "causal": False,
    }  # fmt: skip
    return TransformerASR(30, D, **{**defaults, **options})


def torch_encoder(batch_first, **options):
    layer = nn.TransformerEncoderLayer(D, 2, 24, batch_first=batch_first, **options)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=batch_first)


def hugging_face(name, **options):
    transformers = pytest.importorskip("transformers", reason="swaps layers of transformers")
    wav2vec = {
        "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 24, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 6),
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "layerdrop": 0.0,
        "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    whisper = {
        "d_model": D, "encoder_layers": LAYERS, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "num_mel_bins": 8, "max_source_positions": 20, "vocab_size": 30, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        **{**(whisper if name == "Whisper" else wav2vec), **options}
    )
    return getattr(transformers, f"{name}Model")(config)


def run_speechbrain(model, x, lengths):
    return model.encode(x, lengths / x.size(1))


def run_torch(model, x, lengths):
    if model.layers[0].self_attn.batch_first:
        return model(x, src_key_padding_mask=padding(x, lengths))
    return model(x.transpose(0, 1), src_key_padding_mask=padding(x, lengths)).transpose(0, 1)


def run_hugging_face(model, x, lengths):
    mask = padding(x, lengths).logical_not()  # the encoder overwrites its input
    return model.encoder(x.clone(), attention_mask=mask).last_hidden_state


def padding(x, lengths):
    return torch.arange(x.size(1), device=x.device) >= lengths.unsqueeze(1)


stable = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
relative = {"attention_type": "RelPosMHAXL"}
HOSTS = {
    "transformer": (partial(speechbrain, encoder_module="transformer"), run_speechbrain),
    "transformer, relative": (
        partial(speechbrain, encoder_module="transformer", **relative), run_speechbrain
    ),
    "conformer": (partial(speechbrain, encoder_module="conformer", **relative), run_speechbrain),
    "branchformer": (
        partial(speechbrain, encoder_module="branchformer", **relative), run_speechbrain
    ),
    "torch, batch first": (partial(torch_encoder, True), run_torch),
    "torch, time first": (partial(torch_encoder, False, norm_first=True), run_torch),
    "wav2vec2": (partial(hugging_face, "Wav2Vec2"), run_hugging_face),
    "wav2vec2, stable": (partial(hugging_face, "Wav2Vec2", **stable), run_hugging_face),
    "hubert": (partial(hugging_face, "Hubert"), run_hugging_face),
    "hubert, stable": (partial(hugging_face, "Hubert", **stable), run_hugging_face),
}  # fmt: skip
every_host = pytest.mark.parametrize("build, run", HOSTS.values(), ids=HOSTS)


def swapped(build, mixer=make_mixer, seed=0):
    torch.manual_seed(seed)
    model = build().eval()
    assert swap_self_attention(model, mixer) == LAYERS
    return model


def mixers(model):
    return [module for module in model.modules() if isinstance(module, SummaryMixing)]


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
    assert swap_self_attention(model, partial(Fastformer, D, nhead=2)) == LAYERS
    x, lengths = torch.randn(2, 9, D, dtype=torch.double), torch.tensor([9, 5])
    before = run(model, x, lengths)
    assert swap_self_attention(model, make_mixer) == LAYERS
    assert len(mixers(model)) == LAYERS
    assert not any(isinstance(module, Fastformer) for module in model.modules())
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
    model = swapped(partial(speechbrain, **causal, **relative))
    x = torch.randn(2, 9, D)
    changed = torch.cat([x[:, :5], torch.randn(2, 4, D)], dim=1)
    lengths = torch.tensor([9, 9])
    before, after = run_speechbrain(model, x, lengths), run_speechbrain(model, changed, lengths)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_a_conformer_of_speechbrain_streams_as_it_encodes():
    conformer = {"encoder_module": "conformer", "kernel_size": 5, **relative}
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


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("as_bool", [True, False])
@torch.no_grad()
def test_torch_masks_mean_what_they_mean_to_the_mixer(batch_first, as_bool):
    torch.manual_seed(0)
    attention = TorchSelfAttention(make_mixer().eval(), batch_first=batch_first)
    x, lengths = torch.randn(3, 9, D), torch.tensor([9, 4, 7])
    causal, pad = torch.ones(9, 9).triu(1).bool(), padding(x, lengths)
    expected, _ = attention.mixer(x, attn_mask=causal, key_padding_mask=pad)
    if not as_bool:
        causal, pad = (torch.zeros(m.shape).masked_fill(m, -torch.inf) for m in (causal, pad))
    query = x if batch_first else x.transpose(0, 1)
    masks = {"attn_mask": causal, "is_causal": True, "need_weights": True}
    output, weights = attention(query, query, query, key_padding_mask=pad, **masks)
    torch.testing.assert_close(output if batch_first else output.transpose(0, 1), expected)
    assert weights is None
    for row, one in enumerate(x):  # unbatched
        output, _ = attention(one, one, one, key_padding_mask=pad[row], **masks)
        torch.testing.assert_close(output, expected[row])


@pytest.mark.parametrize("batch_first", [True, False])
@torch.no_grad()
def test_a_causal_torch_encoder_sees_no_future(batch_first):
    model = swapped(partial(torch_encoder, batch_first))
    time = 1 if batch_first else 0
    x = torch.randn(9, 9, D)
    changed = torch.cat([x.narrow(time, 0, 5), torch.randn_like(x.narrow(time, 5, 4))], dim=time)
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    for hint in (True, None):
        before, after = (model(y, mask=mask, is_causal=hint) for y in (x, changed))
        torch.testing.assert_close(before.narrow(time, 0, 5), after.narrow(time, 0, 5))
    with pytest.raises(ValueError, match="is_causal is True, but attn_mask is None"):
        model(x, is_causal=True)


def parts(model):
    """What a user can swap: all, and each layer by itself."""
    return {"whole": [model], "layers": list(model.layers), "first layer": [model.layers[0]]}


@pytest.mark.parametrize("part", ["whole", "layers", "first layer"])
@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"norm_first": True}])
@torch.no_grad()
def test_the_fast_path_of_torch_does_not_pass_by_the_mixer(part, options):
    torch.manual_seed(0)
    model = torch_encoder(True, dropout=0.0, **options)
    for module in parts(model)[part]:
        swap_self_attention(module, partial(SummaryMixing, D, dropout=0.0))
    x, lengths = torch.randn(3, 9, D), torch.tensor([9, 4, 7])
    masks = {"src_key_padding_mask": padding(x, lengths)}
    valid = ~masks["src_key_padding_mask"]
    for given in ({}, masks):
        expected, fast = model.train()(x, **given), model.eval()(x, **given)
        torch.testing.assert_close(fast[valid], expected[valid])
        for p in model.parameters():
            p.requires_grad_(False)
        with torch.enable_grad():
            torch.testing.assert_close(model(x, **given)[valid], expected[valid])


@torch.no_grad()
def test_a_nested_tensor_is_refused():
    model = torch_encoder(True).eval()
    swap_self_attention(model.layers[1], make_mixer)
    x = torch.randn(2, 9, D)
    with pytest.raises(ValueError, match="swap the whole encoder"):
        model(x, src_key_padding_mask=padding(x, torch.tensor([9, 4])))
    model.use_nested_tensor = False
    assert model(x, src_key_padding_mask=padding(x, torch.tensor([9, 4]))).shape == x.shape


def test_a_swapped_torch_encoder_exports():
    model = swapped(partial(torch_encoder, True))
    x = torch.randn(2, 9, D)
    masks = {"src_key_padding_mask": padding(x, torch.tensor([9, 4]))}
    program = torch.export.export(model, (x,), masks)
    torch.testing.assert_close(program.module()(x, **masks), model(x, **masks))


def test_an_encoder_can_be_built_of_a_swapped_layer():
    layer = nn.TransformerEncoderLayer(D, 2, 24, batch_first=True)
    assert swap_self_attention(layer, make_mixer) == 1
    with pytest.warns(UserWarning, match="enable_nested_tensor"):
        model = nn.TransformerEncoder(layer, 3)
    assert len({id(mixer) for mixer in mixers(model)}) == 3
    x = torch.randn(2, 9, D)
    assert model.eval()(x, src_key_padding_mask=padding(x, torch.tensor([9, 4]))).shape == x.shape


def test_a_whole_torch_transformer_keeps_its_decoder():
    model = nn.Transformer(D, 2, 2, 2, 24, batch_first=True)
    assert swap_self_attention(model, make_mixer) == 2
    assert all(isinstance(layer.self_attn, nn.MultiheadAttention) for layer in model.decoder.layers)
    assert model(torch.randn(2, 9, D), torch.randn(2, 4, D)).shape == (2, 4, D)


def test_torch_refuses_another_key():
    attention, x = TorchSelfAttention(make_mixer(), batch_first=True), torch.randn(2, 9, D)
    with pytest.raises(ValueError, match="another tensor than query"):
        attention(x, x.clone(), x)


@pytest.mark.parametrize("name", ["Wav2Vec2", "Hubert"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
@torch.no_grad()
def test_a_waveform_is_the_same_alone_and_in_a_batch(name, implementation):
    model = swapped(partial(hugging_face, name, **stable))
    model.config._attn_implementation = implementation  # each makes masks of another form
    waves, samples = torch.randn(3, 400), torch.tensor([400, 130, 255])
    mask = torch.arange(400) < samples.unsqueeze(1)
    together = model(waves, attention_mask=mask.long()).last_hidden_state
    spoilt = model(waves.masked_fill(~mask, 1e3), attention_mask=mask.long()).last_hidden_state
    frames = model._get_feat_extract_output_lengths(samples)
    for row, n in enumerate(samples):
        alone = model(waves[row : row + 1, :n]).last_hidden_state[0]
        assert alone.size(0) == frames[row]
        torch.testing.assert_close(together[row, : frames[row]], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(spoilt[row, : frames[row]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Wav2Vec2", "Hubert"])
def test_gradient_checkpointing_and_asking_for_attentions(name):
    model = swapped(partial(hugging_face, name)).train()
    model.gradient_checkpointing_enable()
    output = model(torch.randn(2, 400), output_attentions=True, output_hidden_states=True)
    assert not output.attentions or not any(torch.is_tensor(a) for a in output.attentions)
    assert len(output.hidden_states) == LAYERS + 1
    output.last_hidden_state.mul(torch.randn(D)).sum().backward()
    assert all(p.grad.any() for mixer in mixers(model) for p in mixer.parameters())


def test_only_the_encoder_of_whisper_is_swapped():
    model = swapped(partial(hugging_face, "Whisper")).train()
    assert mixers(model.decoder) == [] and len(mixers(model.encoder)) == LAYERS
    features = torch.randn(2, 8, 40)
    output = model(features, decoder_input_ids=torch.ones(2, 3, dtype=torch.long))
    output.last_hidden_state.mul(torch.randn(D)).sum().backward()
    assert all(p.grad.any() for mixer in mixers(model) for p in mixer.parameters())
    other = swapped(partial(hugging_face, "Whisper"), seed=1)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model.eval().encoder(features, output_attentions=True)
        assert torch.equal(other.encoder(features)[0], expected[0])


@pytest.mark.parametrize("num_outputs", [2, 3])
@torch.no_grad()
def test_every_form_of_hugging_faces_mask_is_padding(num_outputs):
    torch.manual_seed(0)
    attention = HuggingFaceSelfAttention(make_mixer().eval(), num_outputs=num_outputs)
    x, lengths = torch.randn(3, 9, D), torch.tensor([9, 4, 7])
    pad = padding(x, lengths)
    expected, _ = attention.mixer(x, key_padding_mask=pad)
    row = pad[:, None, None]
    additive = torch.zeros(row.shape).masked_fill(row, torch.finfo(torch.float32).min)
    forms = [~pad, (~pad).long(), (~pad).float(), ~row, additive]
    forms += [form.expand(3, 1, 9, 9) for form in (~row, additive)]
    for mask in forms:
        output, *rest = attention(x, attention_mask=mask, output_attentions=True)
        assert torch.equal(output, expected) and rest == [None] * (num_outputs - 1)


def test_hugging_face_refuses_what_a_mixer_cannot_do():
    attention, x = HuggingFaceSelfAttention(make_mixer(), num_outputs=2), torch.randn(2, 9, D)
    with pytest.raises(RuntimeError, match="takes padding only"):
        attention(x, attention_mask=torch.ones(2, 1, 9, 9).tril().bool())
    for shape in ((2, 4, 9, 9), (2, 9, 9), (9,)):
        with pytest.raises(ValueError, match="Tensor of shape .*, but must be a tensor of"):
            attention(x, attention_mask=torch.ones(shape))
    for name in ("layer_head_mask", "key_value_states"):
        with pytest.raises(ValueError, match="leave both at None"):
            attention(x, **{name: torch.ones(2)})


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
