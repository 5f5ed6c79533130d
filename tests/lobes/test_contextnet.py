from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.models.ContextNet import ContextNet
from speechbrain.nnet.CNN import Conv1d
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.contextnet import ContextNetEncoder, MaskedBatchNorm1d
from speechbrain_summarymixing.lobes.frontend import MaskedConvolutionFrontEnd
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.training.config import load_hyperparams

ROOT = Path(__file__).parents[2]
D = 16
SMALL = {"num_blocks": 3, "num_layers": 2, "inner_dim": 4, "kernel_size": 3}


def encoder(**options):
    torch.manual_seed(0)
    net = ContextNetEncoder(D, **{**SMALL, **options})
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "norm" in name and tensor.is_floating_point():  # as if it were trained
                tensor.uniform_(0.5, 1.5)
        for name, bias in net.named_parameters():
            if name.endswith("bias"):  # else it is zero where the input is
                bias.uniform_(-1, 1)
    return net.eval()


def padding_of(lengths, frames):
    return torch.arange(frames) >= torch.tensor(lengths)[:, None]


def after(stride, frames):
    return -(-frames // stride)


@pytest.mark.parametrize(
    "options", [{}, {"strides": [2, 1, 3]}, {"num_blocks": 1, "kernel_size": 5}], ids=str
)
@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 60), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_output_is_the_same_alone_and_in_any_batch(options, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    net = encoder(output_hidden_states=True, **options)
    batch = torch.randn(len(lengths), max(lengths), D, generator=generator)
    padding = padding_of(lengths, max(lengths))
    together, _, hidden_together = net(batch, src_key_padding_mask=padding)
    assert padding[:, :: net.stride].shape == together.shape[:2]
    for row, n in enumerate(lengths):
        alone, _, hidden_alone = net(batch[row : row + 1, :n])
        assert alone.shape == (1, after(net.stride, n), D)
        assert (~padding[row, :: net.stride]).sum() == alone.size(1)
        for one, many in zip([*hidden_alone, alone], [*hidden_together, together], strict=True):
            assert (many[row, : one.size(1)] - one[0]).abs().max() < 1e-4


def test_what_stands_in_the_padding_has_no_influence_and_what_stands_before_it_has():
    net, x = encoder(), torch.randn(2, 40, D)
    padding = padding_of([17, 40], 40)
    spoilt = x.clone()
    spoilt[0, 17:] = float("nan")
    valid = ~padding[:, :: net.stride]
    output = net(x, src_key_padding_mask=padding)[0][valid]
    assert torch.equal(net(spoilt, src_key_padding_mask=padding)[0][valid], output)
    # each mask matters: convolutions see the padding's edge, the mean all of it
    assert (net(x)[0][valid] - output).abs().max() > 1e-2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("all_valid", [None, padding_of([50, 50, 50], 50)])
def test_without_padding_it_is_speechbrains(training, all_valid):
    net = encoder(dropout=0.0)
    theirs = ContextNet(
        input_shape=(1, 50, D),
        out_channels=D,
        conv_channels=[6, 12, 12],
        strides=[4, 2, 1],
        kernel_size=SMALL["kernel_size"],
        num_blocks=SMALL["num_blocks"],
        num_layers=SMALL["num_layers"],
        inner_dim=SMALL["inner_dim"],
        dropout=0.0,
    )
    theirs.load_state_dict(net.state_dict(), strict=True)
    for module in theirs.modules():
        if isinstance(module, Conv1d):
            module.padding_mode = "constant"
    x = torch.randn(3, 50, D)
    net.train(training), theirs.train(training)
    ours = net(x, src_key_padding_mask=all_valid)[0]
    torch.testing.assert_close(ours, theirs(x), atol=2e-5, rtol=1e-5)
    for (name, buffer), other in zip(net.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, atol=2e-5, rtol=1e-5, msg=name)


def test_the_defaults_are_the_papers():
    net = ContextNetEncoder(40)
    blocks = [layer for name, layer in net.items() if name.startswith("block")]
    last = [list(block.Convs.values())[-2] for block in blocks]
    assert [c.pointwise.conv.out_channels for c in last] == [16] * 10 + [32] * 11
    assert [i for i, c in enumerate(last) if c.depthwise.stride == 2] == [2, 6, 13]
    assert {c.depthwise.kernel_size for c in last} == {5} and net.stride == 8
    assert all(len(block.Convs) == 10 for block in blocks)  # five, each with its norm
    assert all(buffer.eq(1).all() for name, buffer in net.named_buffers() if "var" in name)


@pytest.mark.parametrize("blocks", [1, 2, 4, 9])
def test_few_blocks_have_the_same_stride(blocks):
    net = ContextNetEncoder(D, num_blocks=blocks, num_layers=1)
    assert net.stride == 8 and net(torch.randn(2, 33, D))[0].shape == (2, 5, D)


@settings(max_examples=8)
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_batch_norm_in_training_is_torchs_over_the_valid_frames(lengths, seed):
    torch.manual_seed(seed)
    ours, theirs = MaskedBatchNorm1d(input_size=3), torch.nn.BatchNorm1d(3)
    ours, theirs = ours.double(), theirs.double()
    x = (torch.randn(len(lengths), max(lengths), 3, dtype=torch.double) + 5).requires_grad_()
    padding, weight = padding_of(lengths, max(lengths)), torch.randn(3)
    expected = theirs(x[~padding])
    gradient = torch.autograd.grad((expected.square() * weight).sum(), x)[0]
    output = ours(x, padding)[~padding]
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        torch.autograd.grad((output.square() * weight).sum(), x)[0], gradient
    )
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.norm.named_buffers())[name], buffer)


def test_batch_norm_sums_bfloat16_in_float32():
    norm = MaskedBatchNorm1d(input_size=2)
    x = (torch.randn(4, 5000, 2) + 3).bfloat16()
    padding = padding_of([5000, 100, 2000, 1], 5000)
    assert norm(x, padding).dtype == torch.bfloat16
    torch.testing.assert_close(norm.norm.running_mean, 0.1 * x[~padding].float().mean(0))


def test_every_parameter_learns():
    net = encoder()  # in training a batch normalisation takes the biases before it out again
    output, _ = net(torch.randn(3, 30, D), src_key_padding_mask=padding_of([30, 21, 9], 30))
    output.pow(3).mean().backward()
    assert [name for name, p in net.named_parameters() if not p.grad.any()] == []


def test_a_row_of_padding_alone_does_no_harm_in_training():
    net = encoder().train()
    net(torch.randn(2, 30, D), src_key_padding_mask=padding_of([30, 0], 30))[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert all(buffer.isfinite().all() for buffer in net.buffers())


def test_hidden_states():
    output, weights, hidden = encoder(output_hidden_states=True)(torch.randn(1, 21, D))
    assert weights == [] and output.shape == (1, 3, D)
    assert [tuple(h.shape) for h in hidden] == [(1, 21, 16), (1, 6, 6), (1, 3, 12), (1, 3, 12)]


def test_it_has_no_mixers_and_needs_no_positions():
    assert encoder().mixers() == [] and encoder().has_own_positions()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"src_mask": torch.zeros(9, 9)}, r"src_mask is \(9, 9\), but must be None"),
        ({"dynchunktrain_config": DynChunkTrainConfig(4)}, "config is DynChunk.*whole utterance"),
    ],
)
def test_it_refuses_to_hide_frames(options, message):
    with pytest.raises(ValueError, match=message):
        encoder()(torch.randn(1, 9, D), **options)


@pytest.mark.parametrize("name", ["channels", "strides"])
def test_it_refuses_a_number_too_few(name):
    with pytest.raises(ValueError, match=rf"{name} is \[1, 1\], but must have one .* 3 blocks"):
        encoder(**{name: (1, 1)})


@pytest.mark.parametrize("training", [False, True])
def test_no_tensor_is_made_on_the_wrong_device(training):
    with FakeTensorMode(), torch.device("cuda"):
        net = ContextNetEncoder(D, **SMALL).train(training)
        padding = torch.arange(3000) >= torch.tensor([[3000], [20]])
        assert net(torch.randn(2, 3000, D), src_key_padding_mask=padding)[0].device.type == "cuda"


@pytest.mark.parametrize("training", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_compiles_to_one_graph_for_all_lengths(training):
    torch._dynamo.reset()
    options = {"dropout": 0.0, "num_blocks": 1, "num_layers": 1}
    net, twin = encoder(**options).train(training), encoder(**options).train(training)
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend="eager")
    for lengths in ([31, 9], [64, 50, 1]):
        src, padding = torch.randn(len(lengths), max(lengths), D), padding_of(lengths, max(lengths))
        expected = twin(src, src_key_padding_mask=padding)[0]
        torch.testing.assert_close(compiled(src, src_key_padding_mask=padding)[0], expected)


def test_an_hour_encodes_in_memory_that_grows_with_its_length(largest_tensor):
    net, frames = encoder(), 60 * 60 * 100
    padding = padding_of([frames - 1], frames)
    with torch.no_grad(), largest_tensor as largest:
        output, _ = net(torch.randn(1, frames, D), src_key_padding_mask=padding)
    assert output.shape == (1, frames // 8, D) and output.isfinite().all()
    assert largest.elements <= 2 * D * frames


def test_checkpoints_average_with_their_batch_norms(tmp_path):
    net = encoder().train()
    checkpointer = Checkpointer(tmp_path, {"model": net})
    states = []
    for name in "ab":
        net(torch.randn(2, 30, D), src_key_padding_mask=padding_of([30, 12], 30))
        checkpointer.save_checkpoint(name=name)
        states.append({key: value.clone() for key, value in net.state_dict().items()})
    average = average_checkpoints(checkpointer.find_checkpoints(max_num_checkpoints=2), "model")
    net.load_state_dict(average, strict=True)
    assert net.norm_start.norm.num_batches_tracked.dtype == torch.int64
    changed = 0
    for key, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][key] + states[1][key]) / 2, msg=key)
            changed += not torch.equal(states[0][key], states[1][key])
    assert changed
    assert net.eval()(torch.randn(1, 30, D))[0].isfinite().all()


# ---- in a recogniser


def recogniser(**options):
    torch.manual_seed(0)
    options = {"d_model": D, "nhead": 2, "num_encoder_layers": 3, "kernel_size": 3, **options}
    return SummaryMixingASR(
        30, 12, token_mixer=NoMixing, encoder_module="contextnet", num_decoder_layers=1, d_ffn=32,
        **options,
    ).eval()  # fmt: skip


def test_a_recogniser_hears_the_same_alone_and_in_a_batch():
    net = recogniser()
    src, tgt = torch.randn(2, 80, 12), torch.randint(1, 30, (2, 5))
    encoded, decoded = net(src, tgt, torch.tensor([0.4, 1.0]))
    alone, decoded_alone = net(src[:1, :32], tgt[:1], torch.ones(1))
    assert encoded.shape == (2, 10, D) and alone.shape == (1, 4, D)
    assert (encoded[0, :4] - alone[0]).abs().max() < 1e-4
    assert (decoded[0] - decoded_alone[0]).abs().max() < 1e-4
    # as beam search calls it: lengths relative to the encoder's output
    prediction, _ = net.decode(tgt, encoded, torch.tensor([4, 10]))
    torch.testing.assert_close(prediction, decoded)


def test_a_recogniser_keeps_speechbrains_initial_values():
    torch.manual_seed(3)
    expected = ContextNetEncoder(D, num_blocks=3, kernel_size=3).conv_start.depthwise.conv.weight
    assert recogniser().encoder.conv_start.depthwise.conv.weight.std() > expected.std() / 2


def test_the_system_file_fits_together(tmp_path):
    hparams = load_hyperparams(
        ROOT / "hparams/contextnet.yaml",
        {"output_folder": str(tmp_path), "d_model": D, "n_mels": 20, "front_end_output": 20},
    )
    wavs = torch.randn(2, 8 * 160 * 5)
    features = hparams["compute_features"](wavs)
    assert features.shape == (2, 40, 20) and hparams["compute_features"].samples == 8 * 160
    lengths = torch.tensor([0.4, 1.0])
    assert torch.equal(hparams["front_end"](features, lengths)[:, :16], features[:, :16])
    assert hparams["transformer"].encode(features, lengths).shape == (2, 5, D)


def test_a_front_end_without_blocks_passes_features_unchanged():
    x = torch.randn(2, 30, 80)
    assert torch.equal(MaskedConvolutionFrontEnd(80, ())(x, torch.tensor([1.0, 0.5])), x)
