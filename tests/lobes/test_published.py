"""Whole checkpoints with the published key names, read by a function and by the command."""

import pytest
import torch
from published_cells import published
from speechbrain.lobes.models.convolution import ConvolutionFrontEnd
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear
from torch import nn

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.lobes.published import load_published_model
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing, load_published_state_dict
from speechbrain_summarymixing.systems import find
from speechbrain_summarymixing.training.config import load_hyperparams

SIZES = {"d_model": 32, "num_encoder_layers": 2, "d_ffn": 48, "csgu_linear_units": 40}
ENCODERS = {
    "branchformer": ("sumformer_published", "mha_layer"),
    "conformer": ("conformer_summarymixing_published", "mha_layer"),
    "transformer": ("transformer_summarymixing_published", "self_att"),
}


def speechbrains(encoder, attention):
    """What a recipe of SpeechBrain trains."""
    transformer = TransformerASR(
        tgt_vocab=80,
        input_size=320,
        nhead=4,
        num_decoder_layers=1,
        encoder_module=encoder,
        attention_type=attention,
        causal=False,
        activation=nn.GELU,
        normalize_before=True,
        **SIZES,
    )
    front_end = ConvolutionFrontEnd(
        input_shape=(8, 10, 80),
        num_blocks=2,
        num_layers_per_block=1,
        out_channels=(32, 16),
        kernel_sizes=(3, 3),
        strides=(2, 2),
        residuals=(False, False),
    )
    heads = [Linear(input_size=32, n_neurons=80) for _ in range(2)]
    return nn.ModuleList([front_end, transformer, *heads]).eval()


def checkpoint(encoder, form):
    """What a Brain of SpeechBrain's recipe saves as model.ckpt, with cells for the attention."""
    generator = torch.Generator().manual_seed(1)
    attention = "regularMHA" if encoder == "transformer" else "RelPosMHAXL"
    state, cells = {}, {}
    for key, value in speechbrains(encoder, attention).state_dict().items():
        name, attention, _ = key.partition(f".{ENCODERS[encoder][1]}.")
        if attention and ".decoder." not in key:
            cells[name + attention] = published(form, generator, 32)
        elif "merge_proj.weight" in key:  # an MLP where there is no attention
            for layer, width in (("linear.w", 64), ("linear_0.w", 32)):
                weight = torch.randn(32, width, generator=generator)
                state[key.replace("weight", f"{layer}.weight")] = weight
                state[key.replace("weight", f"{layer}.bias")] = weight[0, :32].clone()
        elif "merge_proj" not in key:
            state[key] = value
    for name, cell in cells.items():
        state |= {f"{name}{key}": value.float() for key, value in cell.items()}
    return state


def system(encoder, folder, **options):
    given = {**SIZES, **options, "output_folder": str(folder / "out")}
    return load_hyperparams(find(ENCODERS.get(encoder, [encoder])[0]), given)["model"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_modules_have_the_weights_of_the_checkpoint(encoder, tmp_path):
    model = system(encoder, tmp_path)
    state = checkpoint(encoder, {})
    load_published_model(model, state)
    loaded = model.state_dict()
    cells = [(n, m) for n, m in model.named_modules() if isinstance(m, SummaryMixing)]
    assert len(cells) == 2
    for name, _ in cells:
        alone = SummaryMixing(32)
        theirs = {k[len(name) + 1 :]: v for k, v in state.items() if k.startswith(f"{name}.")}
        load_published_state_dict(alone, theirs)
        for key, value in alone.state_dict().items():
            assert torch.equal(loaded.pop(f"{name}.{key}"), value)
    for key, value in state.items():
        if key in loaded:
            assert torch.equal(loaded.pop(key), value), key
    for key in sorted(key for key in loaded if "merge_proj" in key):
        place, _, name = key.partition("merge_proj.")
        theirs = {"0": "linear.w", "2": "linear_0.w"}[name[0]] + name[1:]
        assert torch.equal(loaded.pop(key), state[f"{place}merge_proj.{theirs}"])
    assert not loaded


@pytest.mark.parametrize(
    "encoder, attention, file",
    [
        ("conformer", "RelPosMHAXL", "conformer_attention"),
        ("branchformer", "RelPosMHAXL", "branchformer_attention"),
        ("transformer", "regularMHA", "transformer_attention"),
    ],
)
def test_a_model_with_attention_encodes_as_speechbrains(encoder, attention, file, tmp_path):
    torch.manual_seed(0)
    theirs = speechbrains(encoder, attention)
    ours = system(file, tmp_path, frequency_padding="reflect").eval()
    load_published_model(ours, theirs.state_dict())
    features = torch.randn(2, 80, 80)  # two frames to each side see the zeros before and after
    expected = theirs[0](features)
    torch.testing.assert_close(ours[0](features)[:, 2:-2], expected[:, 2:-2])
    if encoder != "branchformer":  # whose convolutions reflect the utterance's ends
        encoded = [model[1].encode(expected) for model in (ours, theirs)]
        torch.testing.assert_close(*encoded, atol=1e-5, rtol=1e-5)


def test_a_checkpoint_of_another_size_is_refused_and_changes_nothing(tmp_path):
    model = system("branchformer", tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = checkpoint("branchformer", {})
    for change, message in (
        ({"2.w.weight": torch.zeros(90, 32)}, r"2.w.weight: \(90, 32\), but here \(80, 32\)"),
        ({"speaker.weight": torch.zeros(1)}, r"speaker.weight: \(1,\), but here missing"),
        ({"1.encoder.layers.1.mha_layer.x": torch.zeros(1)}, r"layers.1.mha_layer: .*x left over"),
    ):
        with pytest.raises(ValueError, match=message):
            load_published_model(model, {**state, **change})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_command_writes_what_the_function_loads(tmp_path, capsys):
    state = checkpoint("branchformer", {"layer_norm": False})
    torch.save(state, tmp_path / "model.ckpt")
    options = [f"--{key}={value}" for key, value in SIZES.items()]
    file = tmp_path / "here.ckpt"
    command = ["convert", str(tmp_path / "model.ckpt"), "sumformer_published", str(file), *options]
    assert cli.main(command) == 1
    assert "local_norm.weight is not in the state dict" in capsys.readouterr().err
    assert not file.exists()
    assert cli.main([*command, "--layer_norm=False"]) == 0
    model = system("branchformer", tmp_path, layer_norm=False)
    load_published_model(model, state)
    written = torch.load(file, weights_only=True)
    assert written.keys() == model.state_dict().keys()
    assert all(torch.equal(value, written[key]) for key, value in model.state_dict().items())
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in capsys.readouterr().out
