"""Attention with parts taken away: against attention itself, and against what is left by hand."""

from pathlib import Path

import pytest
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from speechbrain_summarymixing.analysis.diagnostic_attention import (
    DiagnosticAttention,
    HalfOfLayers,
)
from speechbrain_summarymixing.lobes.branchformer import MixerBranchformerEncoder
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.training.config import load_hyperparams

ROOT = Path(__file__).parents[2]
D, T = 8, 23
PADDING = torch.arange(T) >= torch.tensor([T, 15, 1])[:, None]


def make(**options):
    torch.manual_seed(0)
    mixer = DiagnosticAttention(D, nhead=2, dropout=0.0, **options).double()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    return mixer


def window(mixer, neighbours):
    """The same weights as attention in a window."""
    other = SelectiveSummaryMixing(D, nhead=2, neighbours=neighbours, summaries=0, dropout=0.0)
    other = other.double()
    other.load_state_dict(mixer.state_dict())
    return other


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(3, T, D, dtype=torch.float64)


@pytest.mark.parametrize("furthest", [None, 1, 5])
def test_with_all_parts_it_is_relative_attention(x, furthest):
    mixer = make(furthest=furthest)
    expected = window(mixer, T if furthest is None else furthest)(x, key_padding_mask=PADDING)[0]
    torch.testing.assert_close(mixer(x, key_padding_mask=PADDING)[0], expected)


def test_without_content_or_positions_the_rest_is_left(x):
    mixer = make(content=False)
    whole = window(mixer, T)
    with torch.no_grad():  # keys of zero have no content
        whole.projection.weight[D : 2 * D] = 0
    torch.testing.assert_close(mixer(x)[0], whole(x)[0])
    mixer = make(positions=False)
    assert not mixer.has_positions
    whole = window(mixer, T)
    with torch.no_grad():
        whole.position.weight.zero_()
    torch.testing.assert_close(mixer(x)[0], whole(x)[0])


def test_near_frames_are_hidden(x):
    mixer = make(nearest=17)
    output = mixer(x)[0]
    changed = x.clone()
    changed[:, 10] += 1  # no frame is 17 or more away from it
    moved = (mixer(changed)[0] - output).abs().amax(2) > 1e-9
    assert moved.nonzero()[:, 1].tolist() == []
    changed = x.clone()
    changed[:, 2] += 1
    moved = (mixer(changed)[0] - output).abs().amax((0, 2)) > 1e-9
    assert moved.nonzero()[:, 0].tolist() == [2, 19, 20, 21, 22]  # 2: its query has changed
    torch.testing.assert_close(output[:, 10], mixer.output.bias.expand(3, D))


def test_the_mean_row_is_the_mean_of_the_outputs(x):
    mixer, own = make(mean_row=True), make()
    expected = own(x[:1])[0].mean(1, keepdim=True).expand(1, T, D)
    torch.testing.assert_close(mixer(x[:1])[0], expected)
    padded = mixer(x, key_padding_mask=PADDING)[0]
    torch.testing.assert_close(padded[1, :15], mixer(x[1:2, :15])[0][0])
    assert padded[1, 15:].eq(0).all()
    mixer(x, key_padding_mask=PADDING | (torch.arange(3) == 2)[:, None])[0].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


def test_frozen_queries_and_keys_do_not_learn(x):
    for frozen in (True, False):
        mixer = make(frozen=frozen)
        mixer(x)[0].square().sum().backward()
        asking, values = mixer.projection.weight.grad.split([2 * D, D])
        assert asking.eq(0).all() == frozen and values.ne(0).any()


def test_half_of_the_layers():
    for half, expected in {"lower": "xxx...", "upper": "...xxx", "all": "xxxxxx"}.items():
        made = HalfOfLayers(lambda: DiagnosticAttention(D), half, 6)
        for _ in range(2):  # an encoder, and another one
            layers = [made() for _ in range(6)]
            assert "".join(".x"[not isinstance(m, NoMixing)] for m in layers) == expected


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"content": False, "positions": False}, "both False"),
        ({"nearest": 5, "furthest": 4}, "nearest is 5 and furthest 4"),
        ({"nearest": -1}, "nearest is -1"),
    ],
)
def test_what_cannot_be_is_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        DiagnosticAttention(D, **options)
    with pytest.raises(ValueError, match="half is 'left'"):
        HalfOfLayers(NoMixing, "left", 6)


def test_masks_and_streams_are_refused(x):
    with pytest.raises(ValueError, match="whole utterances"):
        make()(x, attn_mask=torch.zeros(T, T, dtype=torch.bool))
    encoder = MixerBranchformerEncoder(1, D, make, csgu_linear_units=8)
    with pytest.raises(ValueError, match="DiagnosticAttention, which does not declare"):
        encoder.make_streaming_context(DynChunkTrainConfig(4))


@pytest.mark.parametrize("half, mixers", [("all", 6), ("lower", 3)])
def test_its_system_is_built(tmp_path, half, mixers):
    options = {"half": half, "furthest": 16, "output_folder": str(tmp_path)}
    hparams = load_hyperparams(ROOT / "docs/mixers/diagnostics.yaml", options)
    encoder = hparams["transformer"].encoder
    found = [mixer for mixer in encoder.mixers() if isinstance(mixer, DiagnosticAttention)]
    assert len(found) == mixers and {mixer.furthest for mixer in found} == {16}
    assert encoder.has_own_positions()
