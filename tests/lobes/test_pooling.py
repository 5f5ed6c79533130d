from functools import partial

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import MaskedConvolutionFrontEnd
from speechbrain_summarymixing.lobes.pooling import PooledEncoder
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing


def pooled_encoder(**options):
    transformer = SummaryMixingASR(
        1,
        40,
        token_mixer=partial(SummaryMixing, 16),
        d_model=16,
        nhead=1,
        num_encoder_layers=1,
        num_decoder_layers=0,
        csgu_linear_units=16,
        kernel_size=3,
        **options,
    )
    return PooledEncoder(MaskedConvolutionFrontEnd(20, (4, 8)), transformer).eval()


@settings(max_examples=20)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_mean_and_deviation_of_valid_frames_alone_and_in_a_batch(lengths):
    torch.manual_seed(sum(lengths))
    model = pooled_encoder()
    longest = max(lengths)
    features = torch.randn(len(lengths), 4 * longest, 20)
    relative = torch.tensor(lengths) / longest
    with torch.no_grad():
        together = model(features, relative)
        for index, length in enumerate(lengths):
            alone = features[index : index + 1, : 4 * length]
            torch.testing.assert_close(
                model(alone, torch.ones(1))[0], together[index], atol=1e-4, rtol=0
            )
            frames = model.transformer.encode(model.front_end(alone))[0]
            moments = torch.cat([frames.mean(0), (frames.var(0, correction=0) + 1e-5).sqrt()])
            torch.testing.assert_close(together[index, 0], moments, atol=1e-4, rtol=0)
            torch.testing.assert_close(model(alone)[0], together[index], atol=1e-4, rtol=0)


def test_gradients_are_finite_where_an_utterance_has_one_frame():
    model = pooled_encoder().train()
    model(torch.randn(2, 12, 20), torch.tensor([1 / 3, 1.0])).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_no_tensor_is_made_on_the_wrong_device():
    with FakeTensorMode(), torch.device("cuda"):
        embedding = pooled_encoder()(torch.randn(2, 80, 20), torch.ones(2))
    assert embedding.device.type == "cuda" and embedding.shape == (2, 1, 32)


def test_sums_under_autocast_are_float32():
    model = pooled_encoder()
    features = torch.randn(1, 8000, 20)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        frames = model.transformer.encode(model.front_end(features))[0].float()
        embedding = model(features)[0, 0].float()
    expected = torch.cat([frames.mean(0), (frames.var(0, correction=0) + 1e-5).sqrt()])
    torch.testing.assert_close(embedding, expected, atol=0.02, rtol=0.01)
