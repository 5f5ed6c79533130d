"""Long recordings cut in pauses or windows: each word is heard once, in bounded memory."""

import sys
import time
import weakref

import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.batches import WINDOW, in_batches
from speechbrain_summarymixing.inference.confidence import Word
from speechbrain_summarymixing.inference.segments import (
    FRAME_SECONDS,
    Loudness,
    Silero,
    cutter,
    merge,
    spoken,
    windows,
)

RATE = 16000
FRAME = round(FRAME_SECONDS * RATE)


class Told:
    """A detector that is told where there is speech: a flag for each frame."""

    def __init__(self, frames):
        self.frames = frames

    def reset(self):
        self.samples = 0

    def __call__(self, samples):
        done = self.samples // FRAME
        self.samples += len(samples)
        return [float(one) for one in self.frames[done : self.samples // FRAME]]


def blocks_of(samples, sizes):
    """Samples in blocks of such sizes, again and again."""
    start, index = 0, 0
    while start < len(samples):
        yield samples[start : start + sizes[index % len(sizes)]]
        start, index = start + sizes[index % len(sizes)], index + 1


def word(name, begin, seconds=0.2):
    return Word(name, begin, begin + seconds, 1.0, True)


@settings(deadline=None, max_examples=60)
@given(
    gaps=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=40),
    longest=st.floats(1.5, 6.0),
    sizes=st.lists(st.integers(1000, 40000), min_size=1, max_size=3),
    jitter=st.randoms(use_true_random=False),
)
def test_no_word_is_lost_or_doubled_where_windows_meet(gaps, longest, sizes, jitter):
    said, time = [], 0.1
    for index, gap in enumerate(gaps):
        said.append(word(f"w{index % 7}", time))  # the same words come again
        time += 0.2 + gap
    total = round((time + 0.1) * RATE)
    found, end, covered = [], 0.0, 0
    for first, samples in windows(blocks_of(torch.arange(total), sizes), RATE, longest=longest):
        assert samples[0] == first <= covered and samples[-1] == first + len(samples) - 1
        assert len(samples) == round(longest * RATE) or total < round(longest * RATE)
        covered = first + len(samples)
        start, stop = first / RATE, covered / RATE
        heard = []  # what lies in a window, a little early or late; half a word is another
        for one in said:
            shift = jitter.uniform(-0.04, 0.04)
            if start <= one.begin and one.end <= stop:
                heard.append(word(one.word, one.begin + shift))
            elif start < one.end - 0.05 and one.begin + 0.05 < stop:
                begin, until = max(start, one.begin), min(stop, one.end)
                heard.append(Word("half", begin, until, 0.1, False))
        found = merge(found, heard, start, end) if start < end else found + heard
        end = stop
    assert covered == total
    assert [one.word for one in found] == [one.word for one in said]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.tuples(*[st.floats(0.0, 1.0)] * 2), max_size=9), min_size=2, max_size=2)
)
def test_words_of_windows_that_hear_others_are_in_order(heard):
    sides = []
    for start, times in zip((0.0, 1.0), heard):
        sides.append([])
        for gap, seconds in times:
            sides[-1].append(word(f"w{len(sides[-1]) % 3}", start + gap, 0.01 + seconds))
            start = sides[-1][-1].end
    found = merge(*sides, 1.0, 3.0)
    assert all(one.begin < one.end for one in found)
    assert all(a.end <= b.begin for a, b in zip(found, found[1:]))


@settings(deadline=None, max_examples=60)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 80)), min_size=1, max_size=20),
    longest=st.floats(0.5, 4.0),
    sizes=st.lists(st.integers(100, 40000), min_size=1, max_size=3),
    rest=st.integers(0, FRAME - 1),
)
def test_all_speech_is_in_one_segment_and_long_silence_in_none(runs, longest, sizes, rest):
    frames = [speech for speech, count in runs for _ in range(count)]
    samples = torch.arange(len(frames) * FRAME + rest)
    read = most_held = 0

    def blocks():
        nonlocal read
        for block in blocks_of(samples, sizes):
            read += len(block)
            yield block

    spans = []
    for first, segment in spoken(blocks(), RATE, longest=longest, detector=Told(frames)):
        assert segment[0] == first and segment[-1] == first + len(segment) - 1
        assert len(segment) <= longest * RATE
        most_held = max(most_held, read - first)
        spans.append((first, first + len(segment)))
    # a segment, a pause after it and a block
    assert most_held <= (1.1 * longest + 0.5) * RATE + 2 * max(sizes)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
    inside = torch.zeros(len(samples), dtype=torch.bool)
    for start, stop in spans:
        inside[start:stop] = True
    inside = inside[: len(frames) * FRAME].view(-1, FRAME)
    speech = torch.tensor(frames)
    assert inside[speech].all()
    padded = torch.nn.functional.max_pool1d(speech.float()[None], 31, 1, 15)[0] > 0
    assert not inside[~padded].any() or longest * RATE / FRAME * 0.1 > 15


def test_where_windows_hear_other_words_none_begins_before_the_last():
    before = [word("A", 0.2), word("B", 1.0, 0.8)]
    after = [word("C", 1.3, 0.5), word("D", 1.5, 0.2), word("E", 1.6, 0.7), word("F", 2.4)]
    found = [(one.word, one.begin) for one in merge(before, after, 0.9, 1.95)]
    assert found == [("A", 0.2), ("B", 1.0), ("E", 1.8), ("F", 2.4)]
    assert merge([], after, 0.9, 1.2) == after and merge(before, [], 1.9, 2.0) == before


def test_what_is_too_long_is_cut_in_its_longest_pause():
    frames = [True] * 20 + [False] * 2 + [True] * 30 + [False] * 4 + [True] * 30
    samples = torch.zeros(len(frames) * FRAME)
    longest = 80 * FRAME_SECONDS + 1e-6
    (_, first), (start, _) = spoken([samples], RATE, longest=longest, detector=Told(frames))
    assert len(first) == start == 54 * FRAME


@pytest.mark.parametrize("silent", [0.0, 1e-3])
@pytest.mark.parametrize("kind", [Loudness, Silero])
def test_utterances_are_found_between_pauses(kind, silent):
    if kind is Silero:
        pytest.importorskip("silero_vad", reason="the optional extra vad")
    threads = torch.get_num_threads()
    detector = kind(RATE)
    assert torch.get_num_threads() == threads
    speech = [read_audio(file) for file in FILES]
    noise = torch.randn(20 * RATE, generator=torch.Generator().manual_seed(0)) * silent
    places, end = [], RATE
    for one in speech:
        noise[end : end + len(one)] += one
        places.append((end, end + len(one)))
        end += len(one) + RATE
    for sizes in ([len(noise)], [7001]):
        found = list(spoken(blocks_of(noise, sizes), RATE, longest=4.57, detector=detector))
        assert len(found) == 3
        for (first, samples), (start, stop) in zip(found, places):
            assert abs(first - start) < 0.4 * RATE
            assert abs(first + len(samples) - stop) < 0.4 * RATE


def test_a_detector_hears_the_same_in_blocks_of_any_size_and_at_other_rates():
    samples = read_audio(FILES[0])
    whole = Loudness(RATE)(samples)
    assert max(whole) > 0.9 and len(whole) == len(samples) // FRAME
    pytest.importorskip("silero_vad", reason="the optional extra vad")
    detector = Silero(RATE)
    whole = detector(samples)
    detector.reset()
    parts = [p for block in blocks_of(samples, [999]) for p in detector(block)]
    assert parts == pytest.approx(whole, abs=1e-5)
    for rate in (8000, 22050):  # of which a frame is 705.6 samples
        other = torchaudio.functional.resample(samples, RATE, rate)
        detector = Silero(rate)
        found = [p for block in blocks_of(other, [999]) for p in detector(block)]
        assert len(found) == len(other) // round(FRAME_SECONDS * rate) and max(found) > 0.8
        detector.reset()
        detector.network = lambda frame, rate: frame.shape == (1, FRAME)
        minutes = torch.zeros(120 * rate)  # after which a drift shows
        assert detector(minutes) == [1.0] * (len(minutes) // round(FRAME_SECONDS * rate))


def test_of_a_long_file_no_more_than_some_batches_are_held(tmp_path):
    class Model:
        device = "cpu"

        class hparams:
            sample_rate = RATE

            class compute_features:
                samples = 640

    path = tmp_path / "long.flac"
    noise = 0.1 * torch.randn(90 * RATE, generator=torch.Generator().manual_seed(0))
    noise *= (torch.arange(90 * RATE) // RATE % 2).float()
    soundfile.write(path, noise.numpy(), RATE)
    alive, held = [], []

    def cut(blocks, rate, *, longest):
        for first, samples in cutter("pauses", rate)(blocks, rate, longest=longest):
            samples = samples.copy()
            alive.append(weakref.ref(samples))
            yield first, samples

    def answer(wavs, lengths):
        time.sleep(0.05)  # in which a reader without a bound reads all
        held.append(sum(one() is not None for one in alive))
        return ["x"] * len(wavs)

    (result,) = in_batches(Model, [path], answer, segment_seconds=3.0, cut=cut, batch_seconds=2.0)
    assert result["seconds"] == 90 and len(result["answers"]) == 45 == len(alive)
    # each has more than 1 s: three windows, and what is being cut
    assert max(held) <= 3 * WINDOW * 2 + 2 < 45


@pytest.mark.parametrize("way", ["pauses", "vad", "windows"])
def test_a_long_file_has_a_transcript_by_each_way(way, tmp_path, capsys):
    if way == "vad":
        pytest.importorskip("silero_vad", reason="the optional extra vad")
    parts = [part for file in FILES for part in (read_audio(file), torch.zeros(RATE))]
    path = str(tmp_path / "long.flac")
    soundfile.write(path, torch.cat(parts).numpy(), RATE)
    arguments = ["transcribe", "--device=cpu", str(EXAMPLE), path, "missing.wav", FILES[0]]
    assert cli.main([*arguments, "--segments", way]) == 1
    out, err = capsys.readouterr()
    long, short = (line.split("\t")[1] for line in out.splitlines())
    assert short == SAID["bus"] and "no such file" in err
    if way != "windows":  # which hear parts of two utterances
        assert long == " ".join(SAID.values())
    else:
        assert long.split()[:2] == SAID["bus"].split()[:2]


def test_bad_options_are_told(monkeypatch):
    with pytest.raises(UserError, match="--segments is words, but must be one of pauses, vad"):
        cutter("words", RATE)
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(UserError, match=r'pip install "speechbrain-summarymixing\[vad\]"'):
        cutter("vad", RATE)
