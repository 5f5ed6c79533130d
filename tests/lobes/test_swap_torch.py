"""Self-attention swapped in torch's encoders: masks, the fast path, export."""

from functools import partial

import pytest
import torch
from swap_hosts import Block, D, make_mixer, mixers, padding, swapped, torch_encoder
from torch import nn

from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.lobes.swap import (
    TorchSelfAttention,
    swap_self_attention,
)
from speechbrain_summarymixing.nnet.summaries import CAUSAL
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("as_bool", [True, False])
@torch.no_grad()
def test_torch_masks_mean_what_they_mean_to_the_mixer(batch_first, as_bool):
    torch.manual_seed(0)
    attention = TorchSelfAttention(make_mixer().eval(), embed_dim=D, batch_first=batch_first)
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
    attention = TorchSelfAttention(make_mixer(), embed_dim=D, batch_first=True)
    x = torch.randn(2, 9, D)
    with pytest.raises(ValueError, match="another tensor than query"):
        attention(x, x.clone(), x)


@torch.no_grad()
def test_the_causal_hint_gives_a_window_to_mixers_that_take_it():
    seen = []

    class Spy(NoMixing):
        def forward(self, query, key, value, attn_mask=None, **_):
            seen.append(attn_mask)
            return super().forward(query)

    class Without(Spy):
        supports_window = False

    x, mask = torch.randn(2, 9, D), nn.Transformer.generate_square_subsequent_mask(9)
    for mixer in (Spy(), Without()):
        attention = TorchSelfAttention(mixer, embed_dim=D, batch_first=True)
        for hint in (True, False):
            output, _ = attention(x, x, x, attn_mask=mask, is_causal=hint)
            assert torch.equal(output, torch.zeros(2, 9, D))
    assert seen[0] == CAUSAL and all(other is mask for other in seen[1:])


def test_modules_with_one_attention_of_torch_are_swapped_and_those_with_two_are_not():
    class Cross(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.attention = nn.MultiheadAttention(D, 2, batch_first=True, **options)

        def forward(self, x, encoded):
            return self.attention(x, encoded, encoded)[0]

    class Both(Cross):
        def __init__(self):
            super().__init__()
            self.own = nn.MultiheadAttention(D, 2, batch_first=True)

    model = nn.ModuleList([Block(), Both(), Cross(kdim=8, vdim=8), Cross()])
    assert swap_self_attention(model, make_mixer) == 2  # nothing tells the last from a block
    assert len(mixers(model[0])) == len(mixers(model[3])) == 1
    assert mixers(model[1]) == mixers(model[2]) == []
    x = torch.randn(2, 9, D)
    assert model[3](x, x).shape == x.shape
    with pytest.raises(ValueError, match="keep attention in this layer, and swap the other parts"):
        model[3](x, torch.randn(2, 4, D))
    with pytest.raises(ValueError, match="MultiheadAttention holds no encoder layer"):
        swap_self_attention(nn.MultiheadAttention(D, 2), make_mixer)
    assert not any(name.endswith("in_proj_weight") for name in model[0].state_dict())
