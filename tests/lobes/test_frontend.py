import math
from pathlib import Path

import kaldi_native_fbank
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.frontend import (
    KaldiFbank,
    MaskedConvolutionFrontEnd,
    Normalization,
    WholeFrameFbank,
    pad_to_multiple,
)

HOPS = 4 * 160


def front_end(**options):
    torch.manual_seed(0)
    return MaskedConvolutionFrontEnd(20, (4, 3), **options).eval()


every_fbank = pytest.mark.parametrize("features", [WholeFrameFbank, KaldiFbank])


@every_fbank
@pytest.mark.parametrize("samples", [1, 639, 640, 641, 16000])
def test_frames_are_a_whole_multiple_of_the_stride(features, samples):
    features = features(n_mels=20)(torch.rand(2, samples))
    assert features.shape == (2, 4 * -(-samples // HOPS), 20)


@every_fbank
def test_fbank_refuses_channels_by_shape(features):
    with pytest.raises(ValueError, match=r"\(1, 2, 160\).*average the channels"):
        features()(torch.rand(1, 2, 160))
    with pytest.raises(ValueError, match="no samples"):
        features()(torch.rand(1, 0))


@every_fbank
@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 12), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_waveform_to_front_end_is_exact_under_padding(features, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    fbank, convolutions = features(n_mels=20), front_end()
    wavs = [torch.randn(HOPS * n, generator=generator) for n in lengths]
    longest = max(lengths)
    batch = torch.stack([torch.nn.functional.pad(w, (0, HOPS * longest - len(w))) for w in wavs])
    relative = torch.tensor([n / longest for n in lengths])
    together = convolutions(fbank(batch, relative), relative)
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


def test_mel_bands_that_are_mirrored_stream_and_end_as_those_that_are_not():
    convolutions, x = front_end(frequency_padding="reflect"), torch.randn(2, 16, 20)
    lengths = torch.tensor([0.5, 1.0])
    whole = convolutions(x, lengths)
    torch.testing.assert_close(whole[:1, :2], convolutions(x[:1, :8]), atol=1e-6, rtol=1e-6)
    pieces, state = [], convolutions.initial_state(2)
    for part in x.split(4, 1):
        output, state = convolutions.step(part, state)
        pieces.append(output)
    torch.testing.assert_close(torch.cat(pieces, 1), convolutions(x), atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="frequency_padding is 'zeros', but must be constant or"):
        front_end(frequency_padding="zeros")


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


def kaldi(waveform, sample_rate=16000):
    """The frames (N, 80) of a waveform (T,), by kaldi-native-fbank."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = sample_rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.high_freq = -400.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(sample_rate, waveform.tolist())
    fbank.input_finished()
    frames = [torch.tensor(fbank.get_frame(i)) for i in range(fbank.num_frames_ready)]
    return torch.stack(frames)


def check_same(features, expected):
    # Kaldi rounds to float32: a loud band's rounding shows in one that is 80 dB below it
    ratio = ((expected.amax(1, keepdim=True) - expected) / 2).exp()  # of amplitudes
    excess = (features - expected).abs() - 2 * torch.finfo(torch.float32).eps * ratio
    assert excess.max() < 1e-3


def check_kaldi(waveform, sample_rate=16000):
    expected = kaldi(waveform, sample_rate)
    hop = sample_rate // 100
    assert len(expected) == (len(waveform) + hop // 2) // hop
    for dtype in (torch.float32, torch.float64):
        features = KaldiFbank(sample_rate=sample_rate)(waveform[None].to(dtype))
        assert features.dtype == dtype
        check_same(features[0, : len(expected)], expected)


@pytest.mark.parametrize("samples", [80, 81, 90, 161, 400, 5000, 16000, 16079, 16080, 16123])
def test_kaldi_features_of_noise_and_silence_are_kaldis(samples):
    torch.manual_seed(samples)
    for scale in (0.3, 1e-4, 0.0):
        check_kaldi(scale * torch.randn(samples))
    check_kaldi(0.3 * torch.randn(samples) + 0.2)  # with an offset


@settings(max_examples=25)
@given(samples=st.integers(80, 20000), seed=st.integers(0, 99))
def test_kaldi_features_of_any_length_are_kaldis(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    check_kaldi(0.3 * torch.randn(samples, generator=generator))


@pytest.mark.parametrize("hertz", [100, 440, 7000])
def test_kaldi_features_of_a_sine_with_an_offset_are_kaldis(hertz):
    check_kaldi(0.5 * torch.sin(torch.arange(16000) * (2 * math.pi * hertz / 16000)) + 0.3)


@pytest.mark.parametrize("sample_rate", [8000, 11025, 22050, 44100])
def test_kaldi_features_at_another_sample_rate_are_kaldis(sample_rate):
    torch.manual_seed(0)
    check_kaldi(0.3 * torch.randn(sample_rate + 37), sample_rate)


def check_kaldi_of_files(files):
    assert len(files) >= 3
    for file in files:
        check_kaldi(torch.tensor(soundfile.read(file, dtype="float32")[0]))


def test_kaldi_features_of_example_speech_are_kaldis():
    check_kaldi_of_files(list((Path(__file__).parents[2] / "examples").rglob("*.flac")))


def test_kaldi_features_of_real_speech_are_kaldis(speech_data):
    check_kaldi_of_files(sorted(speech_data.glob("LibriSpeech/dev-clean/*/*/*.flac"))[:40])


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 3000), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_kaldi_features_are_the_same_alone_and_in_a_batch(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(len(lengths), max(lengths), generator=generator)  # noise in the padding
    together = KaldiFbank()(batch, torch.tensor(lengths) / max(lengths))
    for row, samples in enumerate(lengths):
        alone = KaldiFbank()(batch[row : row + 1, :samples], torch.ones(1))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        # what ends amid a frame of the encoder is followed by zeros
        padded = pad_to_multiple(batch[row, :samples], HOPS)
        check_same(together[row, : len(alone)], kaldi(padded))


def test_kaldi_features_under_autocast_and_their_gradients():
    fbank, wavs = KaldiFbank(), torch.randn(2, 8000)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fbank(wavs), fbank(wavs.double()).float(), atol=2e-3, rtol=0)
    wavs.requires_grad_()
    fbank(wavs).sum().backward()
    assert wavs.grad.isfinite().all() and wavs.grad.any()
    assert not fbank.state_dict()


def test_kaldi_features_are_made_on_the_device_of_the_waveform():
    with FakeTensorMode(), torch.device("cuda"):
        features = KaldiFbank()(torch.randn(2, 8000), torch.ones(2))
    assert features.device.type == "cuda"
