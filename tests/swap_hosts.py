"""Models that `swap_self_attention` takes, each small, and how each is run on padded frames."""

from functools import partial

import pytest
import torch
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from torch import nn

from speechbrain_summarymixing.lobes.swap import swap_self_attention
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


WAV2VEC = {
    "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 24, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 6),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "layerdrop": 0.0,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
BERT = {
    "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "intermediate_size": 24, "vocab_size": 30, "max_position_embeddings": 40,
}  # fmt: skip
CONFIGS = {
    "Wav2Vec2": WAV2VEC,
    "Hubert": WAV2VEC,
    "Whisper": {
        "d_model": D, "encoder_layers": LAYERS, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "num_mel_bins": 8, "max_source_positions": 20, "vocab_size": 30, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    },
    "ViT": {
        "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "intermediate_size": 24, "image_size": 12, "patch_size": 4,
    },
    "Bert": BERT,
    "Roberta": BERT,
    "GPT2": {
        "n_embd": D, "n_layer": LAYERS, "n_head": 2, "n_inner": 24, "vocab_size": 30,
        "n_positions": 40, "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip


def hugging_face(name, model="Model", **options):
    transformers = pytest.importorskip("transformers", reason="swaps layers of transformers")
    config = getattr(transformers, f"{name}Config")(**{**CONFIGS[name], **options})
    return getattr(transformers, f"{name}{model}")(config)


class Block(nn.Module):
    """A block as those of torchvision's ViT, which has no layer of torch's."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.self_attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(D, 24), nn.GELU(), nn.Linear(24, D))

    def forward(self, x, **masks):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False, **masks)[0]
        return x + self.mlp(self.ln_2(x))


def blocks():
    return nn.ModuleList(Block() for _ in range(LAYERS))


def run_blocks(model, x, lengths):
    for block in model:
        x = block(x, key_padding_mask=padding(x, lengths))
    return x


def run_speechbrain(model, x, lengths):
    return model.encode(x, lengths / x.size(1))


def run_torch(model, x, lengths):
    if model.layers[0].self_attn.batch_first:
        return model(x, src_key_padding_mask=padding(x, lengths))
    return model(x.transpose(0, 1), src_key_padding_mask=padding(x, lengths)).transpose(0, 1)


def run_hugging_face(model, x, lengths):
    mask = padding(x, lengths).logical_not()  # the encoder overwrites its input
    return model.encoder(x.clone(), attention_mask=mask).last_hidden_state


def run_text(model, x, lengths):
    mask = padding(x, lengths).logical_not()
    return model(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state


def padding(x, lengths):
    return torch.arange(x.size(1), device=x.device) >= lengths.unsqueeze(1)


STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
RELATIVE = {"attention_type": "RelPosMHAXL"}
HOSTS = {
    "transformer": (partial(speechbrain, encoder_module="transformer"), run_speechbrain),
    "transformer, relative": (
        partial(speechbrain, encoder_module="transformer", **RELATIVE), run_speechbrain
    ),
    "conformer": (partial(speechbrain, encoder_module="conformer", **RELATIVE), run_speechbrain),
    "branchformer": (
        partial(speechbrain, encoder_module="branchformer", **RELATIVE), run_speechbrain
    ),
    "torch, batch first": (partial(torch_encoder, True), run_torch),
    "torch, time first": (partial(torch_encoder, False, norm_first=True), run_torch),
    "wav2vec2": (partial(hugging_face, "Wav2Vec2"), run_hugging_face),
    "wav2vec2, stable": (partial(hugging_face, "Wav2Vec2", **STABLE), run_hugging_face),
    "hubert": (partial(hugging_face, "Hubert"), run_hugging_face),
    "hubert, stable": (partial(hugging_face, "Hubert", **STABLE), run_hugging_face),
    "bert": (partial(hugging_face, "Bert"), run_text),
    "roberta": (partial(hugging_face, "Roberta"), run_text),
    "gpt2": (partial(hugging_face, "GPT2"), run_text),
    "torch's attention in other blocks": (blocks, run_blocks),
}  # fmt: skip


def swapped(build, mixer=make_mixer, seed=0):
    torch.manual_seed(seed)
    model = build().eval()
    assert swap_self_attention(model, mixer) == LAYERS
    return model


def mixers(model):
    return [module for module in model.modules() if isinstance(module, SummaryMixing)]
