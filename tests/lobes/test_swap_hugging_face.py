"""Self-attention swapped in Hugging Face's models: speech, images and text."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.attention import MultiheadAttention
from swap_hosts import LAYERS, STABLE, D, hugging_face, make_mixer, mixers, padding, swapped

from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.lobes.swap import (
    HuggingFaceSelfAttention,
    swap_self_attention,
)


@pytest.mark.parametrize("name", ["Wav2Vec2", "Hubert"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
@torch.no_grad()
def test_a_waveform_is_the_same_alone_and_in_a_batch(name, implementation):
    model = swapped(partial(hugging_face, name, **STABLE))
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
    for name in ("head_mask", "layer_head_mask", "key_value_states", "encoder_hidden_states"):
        with pytest.raises(ValueError, match=f"{name} is given, .*: leave it at None"):
            attention(x, **{name: torch.ones(2)})
    for name in ("cache", "past_key_values", "past_key_value", "layer_past"):
        with pytest.raises(ValueError, match=f"{name} is given, .* use_cache=False"):
            attention(x, **{name: object()})


GPT = partial(hugging_face, "GPT2")
DECODER = partial(hugging_face, "Bert", is_decoder=True)
CAUSAL_TEXT = {"gpt2": GPT, "bert as a decoder": DECODER}


def weights(model):
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "name, gone",
    [
        ("ViT", "attention."),
        ("Bert", "attention.self. attention.output.dense."),
        ("Roberta", "attention.self. attention.output.dense."),
        ("GPT2", ".attn."),
    ],
)
def test_attention_goes_with_its_projections_and_the_rest_stays(name, gone):
    before, after = weights(hugging_face(name)), weights(swapped(partial(hugging_face, name)))
    left = {n for n in before if any(part in n for part in gone.split())}
    assert left and before.keys() - after.keys() == left
    mixer = weights(make_mixer())
    new = {n: shape for n, shape in after.items() if n not in before}
    assert len(new) == LAYERS * len(mixer)
    assert {(n.partition("mixer.")[2], shape) for n, shape in new.items()} == set(mixer.items())
    assert {n: after[n] for n in before.keys() - left} == {
        n: before[n] for n in before.keys() - left
    }


def test_an_image_is_seen_by_its_class_token_from_all_patches_and_alone():
    model = swapped(partial(hugging_face, "ViT")).double()
    images = torch.randn(2, 3, 12, 12, dtype=torch.double, requires_grad=True)
    output = model(images).last_hidden_state
    assert output.shape == (2, 10, D)
    torch.testing.assert_close(model(images[1:]).last_hidden_state, output[1:])
    output[0, 0].mul(torch.randn(D)).sum().backward()
    patches = images.grad.unfold(2, 4, 4).unfold(3, 4, 4).square().sum((1, 4, 5))  # (B, 3, 3)
    assert patches[0].gt(0).all() and not patches[1].any()
    assert all(p.grad.any() for mixer in mixers(model) for p in mixer.parameters())
    other = swapped(partial(hugging_face, "ViT"), seed=1).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images).last_hidden_state, output)


@pytest.mark.parametrize("build", CAUSAL_TEXT.values(), ids=CAUSAL_TEXT)
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_later_tokens_do_not_change_the_past(build, implementation, data):
    model = swapped(build).double()
    model.config._attn_implementation = implementation  # each makes masks of another form
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 20))
    changed_from = data.draw(st.integers(1, length - 1))
    first_valid = data.draw(st.integers(0, changed_from - 1))  # padding to the left
    tokens = torch.randint(3, 30, (batch, length))
    other = tokens.clone()
    other[:, changed_from:] = torch.randint(3, 30, (batch, length - changed_from))
    mask = (torch.arange(length) >= first_valid).long().expand(batch, length)
    with torch.no_grad():
        for given_mask in (None, mask):
            before, after = (model(t, attention_mask=given_mask).last_hidden_state
                             for t in (tokens, other))  # fmt: skip
            begin = 0 if given_mask is None else first_valid
            seen = slice(begin, changed_from)
            torch.testing.assert_close(before[:, seen], after[:, seen])
            expected = model(
                tokens[:, :changed_from],
                attention_mask=None if given_mask is None else mask[:, :changed_from],
            )
            torch.testing.assert_close(expected.last_hidden_state[:, begin:], before[:, seen])
        spoilt = torch.where(mask.bool(), tokens, 3 + (tokens + 1) % 27)
        torch.testing.assert_close(
            model(spoilt, attention_mask=mask).last_hidden_state[:, first_valid:],
            before[:, first_valid:],
        )


def test_a_swapped_gpt_looks_at_all_before_and_has_no_cache():
    model = swapped(partial(GPT, model="LMHeadModel"))
    assert model.config.use_cache is False
    tokens = torch.randint(3, 30, (1, 9))
    embedded = model.transformer.wte(tokens).detach().requires_grad_()
    output = model(inputs_embeds=embedded)
    assert output.logits.shape == (1, 9, 30)
    output.logits[0, -1].mul(torch.randn(30)).sum().backward()
    assert embedded.grad.square().sum(-1).gt(0).all()
    with pytest.raises(ValueError, match="use_cache=False"):
        model(tokens, use_cache=True)
    said = model.generate(tokens, max_new_tokens=4, do_sample=False, use_cache=False)
    assert said.shape == (1, 13)
    with torch.no_grad():
        greedy = model(said[:, :-1]).logits[:, 8:].argmax(-1)
    assert torch.equal(said[:, 9:], greedy)


def test_a_mixer_without_windows_gets_the_causal_mask():
    """As SpeechBrain's attention, which takes no window."""
    model = GPT().eval()
    swap_self_attention(model, lambda: Attention())
    tokens = torch.randint(3, 30, (2, 9))
    other = tokens.clone()
    other[:, 5:] = 3 + (tokens[:, 5:] + 1) % 27
    with torch.no_grad():
        before, after = (model(t).last_hidden_state for t in (tokens, other))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


class Attention(MultiheadAttention):
    def __init__(self):
        super().__init__(nhead=2, d_model=D)


def test_cross_attention_stays_in_decoders_of_text():
    model = hugging_face("GPT2", add_cross_attention=True)
    crossing = {n: s for n, s in weights(model).items() if "crossattention" in n}
    assert crossing and swap_self_attention(model.eval(), make_mixer) == LAYERS
    assert crossing.items() <= weights(model).items()
    tokens, encoded = torch.randint(3, 30, (2, 5)), torch.randn(2, 7, D)
    seen = model(tokens, encoder_hidden_states=encoded).last_hidden_state
    assert not torch.allclose(seen, model(tokens).last_hidden_state)


def test_packed_sequences_are_refused():
    model = swapped(GPT)
    mask = torch.ones(1, 1, 6, 6).tril().bool()
    model(torch.randint(3, 30, (1, 6)), attention_mask=mask)
    mask[:, :, 3:, :3] = False  # two texts, one after the other
    with pytest.raises(RuntimeError, match="the past in a causal model"):
        model(torch.randint(3, 30, (1, 6)), attention_mask=mask)


def test_no_mixing_can_stand_in_the_place_of_attention():
    model = swapped(GPT, mixer=NoMixing)
    tokens = torch.randint(3, 30, (1, 6))
    with torch.no_grad():
        output = model(tokens).last_hidden_state
        torch.testing.assert_close(model(tokens[:, :1]).last_hidden_state, output[:, :1])
        tokens[:, 0] = 29
        torch.testing.assert_close(model(tokens).last_hidden_state[:, 1:], output[:, 1:])
