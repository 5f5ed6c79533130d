import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_summarymixing.lobes.frontend import (
    MaskedConvolutionFrontEnd,
    Normalization,
    WholeFrameFbank,
    pad_to_multiple,
)

HOPS = 4 * 160


def front_end():
    torch.manual_seed(0)
    return MaskedConvolutionFrontEnd(20, (4, 3)).eval()


@pytest.mark.parametrize("samples", [1, 639, 640, 641, 16000])
def test_frames_are_a_whole_multiple_of_the_stride(samples):
    features = WholeFrameFbank(n_mels=20)(torch.rand(2, samples))
    assert features.shape == (2, 4 * -(-samples // HOPS), 20)


def test_fbank_refuses_channels_by_shape():
    with pytest.raises(ValueError, match=r"\(1, 2, 160\).*average the channels"):
        WholeFrameFbank()(torch.rand(1, 2, 160))


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_waveform_to_front_end_is_exact_under_padding(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    fbank, convolutions = WholeFrameFbank(n_mels=20), front_end()
    wavs = [torch.randn(HOPS * n, generator=generator) for n in lengths]
    longest = max(lengths)
    batch = torch.stack([torch.nn.functional.pad(w, (0, HOPS * longest - len(w))) for w in wavs])
    relative = torch.tensor([n / longest for n in lengths])
    together = convolutions(fbank(batch), relative)
    for row, (wav, n) in enumerate(zip(wavs, lengths)):
        alone = convolutions(fbank(wav[None]), torch.ones(1))
        assert alone.shape[1] == n
        torch.testing.assert_close(together[row, :n], alone[0], atol=2e-5, rtol=1e-5)


def test_front_end_does_not_see_what_stands_in_the_padding():
    convolutions, lengths = front_end(), torch.tensor([0.5, 1.0])
    x = torch.rand(2, 16, 20)
    spoilt = x.clone()
    spoilt[0, 8:] = float("nan")
    assert torch.equal(
        convolutions(x, lengths)[0, :2], convolutions(spoilt, lengths).nan_to_num()[0, :2]
    )
    assert convolutions(spoilt, lengths).isfinite().all()


def test_pad_to_multiple_adds_zeros_only_where_needed():
    assert pad_to_multiple(torch.ones(3), 4).tolist() == [1, 1, 1, 0]
    assert pad_to_multiple(torch.ones(2, 4), 4).shape == (2, 4)


def test_normalization_statistics_follow_their_input(monkeypatch):
    normalize = Normalization().train()
    normalize(torch.rand(2, 5, 3), torch.ones(2), epoch=1)
    normalize.eval()
    with torch.device("meta"):
        x = torch.rand(2, 5, 3)
    assert normalize(x, torch.ones(2, device="meta")).device.type == "meta"
    assert normalize.glob_mean.device.type == "meta"
