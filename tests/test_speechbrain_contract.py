"""What we rely on in SpeechBrain: an upgrade that changes it fails here first."""

import inspect

import pytest
import torch
from speechbrain.core import Brain
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.lobes.models.convolution import ConvolutionalSpatialGatingUnit
from speechbrain.lobes.models.transformer.Branchformer import BranchformerEncoderLayer
from speechbrain.lobes.models.transformer.Transformer import (
    PositionalEncoding,
    TransformerDecoderLayer,
)
from speechbrain.lobes.models.transformer.TransformerASR import (
    TransformerASR,
    make_transformer_src_tgt_masks,
)
from speechbrain.nnet.attention import MultiheadAttention, RelPosMHAXL
from speechbrain.nnet.CNN import Conv2d
from speechbrain.nnet.schedulers import WarmCoolDecayLRSchedule
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_summarymixing.lobes import transformer as transformers
from speechbrain_summarymixing.lobes.branchformer import NO_ATTENTION


def transformer(**options):
    return TransformerASR(
        10, 6, d_model=8, nhead=2, num_encoder_layers=1, num_decoder_layers=1, d_ffn=8,
        encoder_module="branchformer", attention_type=NO_ATTENTION, positional_encoding=None,
        csgu_linear_units=8, kernel_size=3, causal=False, **options,
    )  # fmt: skip


def test_branchformer_layer_without_attention():
    assert not hasattr(BranchformerEncoderLayer(8, 2, attention_type=NO_ATTENTION), "mha_layer")


def test_decoder_layer_without_attention_hands_masks_and_memory_through():
    layer = TransformerDecoderLayer(8, 2, 8, attention_type=transformers.NO_ATTENTION)
    assert not hasattr(layer, "self_attn") and not hasattr(layer, "multihead_attn")
    seen = []

    class Note(torch.nn.Module):
        def forward(self, query, key, value, attn_mask, key_padding_mask, pos_embs):
            seen.append((key, attn_mask))
            return query, "weights"

    layer.self_attn, layer.multihead_attn = Note(), Note()
    mask, memory = object(), object()
    _, *weights = layer(torch.rand(2, 1, 8), memory, tgt_mask=mask)
    assert seen[0][1] is mask and seen[1][0] is memory and weights == ["weights"] * 2


def test_encoder_input_is_the_output_of_custom_src_module_alone():
    net = transformer().eval()
    assert not hasattr(net, "positional_encoding")
    assert hasattr(net, "positional_encoding_decoder")
    seen = []
    net.custom_src_module.append(torch.nn.Identity())
    net.encoder.forward = lambda src, **masks: (seen.append((src, masks)), (src, []))[1]
    src = torch.rand(2, 5, 6)
    net.encode(src, torch.ones(2))
    torch.testing.assert_close(seen[0][0], net.custom_src_module(src))
    assert set(seen[0][1]) == {
        "src_mask", "src_key_padding_mask", "pos_embs", "dynchunktrain_config",
    }  # fmt: skip


def test_padding_masks_are_true_on_padding_and_round_relative_lengths():
    mask, _, src_mask, _ = make_transformer_src_tgt_masks(
        torch.rand(2, 10, 4), wav_len=torch.tensor([0.54, 1.0])
    )
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [5, 0] and src_mask is None


def test_sine_table_ends_at_its_length():
    assert PositionalEncoding(4, 3)(torch.zeros(1, 5, 4)).shape[1] == 3


def test_convolutions_take_their_padding_mode_from_an_attribute():
    unit = ConvolutionalSpatialGatingUnit(8, kernel_size=3)
    assert unit.conv.padding_mode == "reflect"
    conv = Conv2d(1, 3, input_shape=(None, 8, 8, 1))
    x = torch.rand(1, 8, 8, 1)
    before = conv(x)
    conv.padding_mode = "constant"
    assert not torch.equal(before, conv(x))


def test_normalization_keeps_its_statistics_out_of_the_state_dict():
    normalize = InputNormalization()
    assert normalize.state_dict() == {}
    assert torch.is_tensor(normalize.glob_mean) and torch.is_tensor(normalize.glob_std)


@pytest.mark.parametrize("mixer", [MultiheadAttention, RelPosMHAXL])
def test_attention_has_the_call_that_we_inject(mixer):
    names = inspect.signature(mixer.forward).parameters
    assert {"query", "key", "value", "attn_mask", "key_padding_mask", "pos_embs"} <= set(names)


def test_brain_hooks_that_we_override():
    for name in (
        "fit_batch", "check_loss_isfinite", "on_fit_batch_end", "on_fit_start",
        "_should_save_intra_epoch_ckpt", "_save_intra_epoch_ckpt", "_save", "_recover",
    ):  # fmt: skip
        assert callable(getattr(Brain, name)), name
    source = inspect.getsource(Brain.fit_batch)
    assert source.index("check_loss_isfinite") < source.index("backward()")
    assert "step" in inspect.getsource(Brain._save)


def test_schedule_and_sampler_arguments():
    assert {"lr", "warmup", "cooldown", "total_steps"} <= set(
        inspect.signature(WarmCoolDecayLRSchedule).parameters
    )
    assert hasattr(DynamicBatchSampler, "set_epoch")
    assert {"num_to_keep", "min_keys", "meta", "name"} <= set(
        inspect.signature(Checkpointer.save_and_keep_only).parameters
    )


def test_interface_needs_what_we_export():
    assert EncoderDecoderASR.HPARAMS_NEEDED == ["tokenizer"]
    assert EncoderDecoderASR.MODULES_NEEDED == ["encoder", "decoder"]
