"""Files in batches: of like lengths, read ahead, told in their order."""

import signal
import threading
import time
from types import SimpleNamespace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import batches
from speechbrain_summarymixing.inference.batches import WINDOW, in_batches

RATE, READER = 1000, "reads audio ahead"
MODEL = SimpleNamespace(
    device="cpu",
    hparams=SimpleNamespace(sample_rate=RATE, compute_features=SimpleNamespace(samples=40)),
)


@pytest.fixture(autouse=True, scope="module")
def samples():
    """Files are numbers: so many samples; 0 is none, as what cannot be read."""

    def blocks(item, rate, longest, cut):
        if item == 0:
            raise UserError("0: no such file")
        size = round(min(longest, 60.0) * rate)
        cut = [numpy.ones(min(size, item - start)) for start in range(0, item, size)]
        return cut, batches._as_they_are

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_blocks", blocks)
        yield


def readers():
    """Whether a reader is left, after a time in which it may end."""
    for _ in range(100):
        if not (left := [one for one in threading.enumerate() if one.name == READER]):
            return []
        time.sleep(0.05)
    return left


def lengths_of(wavs, lengths):
    """What a model answers: how long each is."""
    return (lengths * wavs.shape[1]).round().astype(int).tolist()


@settings(max_examples=60)
@given(
    files=st.lists(st.integers(0, 3000), max_size=60),
    seconds=st.floats(1.0, 6.0),
    most=st.integers(1, 8),
)
def test_files_come_in_their_order_from_batches_of_like_lengths(files, seconds, most):
    shapes, told = [], []

    def answer(wavs, lengths):
        shapes.append(tuple(wavs.shape))
        return lengths_of(wavs, lengths)

    options = {"segment_seconds": 1.0, "only_speech": False, "progress": told.append}
    limits = {"batch_seconds": seconds, "batch_files": most}
    found = list(in_batches(MODEL, files, answer, **options, **limits))
    assert [one["file"] for one in found] == list(map(str, files))
    for one, length in zip(found, files):
        if length == 0:
            assert one == {"file": "0", "error": "0: no such file"}
            continue
        parts = [min(RATE, length - start) for start in range(0, length, RATE)]
        answers = [size for *_, size in one["answers"]]
        assert answers == [-(-part // 40) * 40 for part in parts]  # whole frames
        assert one["seconds"] == length / RATE
    assert sum(told) == pytest.approx(sum(files) / RATE)
    for count, longest in shapes:
        assert count <= most and (count == 1 or count * (longest - 40) <= seconds * RATE)


def test_the_short_are_not_padded_to_the_long_beside_them():
    shapes = []

    def answer(wavs, lengths):
        shapes.append(tuple(wavs.shape))
        return lengths_of(wavs, lengths)

    files = [400, 4000] * 8
    list(in_batches(MODEL, files, answer, only_speech=False, batch_files=8, batch_seconds=40))
    assert shapes == [(8, 400), (8, 4000)]


def test_the_next_are_read_while_the_model_answers_and_no_more_than_fit():
    asked, at_answers = [], []

    def files():
        for index in range(200):
            asked.append(index)
            yield 1000

    def answer(wavs, lengths):
        time.sleep(0.02)  # in which a reader without a bound reads all
        at_answers.append(len(asked))
        return lengths_of(wavs, lengths)

    options = {"batch_files": 2, "batch_seconds": 40, "only_speech": False}
    assert len(list(in_batches(MODEL, files(), answer, **options))) == 200
    window = 2 * WINDOW
    answered = [2 * index for index in range(len(at_answers))]
    ahead = [asked - done for asked, done in zip(at_answers, answered)]
    assert max(ahead) <= 3 * window + 1 and max(ahead[:-window]) > window
    assert readers() == []


def test_what_goes_wrong_in_reading_is_raised_and_nobody_reads_on():
    def files():
        yield 1000
        raise ValueError("no list")

    with pytest.raises(ValueError, match="no list"):
        list(in_batches(MODEL, files(), lengths_of, only_speech=False))
    assert readers() == []


def test_who_leaves_early_leaves_no_reader():
    for count in (0, 1):
        found = in_batches(MODEL, [1000] * 500, lengths_of, only_speech=False, batch_files=1)
        for _ in range(count):
            next(found)
        found.close()
        assert readers() == []


def test_ctrl_c_stops_at_once_whatever_a_disk_does():
    hung = threading.Event()

    def files():
        yield 1000
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
        hung.wait(30)
        yield 1000

    main, before = threading.main_thread().ident, signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(in_batches(MODEL, files(), lengths_of, only_speech=False))
        assert not hung.is_set()
    finally:
        signal.signal(signal.SIGINT, before)
        hung.set()
    assert readers() == []
