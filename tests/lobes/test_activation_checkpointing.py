import pytest
import torch

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

SMALL = {
    "d_model": 16, "nhead": 2, "num_encoder_layers": 6, "num_decoder_layers": 0, "d_ffn": 32,
    "csgu_linear_units": 32, "kernel_size": 3,
}  # fmt: skip


def encoder(encoder_module, checkpointing):
    torch.manual_seed(0)
    return SummaryMixingASR(
        30, 12, token_mixer=lambda: SummaryMixing(16), encoder_module=encoder_module,
        activation_checkpointing=checkpointing, **SMALL,
    )  # fmt: skip


def step(net, x, lengths):
    """Output, gradients and the bytes kept for backward of a training step, dropout and all."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = net.encode(x, lengths)
    output.square().sum().backward()
    used = [p.grad for p in net.parameters() if p.grad is not None]
    return output, used, sum(kept.values())


@pytest.mark.parametrize("encoder_module", ["branchformer", "conformer", "transformer"])
def test_same_step_in_less_memory(encoder_module):
    x, lengths = torch.randn(2, 50, 12), torch.tensor([1.0, 0.6])
    output, gradients, kept = step(encoder(encoder_module, False), x, lengths)
    again, gradients_again, kept_less = step(encoder(encoder_module, True), x, lengths)
    torch.testing.assert_close(again, output)
    assert len(gradients) == len(gradients_again)
    for first, second in zip(gradients, gradients_again):
        torch.testing.assert_close(second, first)
    assert kept_less < kept / 3


def test_contextnet_has_none():
    with pytest.raises(ValueError, match="activation_checkpointing True, but ContextNet"):
        SummaryMixingASR(
            30, 12, token_mixer=NoMixing, encoder_module="contextnet",
            activation_checkpointing=True, **SMALL,
        )  # fmt: skip
