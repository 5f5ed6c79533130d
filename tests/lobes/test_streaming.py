"""Speech in parts of any size, in streams that begin and end apart, equal to whole utterances."""

from functools import partial
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import (
    KaldiFbank,
    MaskedConvolutionFrontEnd,
    Normalization,
    WholeFrameFbank,
)
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.lobes.streaming import SampleWindows, SpeechEncoder
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.streaming import (
    join_rows,
    put_rows,
    reset_rows,
    state_bytes,
    take_rows,
)
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing

D = 16
MIXERS = {
    "summary": partial(SummaryMixing, D, layer_norm=False),
    "fast": partial(SummaryMixing, D, shared_projection=True),
    "selective": partial(SelectiveSummaryMixing, D, nhead=4, neighbours=6, summaries=2),
    "window": partial(SelectiveSummaryMixing, D, nhead=4, neighbours=6, summaries=0),
    "none": NoMixing,
}
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
every_encoder = pytest.mark.parametrize("encoder", ["branchformer", "conformer", "transformer"])


def speech_encoder(mixer, encoder, config, dtype=torch.float64, **options):
    torch.manual_seed(0)
    features, front_end = KaldiFbank(20), MaskedConvolutionFrontEnd(20, (4, 3))
    transformer = SummaryMixingASR(
        30,
        15,
        token_mixer=mixer,
        encoder_module=encoder,
        d_model=D,
        nhead=2,
        num_encoder_layers=2,
        num_decoder_layers=1,
        d_ffn=32,
        csgu_linear_units=24,
        kernel_size=5,
        **options,
    )
    normalize = Normalization(norm_type="global")
    normalize.glob_mean = torch.full((20,), -10.0, dtype=dtype)
    normalize.glob_std = torch.full((20,), 3.0, dtype=dtype)
    net = SpeechEncoder(features, normalize, front_end, transformer, config)
    return (net if dtype == torch.float32 else net.to(dtype)).eval()


class Heard:
    """What each layer puts out, and the encoder at the end, for each stream of a batch."""

    def __init__(self, net):
        self.outputs = []
        for layer in net.transformer.encoder.layers:
            layer.register_forward_hook(lambda _m, _x, output: self.outputs.append(output[0]))

    def taken(self, encoded):
        outputs, self.outputs = [*self.outputs, encoded], []
        return outputs


class Pool:
    """Rows of one state, each of which hears utterance after utterance."""

    def __init__(self, net, rows):
        self.net, self.heard, self.state = net, Heard(net), net.initial_state(rows)
        self.windows = [net.windows() for _ in range(rows)]
        self.outputs = [[] for _ in range(rows)]
        self.sizes = {state_bytes(self.state)}

    def hear(self, pieces, finish=()):
        """Takes a piece of samples for some rows, {row: samples}; some utterances end."""
        due = {}
        for row, samples in pieces.items():
            self.windows[row].accept(samples)
            due[row] = list(self.windows[row].ready())
        for row in finish:
            due.setdefault(row, []).extend(self.windows[row].finish())
        while any(due.values()):
            rows = torch.tensor([row for row, windows in due.items() if windows])
            windows, frames = zip(*(due[row].pop(0) for row in rows.tolist()))
            frames = torch.tensor(frames)
            before = take_rows(self.state, rows)
            encoded, after = self.net.step(torch.stack(windows), frames, before)
            self.state = put_rows(self.state, rows, after)
            self.sizes.add(state_bytes(self.state))
            outputs = self.heard.taken(encoded)
            for place, row in enumerate(rows.tolist()):
                self.outputs[row].append([x[place, : frames[place]] for x in outputs])
        ended = torch.zeros(len(self.windows), dtype=torch.bool)
        ended[list(finish)] = True
        self.state = reset_rows(self.state, ended)

    def said(self, row):
        """The outputs of the utterance that ended, whole, for each layer."""
        outputs, self.outputs[row] = self.outputs[row], []
        return [torch.cat(parts) for parts in zip(*outputs)]


def whole(net, samples):
    """As `Pool.said`, of an utterance alone."""
    heard = Heard(net)
    samples = torch.nn.functional.pad(samples, (0, -len(samples) % net.frame_samples))
    encoded = net(samples.unsqueeze(0))
    return [x[0] for x in heard.taken(encoded)]


@every_encoder
@every_mixer
@settings(max_examples=4)
@example(chunk=3, left=2, dtype=torch.float64, rows=2, longest=5000, random=Random(5))
@given(
    chunk=st.integers(1, 12),
    left=st.none() | st.integers(0, 4),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    rows=st.integers(1, 3),
    longest=st.sampled_from([1, 60, 700, 5000]),
    random=st.randoms(use_true_random=False),
)
def test_any_split_of_streams_that_begin_and_end_apart(
    encoder, mixer, chunk, left, dtype, rows, longest, random
):
    config = DynChunkTrainConfig(chunk, left)
    net, alone = (speech_encoder(mixer, encoder, config, dtype) for _ in range(2))
    pool, left_to_say, said = Pool(net, rows), random.randint(1, 4), {}
    with torch.no_grad():
        while left_to_say or said:
            for row in range(rows):
                if row not in said and left_to_say and random.random() < 0.5:
                    said[row] = 0.1 * torch.randn(
                        random.randint(1, min(20_000, 2000 * longest)), dtype=dtype
                    )
                    said[row] = (said[row], said[row])
                    left_to_say -= 1
            heard = {row: rest[: random.randint(1, longest)] for row, (_, rest) in said.items()}
            said = {row: (said[row][0], said[row][1][len(heard[row]) :]) for row in said}
            ended = [row for row, (_, rest) in said.items() if not len(rest)]
            pool.hear(heard, ended)
            for row in ended:
                expected = whole(alone, said.pop(row)[0])
                for streamed, layer in zip(pool.said(row), expected, strict=True):
                    atol = 1e-4 if dtype == torch.float32 else 1e-9
                    torch.testing.assert_close(streamed, layer, atol=atol, rtol=0)
    assert len(pool.sizes) == 1


@every_encoder
@pytest.mark.parametrize("name", ["summary", "selective"])
def test_a_causal_encoder_streams_too(encoder, name):
    config = DynChunkTrainConfig(3)
    net, alone = (speech_encoder(MIXERS[name], encoder, config, causal=True) for _ in range(2))
    samples, pool = 0.1 * torch.randn(15_000, dtype=torch.float64), Pool(net, 1)
    with torch.no_grad():
        pool.hear({0: samples}, [0])
        for streamed, layer in zip(pool.said(0), whole(alone, samples), strict=True):
            torch.testing.assert_close(streamed, layer, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["summary", "selective"])
def test_an_hour_is_as_exact_as_a_second(name):
    """Positions and sums of the last chunks of an hour, whose first 59 minutes are silent."""
    config = DynChunkTrainConfig(16)
    net = speech_encoder(MIXERS[name], "transformer", config, torch.float32)
    twin = speech_encoder(MIXERS[name], "transformer", config, torch.float64)
    frames = torch.tensor([16])
    windows = 0.1 * torch.randn(4, 1, 16 * 640 + 240)
    states = [x.initial_state(1) for x in (net, twin)]
    for state in states:  # as after 90,000 frames, all of whose sums are those of one chunk
        state[1][0].fill_(90_000)
    with torch.no_grad():
        for window in windows:
            outputs = []
            for index, (model, dtype) in enumerate(((net, torch.float32), (twin, torch.float64))):
                encoded, states[index] = model.step(window.to(dtype), frames, states[index])
                outputs.append(encoded)
            torch.testing.assert_close(outputs[0].double(), outputs[1], atol=1e-4, rtol=0)


@every_encoder
@every_mixer
def test_a_step_stays_on_its_device(encoder, mixer):
    with FakeTensorMode(), torch.device("cuda"):
        net = speech_encoder(mixer, encoder, DynChunkTrainConfig(4, 2), torch.float32)
        state = net.initial_state(2)
        windows, frames = torch.randn(2, 4 * 640 + 240), torch.tensor([4, 3])
        encoded, state = net.step(windows, frames, state)
        encoded, state = net.step(windows, frames, reset_rows(state, torch.tensor([True, False])))
    assert {x.device.type for x in (encoded, *tree_leaves(state))} == {"cuda"}


def test_rows_of_a_state():
    state = ([torch.tensor([[1.0], [2.0]])], torch.tensor([3, 4]))
    assert take_rows(state, torch.tensor([1, 0, 1]))[1].tolist() == [4, 3, 4]
    put = put_rows(state, torch.tensor([1]), ([torch.tensor([[5.0]])], torch.tensor([6])))
    assert put[0][0].flatten().tolist() == [1.0, 5.0] and put[1].tolist() == [3, 6]
    begun = reset_rows(state, torch.tensor([False, True]))
    assert begun[0][0].flatten().tolist() == [1.0, 0.0] and begun[1].tolist() == [3, 0]
    assert state_bytes(state) == 2 * 4 + 2 * 8
    larger = ([torch.tensor([[5.0, 6.0]])], torch.tensor([7]))
    joined = join_rows(state, larger)
    assert joined[0][0].tolist() == [[1, 0], [2, 0], [5, 6]] and joined[1].tolist() == [3, 4, 7]
    assert join_rows(larger, state)[0][0].tolist() == [[5, 6], [1, 0], [2, 0]]
    assert put_rows(state, torch.tensor([0]), larger)[0][0].tolist() == [[5, 6], [2, 0]]
    smaller = ([torch.tensor([[8.0]])], torch.tensor([9]))
    assert put_rows(joined, torch.tensor([2]), smaller)[0][0].tolist() == [[1, 0], [2, 0], [8, 0]]


def test_a_window_holds_no_more_than_itself_in_memory():
    windows = SampleWindows(KaldiFbank(), 2)
    windows.accept(torch.rand(160_000))
    found = [window for window, _ in windows.ready()]
    assert len(found) > 100
    assert all(w.untyped_storage().nbytes() == 4 * w.numel() for w in found)


def test_the_windows_of_no_samples():
    windows = SampleWindows(KaldiFbank(), 2)
    windows.accept(torch.zeros(0))
    assert list(windows.ready()) == list(windows.finish()) == []


def test_what_needs_the_whole_utterance_says_so():
    net = speech_encoder(MIXERS["summary"], "conformer", DynChunkTrainConfig(4))
    parts = net.normalize, net.front_end, net.transformer, DynChunkTrainConfig(4)
    with pytest.raises(ValueError, match="WholeFrameFbank, which needs the whole utterance"):
        SpeechEncoder(WholeFrameFbank(20), *parts)
    net.normalize.norm_type = "sentence"
    with pytest.raises(ValueError, match="norm_type is 'sentence'"):
        SpeechEncoder(net.features, *parts)
    with pytest.raises(ValueError, match="kernel_size is 5"):
        MaskedConvolutionFrontEnd(20, (4, 3), kernel_size=5).initial_state(1)
