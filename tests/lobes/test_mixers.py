import pytest
import torch
from speechbrain.lobes.models.transformer.Conformer import ConvolutionModule
from speechbrain.nnet.hypermixing import HyperMixing
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from speechbrain_summarymixing.lobes.asr import ENCODERS
from speechbrain_summarymixing.lobes.conformer import MaskedConvolutionModule
from speechbrain_summarymixing.lobes.mixers import LinearHyperMixing, RelativeAttention
from speechbrain_summarymixing.lobes.positions import RelativePositions
from speechbrain_summarymixing.nnet.sines import sines

LENGTHS = [7, 20, 13]


def padding_of(lengths):
    return torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


def with_weights_of(module, other):
    module.load_state_dict(other.state_dict(), strict=False)
    return module.eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_hypermixing_is_speechbrains(masked, tied):
    theirs = HyperMixing(16, 24, tied=tied, num_heads=4).eval()
    ours = with_weights_of(LinearHyperMixing(16, 24, nhead=4, tied=tied), theirs)
    x, mask = torch.randn(3, 20, 16), padding_of(LENGTHS) if masked else None
    expected, weights = theirs(x, x, x, key_padding_mask=mask)
    output, ours_weights = ours(x, x, x, key_padding_mask=mask)
    torch.testing.assert_close(output, expected)
    assert weights.shape == (3, 20, 20) and ours_weights is None


def test_hypermixing_refuses_what_it_would_not_heed():
    with pytest.raises(ValueError, match=r"attn_mask of shape \(5, 5\)"):
        LinearHyperMixing(16, 16)(torch.zeros(1, 5, 16), attn_mask=torch.zeros(5, 5).bool())


@pytest.mark.parametrize("signed", [False, True])
def test_scores_of_relative_attention_are_of_the_distance_and_its_sign_if_it_is_signed(signed):
    attention = RelativeAttention(8, 2, signed=signed)
    x = torch.randn(1, 7, 8)
    with torch.no_grad():
        weights = attention(x, x, x, RelativePositions(8, signed)(x))[1][0]  # (H, T, T)
        query, key, _ = (x[0] @ attention.in_proj_weight.T).view(7, 2, 12).chunk(3, -1)  # (T, H, 4)
        u, v = attention.pos_bias_u.view(2, 4), attention.pos_bias_v.view(2, 4)
        for i in range(7):
            scores = []
            for j in range(7):
                distance = torch.tensor(float(i - j if signed else abs(i - j)))
                position = attention.linear_pos(sines(distance, 8)).view(2, 4)
                score = (query[i] + u) * key[j] + (query[i] + v) * position  # (H, 4)
                scores.append(score.sum(-1) / 8**0.5)
            expected = torch.stack(scores, -1).softmax(-1)  # (H, T)
            torch.testing.assert_close(weights[:, i], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("signed", [False, True])
def test_an_encoder_makes_the_positions_that_its_attention_asks_for(signed):
    make = lambda: RelativeAttention(8, 2, signed=signed)  # noqa: E731
    encoder = ENCODERS["branchformer"](1, 8, make, kernel_size=3, csgu_linear_units=8)
    assert encoder.relative_positions.signed is signed


def convolutions(**options):
    torch.manual_seed(0)
    theirs = ConvolutionModule(8, 5, **options).eval()
    return theirs, with_weights_of(MaskedConvolutionModule(8, 5, **options), theirs)


@pytest.mark.parametrize("causal", [False, True])
def test_without_padding_the_convolution_is_speechbrains(causal):
    theirs, ours = convolutions(causal=causal)
    x = torch.randn(2, 19, 8)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("chunk", [1, 2, 4, 7, 19, 30])
def test_chunks_are_convolved_as_in_speechbrain(chunk):
    theirs, ours = convolutions()
    x, config = torch.randn(2, 19, 8), DynChunkTrainConfig(chunk)
    torch.testing.assert_close(
        ours(x, dynchunktrain_config=config), theirs(x, dynchunktrain_config=config)
    )


@pytest.mark.parametrize("chunk", [None, 4])
def test_the_convolution_does_not_see_padding(chunk):
    _, ours = convolutions()
    config = None if chunk is None else DynChunkTrainConfig(chunk)
    x, mask = torch.randn(3, 20, 8), padding_of(LENGTHS).unsqueeze(-1)
    together = ours(x, mask, dynchunktrain_config=config)
    for row, length in enumerate(LENGTHS):
        alone = ours(x[row : row + 1, :length], dynchunktrain_config=config)
        torch.testing.assert_close(together[row, :length], alone[0])
        assert not together[row, length:].any()
