"""Graphs of an export, without one."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import soundfile
from tiny import FILES, ROOT

from speechbrain_summarymixing.inference.onnx_graph import Graph, find_graph


@pytest.mark.parametrize("name, alone", [("model.onnx", False), ("model.int8.onnx", True)])
def test_8_bit_products_hear_each_utterance_alone(name, alone, monkeypatch):
    given = []

    def compute(self, x, frames):
        given.append((x.shape, frames.tolist()))
        counts = frames // 4
        encoded = numpy.full((len(x), x.shape[1] // 4, 2), x.max(), numpy.float32)
        return encoded, counts, "more"

    monkeypatch.setattr(Graph, "__call__", compute)
    graph = Graph.__new__(Graph)
    graph.file = Path(name)
    x = numpy.zeros((2, 12, 3), numpy.float32)
    x[0, :12], x[1, :8] = 1, 2
    encoded, counts = graph.encode(x, numpy.array([12, 8]))
    assert counts.tolist() == [3, 2] and encoded.shape == (2, 3, 2)
    if alone:
        assert given == [((1, 12, 3), [12]), ((1, 8, 3), [8])]
        assert encoded[:, :, 0].tolist() == [[1, 1, 1], [2, 2, 0]]  # each by its own greatest
    else:
        assert given == [((2, 12, 3), [12, 8])] and (encoded == 2).all()


def test_a_folder_may_be_called_as_a_graph_is(tmp_path):
    folder = tmp_path / "mine.onnx"
    folder.mkdir()
    assert find_graph(folder) is None
    (folder / "model.onnx").touch()
    assert find_graph(folder) == folder / "model.onnx"


def test_the_example_tells_bad_files_and_goes_on(tmp_path, monkeypatch, capsys):
    """With a graph that says the first token, whatever it hears."""
    (tmp_path / "tokens.txt").write_text("<blk> 0\nA 1\n")
    answers = numpy.array([[[0.0, 1.0]]])
    session = SimpleNamespace(run=lambda *_: (answers, None))
    runtime = SimpleNamespace(InferenceSession=lambda _: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    bad = {"empty": numpy.zeros(0), "short": numpy.zeros(50), "nan": numpy.full(1600, numpy.nan)}
    for name, samples in bad.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, "FLOAT")
    soundfile.write(tmp_path / "slow.wav", numpy.zeros(800), 8000)
    files = [*(tmp_path / f"{name}.wav" for name in (*bad, "slow", "gone")), FILES[0]]
    main = runpy.run_path(str(ROOT / "examples/onnx_transcribe.py"))["main"]
    assert main(tmp_path, *map(str, files)) == 1
    out, err = capsys.readouterr()
    assert out == "A\n"
    for line, file, reason in zip(
        err.splitlines(), files, ("10 ms", "10 ms", "finite", "8000 Hz", "gone.wav")
    ):
        assert line.startswith(f"error: {file}: ") and reason in line
