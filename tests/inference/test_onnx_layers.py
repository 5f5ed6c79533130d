"""ONNX graphs are torch's at the first, a middle and the last layer, for speech of any length."""

from functools import partial

import pytest
import torch
from speechbrain.nnet.attention import MultiheadAttention, RelPosMHAXL
from torch import nn

from speechbrain_summarymixing.inference import onnx
from speechbrain_summarymixing.inference.graphs import OfflineGraph
from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import MaskedConvolutionFrontEnd, Normalization
from speechbrain_summarymixing.lobes.mixers import RelativeAttention
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

MINUTE = 6000  # frames
SYSTEMS = {
    "selective": (
        partial(SelectiveSummaryMixing, 16, nhead=2, neighbours=8, summaries=2),
        "branchformer",
        10 * MINUTE,
    ),
    "published": (partial(SummaryMixing, 16, nhead=2), "conformer", 10 * MINUTE),
    "lite": (partial(SummaryMixing, 16, local_branch=False), "transformer", 10 * MINUTE),
    "decayed": (partial(SummaryMixing, 16, decay=0.995), "branchformer", 10 * MINUTE),
    "regular attention": (partial(MultiheadAttention, 2, 16), "branchformer", MINUTE),
    "relative attention": (partial(RelPosMHAXL, 16, 2), "branchformer", MINUTE),
    "signed": (partial(RelativeAttention, 16, 2, signed=True), "branchformer", MINUTE),
}


class Layers(nn.Module):
    """A head that tells what three of the encoder's layers made, too."""

    def __init__(self, width):
        super().__init__()
        self.ctc = nn.Sequential(nn.Linear(width, 30), nn.LogSoftmax(-1))

    def forward(self, encoded):
        encoded, hidden = encoded  # hidden: the input of the first layer, and each one's output
        return self.ctc(encoded), hidden[1], hidden[len(hidden) // 2], hidden[-1]


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_layers_are_those_of_torch(system, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    mixer, encoder_module, longest = SYSTEMS[system]
    transformer = SummaryMixingASR(
        30,
        80,
        token_mixer=mixer,
        encoder_module=encoder_module,
        d_model=16,
        nhead=2,
        num_encoder_layers=3,
        num_decoder_layers=0,
        d_ffn=16,
        csgu_linear_units=16,
        kernel_size=5,
        output_hidden_states=True,
    )
    normalize = Normalization(norm_type="global")
    normalize.glob_mean, normalize.glob_std = torch.full((80,), -10.0), torch.full((80,), 5.0)
    front_end = MaskedConvolutionFrontEnd(80, (4, 4), dropout=0.0)
    graph = OfflineGraph(normalize, front_end, transformer, Layers(16)).eval()
    graph.outputs = "log_probs", "layer_1", "layer_2", "layer_3", "log_probs_lens"
    with torch.no_grad():
        graph(torch.zeros(1, 4, 80), torch.tensor([4]))
    onnx._write(graph, tmp_path / "model.onnx", onnx.OFFLINE_METADATA)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for frames in (1, 2, 5, 100, 1001, longest):
        x, lengths = 5 * torch.randn(2, frames, 80) - 10, torch.tensor([frames, (frames + 1) // 2])
        with torch.no_grad():
            expected, ends = graph(x, lengths)
        *found, found_ends = session.run(None, {"x": x.numpy(), "x_lens": lengths.numpy()})
        assert found_ends.tolist() == ends.tolist() == (-(-lengths // 4)).tolist()
        for ours, theirs in zip(expected, found, strict=True):
            theirs = torch.from_numpy(theirs)
            for row, end in enumerate(ends):
                torch.testing.assert_close(theirs[row, :end], ours[row, :end], atol=1e-4, rtol=0)
