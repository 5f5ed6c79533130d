"""What streams cost: the tables, the states behind them, and what cannot be measured."""

import csv
import itertools
from types import SimpleNamespace

import pytest
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tiny import EXAMPLE, FILES, ROOT, SAID
from torch.utils._pytree import tree_leaves

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis import streaming_cost, streaming_table, streaming_words
from speechbrain_summarymixing.analysis.streaming_cost import (
    ATTENTION,
    COLUMNS,
    AttentionStreams,
    attention_beside,
    hear,
    interleaved,
    streamed,
)
from speechbrain_summarymixing.analysis.streaming_words import (
    LATENCY_COLUMNS,
    THROUGHPUT_COLUMNS,
    told_words,
    word_ends,
)
from speechbrain_summarymixing.analysis.systems import System
from speechbrain_summarymixing.inference.streaming import Event, StreamedWord
from speechbrain_summarymixing.inference.transcribe import load_model
from speechbrain_summarymixing.nnet.streaming import state_bytes

CONFORMER, SUMFORMER, REGULAR = (
    str(ROOT / "hparams" / f"{name}.yaml")
    for name in ("conformer_streaming", "sumformer_streaming", "branchformer_attention")
)
FAST = str(ROOT / "docs" / "streaming" / "conformer_fast.yaml")
SMALL = (
    "d_model=16 num_encoder_layers=2 d_ffn=16 csgu_linear_units=16 nhead=2 kernel_size=3 n_mels=20 "
    "front_end_output=20 vocab_size=30 num_decoder_layers=0"
).split() + ["front_end_channels=[4, 4]"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs ``benchmark streaming`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        status = cli.main(["benchmark", "streaming", *map(str, arguments)])
        return status, *capsys.readouterr()

    return command


def rows_of(text):
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def test_the_table_and_the_picture(run, tmp_path):
    status, out, _ = run(
        CONFORMER, FAST, "--attention", *ATTENTION, "--seconds", 3, 1,
        "--left-chunks", 2, "--chunk-ms", 320, "--repetitions", 2, "--csv", "costs.csv",
        "--plot", "costs.png", "--set", *SMALL,
    )  # fmt: skip
    assert status == 0
    assert (tmp_path / "costs.csv").read_text() == out
    assert (tmp_path / "costs.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    header, command = out.splitlines()[:2]
    assert "cores" in header and "threads" in header and "commit" in header
    assert command.startswith("# summarymixing benchmark streaming ") and "d_model=16" in command
    rows = rows_of(out)
    assert tuple(rows[0]) == COLUMNS
    attention = [f"speechbrain_{kind}" for kind in ATTENTION]
    assert [(row["system"], row["elapsed_s"]) for row in rows] == [
        *itertools.product(["conformer_streaming", "conformer_fast", *attention], ["1", "3"])
    ]
    for row in rows:
        assert row["heard_s"] == {"1": "1.28", "3": "3.2"}[row["elapsed_s"]]
        assert 0 < float(row["median_ms"]) <= float(row["p99_ms"])
        factor = float(row["median_ms"]) / 320
        assert float(row["real_time_factor"]) == pytest.approx(factor, rel=1e-2)
        assert (row["over_shortest"] == "1") or row["elapsed_s"] == "3"
        assert (row["attention_over"] == "") == (row["system"] == attention[0])
    sizes = {row["system"]: set() for row in rows}
    for row in rows:
        sizes[row["system"]].add(row["state_bytes"])
    assert all(len(found) == 1 for found in sizes.values())


def test_an_exported_model_is_measured_too(run):
    status, out, _ = run(EXAMPLE, "--seconds", 1, "--repetitions", 1)
    (row,) = rows_of(out)
    assert status == 0 and row["system"] == "sumformer-mini" and row["attention_over"] == ""


@pytest.mark.parametrize(
    "options", [["--streams", 1], ["--audio", FILES[0], "--aligner", EXAMPLE], []]
)
def test_models_of_one_name_are_told_apart(run, tmp_path, monkeypatch, options):
    def row(name, *_, **__):
        return {**dict.fromkeys(COLUMNS + LATENCY_COLUMNS + THROUGHPUT_COLUMNS), "system": name}

    fakes = {
        "load_model": lambda *_, **__: None,
        "_joined": lambda *_: None,
        "latency": row,
        "throughput": lambda *given, **_: [row(*given)],
        "StreamedSystem": lambda name, *_, **__: name,
        "streaming_cost": lambda names, **_: map(row, names),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(streaming_table, name, fake)
    names = ["a/pretrained", "b/pretrained", "c/other"]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    status, out, _ = run(*names, *options)
    assert status == 0 and [row["system"] for row in rows_of(out)] == [*names[:2], "other"]


def test_a_chunk_leaves_the_state_that_it_begins_with():
    system = streamed(System(CONFORMER, settings=SMALL), chunk_ms=320)
    peer = attention_beside(
        System(CONFORMER, settings=SMALL), "RelPosMHAXL", chunk_ms=320, left_chunks=3
    )
    for one in (system, peer):
        state, sizes = one.start(), []
        for _ in range(5):
            window = one.random_window()
            after = one.step(window, state)
            again = one.step(window, state)
            assert all(map(torch.equal, tree_leaves(after), tree_leaves(again)))
            state = after
            sizes.append(state_bytes(state))
        if one is system:
            assert set(sizes) == {state_bytes(system.start())}
        else:  # 2 layers of 8 frames of width 16, until three chunks are there
            grown = [b - a for a, b in itertools.pairwise(sizes)]
            assert grown == [2 * 8 * 16 * 4] * 2 + [0] * 2


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_is_speechbrains_own_stream(kind):
    torch.manual_seed(0)
    widths = {"input_size": 20, "d_model": 16, "num_layers": 2, "d_ffn": 32, "nhead": 2}
    net = AttentionStreams(kind, **widths, kernel_size=3).eval()
    config = DynChunkTrainConfig(4, 2)
    context, state = net.encoder.make_streaming_context(config), net.initial_state(config, 1)
    with torch.no_grad():
        for seen in (4, 8, 12, 12):
            src = torch.randn(1, 4, 20)  # relative attention's softmax is float32
            positions = net.positions and net.positions(torch.empty(1, seen, 16))
            expected, _ = net.encoder.forward_streaming(
                net.custom_src_module(src), context, positions
            )
            encoded, state = net.step(src, state, config)
            assert torch.equal(encoded, expected)


class Clockwork:
    """A system each of whose chunks takes a known time, on a clock of its own."""

    chunk_ms, device, parameters = 100, "cpu", 7

    def __init__(self, name, seconds, *, is_attention=False):
        self.name, self.seconds, self.is_attention = name, seconds, is_attention

    def start(self):
        return torch.zeros(1)

    def random_window(self):
        return None

    def step(self, window, state):
        Clockwork.now += self.seconds * (1 + float(state)) * next(Clockwork.drift)
        Clockwork.calls.append((self.name, float(state)))
        return state + 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that `Clockwork` turns, on a machine that becomes slower and slower."""
    Clockwork.now, Clockwork.calls = 0.0, []
    Clockwork.drift = (1.01**n for n in itertools.count())

    def wall_and_cpu(step, device):
        began = Clockwork.now
        step()
        return Clockwork.now - began, 0.5 * (Clockwork.now - began)

    monkeypatch.setattr(streaming_cost, "wall_and_cpu_seconds_of", wall_and_cpu)
    monkeypatch.setattr(streaming_cost.time, "process_time", lambda: Clockwork.now)


def test_states_take_turns_there_and_back(clock):
    one, other = Clockwork("one", 1.0), Clockwork("other", 3.0)
    keys = [(one, "short"), (one, "long"), (other, "short")]
    states = dict(zip(keys, torch.tensor([0.0, 1.0, 0.0])))
    times = interleaved(states, 4)
    there = [("one", 0.0), ("one", 1.0), ("other", 0.0)]
    assert Clockwork.calls == (there + there[::-1]) * 3
    walls = {key: times[key][0] for key in keys}
    assert [len(walls[key]) for key in keys] == [4, 4, 4]
    # the machine became a third slower, but turns cancel that out of the ratios
    assert walls[keys[0]][-1] > 1.07 * walls[keys[0]][0]
    ratios = [streaming_cost.median_ratio(walls[key], walls[keys[0]]) for key in keys]
    assert ratios == pytest.approx([1.0, 2.0, 3.0], rel=0.03)


def test_the_rows_compare_lengths_and_attention(clock):
    own, attention = Clockwork("own", 0.01), Clockwork("theirs", 0.05, is_attention=True)
    rows = list(streaming_cost.streaming_cost([own, attention], seconds=[0.4, 0.2], repetitions=3))
    assert [(row["system"], row["elapsed_s"], row["heard_s"]) for row in rows] == [
        ("own", 0.2, 0.2), ("own", 0.4, 0.4), ("theirs", 0.2, 0.2), ("theirs", 0.4, 0.4),
    ]  # fmt: skip
    # a chunk after n of them takes n + 1 times as long
    assert [row["over_shortest"] for row in rows] == pytest.approx([1, 5 / 3] * 2, rel=0.05)
    assert [row["attention_over"] for row in rows][:2] == pytest.approx([5, 5], rel=0.05)
    assert [row["attention_over"] for row in rows][2:] == [None, None]
    assert {row["state_bytes"] for row in rows} == {4}
    for row in rows:
        assert row["real_time_factor"] == pytest.approx(row["median_ms"] / 100)
        assert row["cpu_ms"] == pytest.approx(row["median_ms"] / 2)


def test_a_budget_ends_what_is_heard_but_for_the_shortest(clock):
    system = Clockwork("slow", 10.0)
    heard = list(hear(system, [0.3, 0.5, 1000.0], budget=150.0))
    assert [seconds for seconds, _, _ in heard] == pytest.approx([0.3, 0.5, 0.5])
    assert [float(state) for _, state, _ in heard] == [3.0, 5.0, 5.0]
    (first, *_), *_ = hear(system, [0.3], budget=0.0)
    assert first == pytest.approx(0.3)


def event(final, *words):
    words = tuple(StreamedWord(word, 0.0, 0.0, 1.0) for word in words)
    return Event(final, " ".join(word.word for word in words), words, 0.0)


def test_a_word_is_told_when_it_stays_as_it_is(monkeypatch):
    events = iter(
        [
            [event(False, "A", "SEV")],
            [event(False, "A", "SEVEN")],
            [],
            [event(True, "A"), event(False, "SEVEN", "B")],
            [event(True, "SEVEN", "B")],
            [event(False, "C")],
            [event(True, "C", "D")],  # of finish
        ]
    )
    costs = itertools.count(1)

    class Stream:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def accept(self, piece):
            assert len(piece) in (10, 5)
            return next(events)

        def finish(self):
            return next(events)

    def seconds_of(hear, device):
        hear()
        return next(costs)

    monkeypatch.setattr(streaming_words, "seconds_of", seconds_of)
    model = SimpleNamespace(open=Stream, sample_rate=1000, device="cpu")
    assert told_words(model, torch.zeros(55)) == [
        ("A", 0.01, 1), ("SEVEN", 0.02, 2), ("B", 0.04, 4), ("C", 0.055, 6), ("D", 0.055, 7),
    ]  # fmt: skip


def test_where_words_end():
    model = load_model(EXAMPLE, "cpu")
    words, ends = zip(*word_ends(model, FILES[0]))
    assert " ".join(words) == SAID["bus"]
    assert list(ends) == sorted(ends) and 0 < ends[0] and ends[-1] < 3.0


def test_latency_is_a_row_for_each_model(run):
    status, out, _ = run("--audio", *FILES, "--aligner", EXAMPLE, "--chunk-ms", 320)
    (row,) = rows_of(out)
    assert status == 0 and tuple(row) == LATENCY_COLUMNS
    spoken = sum(len(text.split()) for text in SAID.values())
    assert (row["files"], row["words"]) == ("3", str(spoken))
    assert 0 < int(row["told"]) <= spoken and row["look_ahead_ms"] == "7.5"
    assert float(row["median_ms"]) <= float(row["p90_ms"])
    assert float(row["waiting_ms"]) < 1000 and float(row["computing_ms"]) > 0


def test_latency_is_what_was_waited_and_computed(monkeypatch):
    """Words that end at 1 and 2 s, told when 1.5 and 2.7 s were heard, in 0.1 and 0.3 s."""
    ends, told = [("a", 1.0), ("b", 2.0)], [("a", 1.5, 0.1), ("x", 2.0, 9.0), ("b", 2.7, 0.3)]
    monkeypatch.setattr(streaming_words, "word_ends", lambda *_: ends)
    monkeypatch.setattr(streaming_words, "told_words", lambda *_: told)
    model = load_model(EXAMPLE, "cpu")
    row = streaming_words.latency("x", model, model, FILES[:1], chunk_ms=640)
    assert (row["words"], row["told"]) == (2, 2)
    assert row["waiting_ms"] == pytest.approx(600) and row["computing_ms"] == pytest.approx(200)
    assert row["mean_ms"] == row["median_ms"] == pytest.approx(800)  # 600 and 1000
    assert row["p90_ms"] == pytest.approx(960)


def test_a_round_is_in_time_within_a_chunk(monkeypatch):
    costs = iter([(9.0, 9.0), (0.1, 0.05), (0.32, 0.2), (0.5, 0.3), (0.2, 0.1)])
    monkeypatch.setattr(
        streaming_words, "wall_and_cpu_seconds_of", lambda advance, _: (advance(), next(costs))[1]
    )
    model = load_model(EXAMPLE, "cpu")
    (row,) = streaming_words.throughput("x", model, chunk_ms=320, streams=[2], rounds=4)
    assert row["in_time"] == 0.75 and row["median_ms"] == pytest.approx(260)
    assert row["real_time_factor"] == pytest.approx(260 / 320)
    assert row["for_each"] == pytest.approx(260 / 640)


def test_many_streams_are_a_row_for_each_number(run):
    status, out, _ = run("--streams", 1, 3, "--repetitions", 2, "--audio", FILES[0])
    rows = rows_of(out)
    assert status == 0 and tuple(rows[0]) == THROUGHPUT_COLUMNS
    assert [(row["streams"], row["rounds"]) for row in rows] == [("1", "2"), ("3", "2")]
    one, three = (int(row["state_bytes"]) for row in rows)
    assert three == 3 * one
    for row in rows:
        factor = float(row["real_time_factor"])
        assert factor == pytest.approx(float(row["median_ms"]) / 640, rel=1e-2)
        assert float(row["for_each"]) == pytest.approx(factor / int(row["streams"]), rel=1e-2)
        assert 0 <= float(row["in_time"]) <= 1


def test_every_stream_gets_one_chunk_in_a_round(monkeypatch):
    sizes = []
    original = streaming_words.StreamingModel._hear

    def counted(self, streams):
        sizes.append(len(streams))
        return original(self, streams)

    monkeypatch.setattr(streaming_words.StreamingModel, "_hear", counted)
    model = load_model(EXAMPLE, "cpu")
    list(streaming_words.throughput("x", model, chunk_ms=320, streams=[3], rounds=4))
    assert sizes == [3] * 5


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], ["no system is given"]),
        ([REGULAR, "--set", *SMALL], ["RelativeAttention", "supports_streaming", "--attention"]),
        ([SUMFORMER, "--attention", "regularMHA", "--set", *SMALL], ["first SYSTEM", SUMFORMER]),
        ([EXAMPLE, f"{EXAMPLE}/"], ["sumformer-mini is given twice"]),
        ([EXAMPLE, f"{EXAMPLE}/", "--streams", "1"], ["sumformer-mini is given twice"]),
        ([EXAMPLE, "--attention", "regularMHA"], ["--attention", "SYSTEM.yaml"]),
        ([CONFORMER, "--chunk-ms", "100", "--set", *SMALL], ["chunk_ms is 100", "40 ms"]),
        ([CONFORMER, "--seconds", "0"], ["--seconds has 0"]),
        ([CONFORMER, "--repetitions", "0"], ["--repetitions has 0"]),
        ([CONFORMER, "--threads", "0"], ["--threads has 0"]),
        ([CONFORMER, "--left-chunks", "0"], ["--left-chunks has 0"]),
        (["--streams", "0"], ["--streams has 0"]),
        (["--aligner", EXAMPLE], ["--aligner", "give --audio"]),
        (["--audio", FILES[0]], ["--audio is for --aligner MODEL or --streams"]),
        (["--streams", "1", "--plot", "x.png"], ["--plot", "leave them out"]),
    ],
)
def test_wrong_input_is_told(run, arguments, expected):
    status, out, error = run(*arguments)
    assert status == 1 and out == ""
    assert all(text in error for text in expected), error
