"""Self-attention swapped in Hugging Face's speech encoders."""

from functools import partial

import pytest
import torch
from swap_hosts import LAYERS, STABLE, D, hugging_face, make_mixer, mixers, padding, swapped

from speechbrain_summarymixing.lobes.swap import (
    HuggingFaceSelfAttention,
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
    for name in ("layer_head_mask", "key_value_states"):
        with pytest.raises(ValueError, match="leave both at None"):
            attention(x, **{name: torch.ones(2)})
