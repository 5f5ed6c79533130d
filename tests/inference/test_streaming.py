"""Words of streams: the same in any split and beside any others, final where it pauses."""

from functools import partial
from random import Random
from types import SimpleNamespace

import numpy
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.nnet.attention import MultiheadAttention
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import streaming
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import KaldiFbank, WholeFrameFbank
from speechbrain_summarymixing.lobes.mixers import NoMixing
from speechbrain_summarymixing.nnet.streaming import state_bytes

BUS, CODE, REMINDER = CLIPS = [soundfile.read(file, dtype="float32")[0] for file in FILES]
SILENCE = numpy.zeros(32000, "float32")


@pytest.fixture(scope="module")
def loaded():
    return load_model(EXAMPLE, "cpu")


@pytest.fixture(scope="module")
def model(loaded):
    return StreamingModel(loaded, chunk_ms=1280)


@pytest.fixture(scope="module")
def by_beam(loaded):
    return StreamingModel(loaded, chunk_ms=1280, decoder="beam", beam_size=5)


def hear(model, samples, sizes=()):
    """All events of a stream that gets pieces of some sizes and then the rest, and its text."""
    events = []
    with model.open() as stream:
        for size in sizes:
            events += stream.accept(samples[:size])
            samples = samples[size:]
        events += stream.accept(samples) + stream.finish()
        return events, stream.text


def test_words_come_while_they_are_said(model):
    events, text = hear(model, CODE)
    assert text == SAID["code"]
    assert [event.final for event in events] == [False, False, True]
    for event, later in zip(events, events[1:]):
        assert later.text.startswith(event.text) and event.seconds < later.seconds
    for event in events:
        assert [word.word for word in event.words] == event.text.split()
        times = [time for word in event.words for time in (word.begin, word.end)]
        assert times == sorted(times) and 0 <= times[0] and times[-1] <= event.seconds
        assert all(0 < word.confidence <= 1 for word in event.words)


@settings(max_examples=6)
@given(sizes=st.lists(st.integers(0, 30_000), max_size=12))
def test_any_split_has_the_same_events(model, sizes):
    assert hear(model, REMINDER, sizes) == hear(model, REMINDER)


def test_16_bit_samples_and_floats_are_the_same(model):
    samples, _ = soundfile.read(FILES[1], dtype="int16")
    assert hear(model, samples) == hear(model, CODE) == hear(model, torch.from_numpy(samples))


def test_samples_of_the_other_byte_order_are_the_same(model):
    assert hear(model, CODE.astype(">f4")) == hear(model, CODE)


def test_the_owner_of_samples_may_write_over_them(model):
    block = CODE.copy()
    with model.open() as stream:
        stream.put(block)
        block[:] = 0
        stream.finish()
        assert stream.text == SAID["code"]


@settings(max_examples=4)
@given(sizes=st.lists(st.integers(0, 30_000), max_size=12))
def test_any_split_has_the_same_events_by_beam_search(by_beam, sizes):
    assert hear(by_beam, REMINDER, sizes) == hear(by_beam, REMINDER)


def test_beam_search_hears_what_it_hears_in_the_whole(loaded):
    model = StreamingModel(loaded, chunk_ms=5120, decoder="beam")
    for clip, file in zip(CLIPS, FILES):
        (expected,) = transcribe(loaded, [file], decoder="beam")
        (event,), text = hear(model, clip)
        assert text == event.text == expected.text and event.final
        assert [word.word for word in event.words] == text.split()
        for word, other in zip(event.words, expected.words):
            assert abs(word.begin - other.begin) < 0.1
            assert other.begin < word.end < other.end + 0.1
            assert 0 < word.confidence <= 1


def test_what_a_beam_said_before_a_pause_or_for_long_is_final(loaded, monkeypatch):
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 3.0)
    model = StreamingModel(loaded, chunk_ms=640, decoder="beam")
    finals, events, sizes = [], [], []
    samples = numpy.concatenate([CODE[:-3000], CODE[3000:], SILENCE, REMINDER])
    with model.open() as stream:
        for piece in numpy.split(samples, range(4000, len(samples), 4000)):
            for event in stream.accept(piece):
                events.append(event)
                finals += [event.text] if event.final else []
                assert stream.final == finals
                assert stream.text == " ".join([*finals, *filter(None, [stream.partial])])
            sizes.append(state_bytes(model._state))
        (last,) = stream.finish()
        assert stream.final == [*finals, last.text] and stream.partial == ""
    times = [w.begin for event in (*events, last) if event.final for w in event.words]
    assert len(finals) > 2 and times == sorted(times) and times[-1] > len(samples) / 16000 - 1
    texts = [event.text for event in events]
    assert all(text != later for text, later in zip(texts, texts[1:]))
    assert max(sizes) < model.state_bytes + 10 * 40 * 3 * 8  # of 40 tokens that are not final


def test_twenty_streams_at_once_say_what_one_alone_says(loaded):
    model = StreamingModel(loaded, chunk_ms=640)
    parts = [CLIPS[i % 3][24_000 + 800 * i :] for i in range(20)]
    alone = [hear(model, part) for part in parts]
    streams = [model.open() for _ in parts]
    events = {stream: [] for stream in streams}
    for start in range(0, max(map(len, parts)), 8000):
        for stream, part in zip(streams, parts):
            stream.put(part[start : start + 8000])
            if start < len(part) <= start + 8000:
                stream.end()
        for stream, told in model.advance().items():
            events[stream] += told
    for stream, (expected, text) in zip(streams, alone):
        assert stream.text == text
        assert [e.text for e in events[stream]] == [e.text for e in expected]
    assert len({text for _, text in alone}) > 3


@pytest.mark.parametrize("seed, decoder", [(0, "greedy"), (1, "greedy"), (2, "beam")])
def test_streams_come_and_go_and_say_what_each_says_alone(loaded, seed, decoder):
    random = Random(seed)
    model, alone = (StreamingModel(loaded, chunk_ms=640, decoder=decoder) for _ in range(2))
    parts = [clip[random.randrange(8000) :] for clip in CLIPS for _ in range(2)]
    random.shuffle(parts)
    waiting, streams, said = list(range(len(parts))), {}, {}
    while waiting or streams:
        if waiting and random.random() < 0.5:
            index = waiting.pop()
            streams[index] = (model.open(), parts[index], [])
        for index, (stream, rest, events) in list(streams.items()):
            piece = rest[: random.randint(0, 20_000)]
            stream.put(piece)
            streams[index] = (stream, rest[len(piece) :], events)
            if len(piece) == len(rest):
                stream.end()
        told = model.advance()
        for index, (stream, rest, events) in list(streams.items()):
            events += told.get(stream, [])
            if not len(rest):
                said[index] = [event.text for event in events if event.final], stream.text
                stream.close()
                del streams[index]
    for index, part in enumerate(parts):
        events, text = hear(alone, part)
        assert said[index] == ([event.text for event in events if event.final], text)
    assert not model.advance()


def test_one_stream_leaves_the_news_of_others(model):
    with model.open() as one, model.open() as other:
        one.put(CODE)
        one.end()
        other.accept(BUS)
        assert model.advance()[one][-1].text == SAID["code"]


def test_a_pause_makes_what_was_said_final_for_good(model):
    finals = []
    with model.open() as stream:
        samples = numpy.concatenate([CODE, SILENCE, REMINDER])
        for piece in numpy.split(samples, range(4000, len(samples), 4000)):
            for event in stream.accept(piece):
                finals += [event.text] if event.final else []
                assert stream.final == finals
                assert stream.text == " ".join([*finals, *filter(None, [stream.partial])])
        assert len(finals) == 1
        (last,) = stream.finish()
        assert stream.final == [*finals, last.text] and stream.partial == ""
    assert finals[0] == SAID["code"]
    assert last.words[0].begin > (len(CODE) + len(SILENCE)) / 16000 - 0.2


@pytest.mark.parametrize("level", [0.0, 1e-4, 0.01])
def test_silence_and_steady_noise_say_nothing(loaded, level):
    random = torch.Generator().manual_seed(0)
    noise = level * torch.randn(16000 * 5, generator=random)
    assert hear(StreamingModel(loaded, chunk_ms=640), noise) == ([], "")
    noise[32000 : 32000 + len(CODE)] += torch.from_numpy(CODE)
    assert len(hear(StreamingModel(loaded, chunk_ms=1280), noise)[1].split()) > 4


def test_without_a_pause_words_but_the_last_become_final(loaded, model, monkeypatch):
    speech = numpy.concatenate([CODE[:-3000], CODE[3000:-3000], CODE])
    _, text = hear(model, speech)
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 3.0)
    with model.open() as stream:
        for piece in numpy.split(speech, range(4000, len(speech), 4000)):
            for event in stream.accept(piece):
                if event.final:
                    assert stream.partial and event.text == stream.final[-1]
        stream.finish()
        assert len(stream.final) > 2 and stream.text == " ".join(stream.final) == text


def test_without_a_pause_and_spaces_tokens_but_the_last_become_final(loaded, monkeypatch):
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 3.0)
    model = StreamingModel(loaded, chunk_ms=640)
    tokenizer = loaded.tokenizer
    pieces = SimpleNamespace(
        id_to_piece=lambda token: tokenizer.id_to_piece(token).replace("▁", ""),
        decode_ids=tokenizer.decode_ids,
    )
    monkeypatch.setattr(model, "tokenizer", pieces)
    speech = numpy.concatenate([CODE[:-3000], CODE[3000:-3000], CODE])
    with model.open() as stream:
        stream.accept(speech)
        assert len(stream.final) > 1 and max(map(len, stream.final)) < 60


def test_a_stream_goes_on_after_its_end(model):
    with model.open() as stream:
        first = stream.accept(CODE) + stream.finish()
        second = stream.accept(CODE) + stream.finish()
        assert first == second
        assert stream.final == [SAID["code"]] * 2
        assert stream.finish() == []
        stream.reset()
        assert stream.text == "" and stream.final == []
        assert stream.accept(CODE) + stream.finish() == first
        stream.accept(BUS)
        stream.reset()
        assert stream.accept(CODE) + stream.finish() == first


def test_a_closed_stream_makes_room_and_takes_nothing(model):
    expected, _ = hear(model, CODE)
    with model.open() as other, model.open() as stream:
        stream.put(BUS)
        stream.close()
        stream.close()
        for call in (partial(stream.accept, CODE), partial(stream.put, CODE), stream.finish):
            with pytest.raises(UserError, match="closed: open another one"):
                call()
        size = state_bytes(model._state)
        with model.open() as new:
            assert new.accept(CODE) + new.finish() == expected
            assert state_bytes(model._state) == size
        assert other.finish() == []


def test_memory_does_not_grow_with_time(loaded):
    model = StreamingModel(loaded, chunk_ms=640, left_ms=1280)
    sizes = set()
    with model.open() as stream:
        for _ in range(3):
            for piece in numpy.array_split(numpy.concatenate([CODE, SILENCE]), 10):
                stream.accept(piece)
            kept = [stream._sound, *stream._windows._pieces]
            assert sum(x.numel() for x in kept) < 4 * 16000
            assert not stream._tokens and not stream._due
            sizes.add(state_bytes(model._state))
    assert sizes == {model.state_bytes}


@pytest.mark.parametrize(
    "samples, message",
    [
        (numpy.zeros(800, "int32"), "int32, but must be floats"),
        (numpy.zeros(800, "U1"), "U1, but must be floats"),
        (numpy.zeros((800, 2), "float32"), r"shape .800, 2., but must be those of one channel"),
        (numpy.array([0.0, numpy.nan]), "not finite"),
        (numpy.array([0.0, numpy.inf], "float32"), "not finite"),
        (numpy.full(800, 12000.0), "reach 1.2e.04, but full scale is 1"),
    ],
)
def test_what_is_no_sound_is_refused_and_leaves_the_stream(model, samples, message):
    with model.open() as stream:
        stream.accept(CODE[:30000])
        with pytest.raises(UserError, match=message):
            stream.accept(samples)
        stream.accept(CODE[30000:])
        stream.finish()
        assert stream.text == SAID["code"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"chunk_ms": 50}, "chunk_ms is 50, but must be a multiple of 40 ms, from 40 on"),
        ({"chunk_ms": 0}, "chunk_ms is 0"),
        ({"chunk_ms": float("inf")}, "chunk_ms is inf"),
        ({"chunk_ms": 640, "left_ms": 100}, "left_ms is 100, but must be a multiple of 640 ms"),
        ({"left_ms": -640}, "left_ms is -640"),
        ({"endpoint_ms": 0}, "endpoint_ms is 0, but must be a multiple of 1 ms, from 1 on"),
        (
            {"decoder": "joint"},
            "--decoder is joint, but the .* give a stream --decoder greedy",
        ),
        ({"decoder": "none"}, "--decoder is none, but this model has joint and greedy and beam"),
        ({"beam_size": 4}, "--beam-size is 4, but --decoder greedy has no beam"),
        ({"decoder": "beam", "beam_size": 0}, "--beam-size is 0"),
        ({"decoder": "beam", "ngram": "no.arpa"}, "--ngram is no.arpa: no such file"),
    ],
)
def test_options_that_cannot_be(loaded, options, message):
    with pytest.raises(UserError, match=message):
        StreamingModel(loaded, **options)


def test_chunks_that_it_was_not_trained_on_are_told(loaded, monkeypatch, caplog):
    StreamingModel(loaded)
    assert "not trained on chunks" in caplog.text
    caplog.clear()
    monkeypatch.setattr(loaded.hparams, "chunk_frames", [8, 32], raising=False)
    StreamingModel(loaded)
    assert not caplog.text


def transformer(**options):
    return SummaryMixingASR(
        80, 320, d_model=144, nhead=4, num_encoder_layers=1, num_decoder_layers=0, **options
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda: {"transformer": transformer(token_mixer=lambda: MultiheadAttention(4, 144))},
            "MultiheadAttention, which does not declare supports_streaming",
        ),
        (
            lambda: {"transformer": transformer(token_mixer=NoMixing, encoder_module="contextnet")},
            "ContextNetEncoder, which needs the whole utterance",
        ),
        (lambda: {"compute_features": WholeFrameFbank()}, "WholeFrameFbank, which needs the whole"),
    ],
)
def test_a_model_that_needs_the_whole_utterance_is_refused(loaded, monkeypatch, change, message):
    for name, value in change().items():
        monkeypatch.setattr(loaded.hparams, name, value)
    with pytest.raises(UserError, match=f"cannot be used for streams: .*{message}"):
        StreamingModel(loaded)


def test_a_rate_whose_frames_are_not_quite_40_ms(loaded, monkeypatch):
    monkeypatch.setattr(loaded.hparams, "compute_features", KaldiFbank(80, sample_rate=22050))
    monkeypatch.setattr(loaded.hparams, "sample_rate", 22050)
    model = StreamingModel(loaded, chunk_ms=640)
    assert model.encoder.chunk_frames == 16 and model.frame_seconds == 880 / 22050
