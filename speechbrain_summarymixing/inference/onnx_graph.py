"""What an export in ONNX holds: graphs, which onnxruntime computes, and tokens. Without torch."""

import json
import math
import os
import re
from pathlib import Path

import numpy

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import read_lines
from speechbrain_summarymixing.inference.provenance import CONFIG, check_sums

OPTION = "MODEL"
TOKENS = "tokens.txt"
CTC, ENCODER = "model", "encoder"  # how the names of graphs begin, of CTC and of a transducer
FEATURES = {
    "sample_rate": 16000,
    "n_mels": 80,
    "low_freq": 20.0,
    "high_freq": -400.0,
}  # of sherpa-onnx
HOP_SAMPLES = FEATURES["sample_rate"] // 100
SUBSAMPLING = 4  # feature frames for one of the encoder; sherpa-onnx takes it for granted
INT8 = ".int8.onnx"  # the end of a graph's name
NO_MEMORY = "allocate memory|bad_alloc"
AGAIN = "copy the folder again, or export the model anew"
INSTALL = 'pip install "speechbrain-summarymixing[onnx]"'


def find_graph(source):
    """Returns the path of the graph that a model's name means, or None where it means no export.

    Arguments
    ---------
    source : str or Path
        A folder that `export_onnx` wrote, of which it is the graph in full precision, or a graph
        there, as model.int8.onnx.
    """
    path = Path(source)
    if path.suffix == ".onnx" and not path.is_dir():
        return path
    graphs = (path / f"{name}.onnx" for name in (CTC, ENCODER))
    return next((graph for graph in graphs if graph.is_file()), None)


class Graph:
    """A graph and its metadata, which onnxruntime computes on the CPU.

    Arguments
    ---------
    file : Path
    threads : int or None
        None: as OMP_NUM_THREADS says, as torch does, or as many as the machine has cores.

    Raises
    ------
    UserError
        If onnxruntime or the file is missing, or it is damaged or not as it was exported.
    """

    def __init__(self, file, threads=None):
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{error.name} is not installed: {INSTALL}") from error
        if not file.is_file():
            raise UserError(f"{OPTION} has no {file}: {AGAIN}")
        check_sums(file.with_name(CONFIG), {file.name: file})
        if threads is None:
            said = os.environ.get("OMP_NUM_THREADS", "")
            threads = int(said) if said.isdecimal() else 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of many kinds, which have no name
            raise UserError(f"{file}: cannot be loaded ({reason_of(error)}): {AGAIN}") from error
        self.file, self.inputs = file, self._session.get_inputs()
        self.metadata = self._session.get_modelmeta().custom_metadata_map
        self.width = self._session.get_outputs()[0].shape[-1]

    def check(self, *names):
        """Makes sure that its inputs have these names, and returns itself."""
        if (found := [one.name for one in self.inputs]) != list(names):
            raise UserError(
                f"{self.file}: takes {', '.join(found)}, but must take {', '.join(names)}, as what "
                f"summarymixing export writes: {AGAIN}"
            )
        return self

    def __call__(self, *inputs):
        """Returns the outputs of inputs, arrays both."""
        feeds = {one.name: x for one, x in zip(self.inputs, inputs)}
        try:
            return self._session.run(None, feeds)
        except Exception as error:
            if re.search(NO_MEMORY, str(error)):
                raise MemoryError(str(error)) from error
            raise UserError(
                f"{self.file}: cannot be computed ({reason_of(error)}): {AGAIN}"
            ) from error

    def encode(self, x, frames):
        """Returns what a graph of whole files makes of features, and how many frames of it.

        Where its products are of 8-bit integers, whose scale is that of all that is computed at
        once, it hears each utterance alone, so that no other has a part in its words.

        Arguments
        ---------
        x : numpy.ndarray
            (B, F, mels), float32.
        frames : numpy.ndarray
            (B,), of the F that are an utterance's own.

        Returns
        -------
        tuple of numpy.ndarray
            (B, T, V) and (B,).
        """
        if not self.file.name.endswith(INT8):
            return tuple(Graph.__call__(self, x, frames)[:2])
        rows = [
            Graph.__call__(self, x[i : i + 1, :count], frames[i : i + 1])[:2]
            for i, count in enumerate(frames)
        ]
        counts = numpy.concatenate([count for _, count in rows])
        encoded = numpy.zeros((len(rows), counts.max(), rows[0][0].shape[2]), numpy.float32)
        for place, (row, count) in zip(encoded, rows):
            place[: count[0]] = row[0, : count[0]]
        return encoded, counts


class Tokens:
    """What tokens spell, as sentencepiece tells it.

    Arguments
    ---------
    file : Path
        Of an export: a token and its number in each line, of which 0 is the blank and 1 and 2
        spell nothing.
    """

    def __init__(self, file):
        if not file.is_file():
            raise UserError(f"{OPTION} has no {file}: {AGAIN}")
        check_sums(file.with_name(CONFIG), {file.name: file})
        rows = [line.rpartition(" ") for line in read_lines(file)]
        self.file, self._pieces = file, [piece for piece, *_ in rows]
        if [number for *_, number in rows] != [str(i) for i in range(len(rows))]:
            raise UserError(
                f"{file}: has no token with its number, from 0 on, in each line: {AGAIN}"
            )

    def get_piece_size(self):
        """Returns how many tokens there are."""
        return len(self._pieces)

    def id_to_piece(self, token):
        """Returns how a token is written; "▁" begins a word."""
        return self._pieces[token]

    def decode_ids(self, tokens):
        """Returns the text of tokens."""
        spelled = "".join(self._pieces[token] for token in tokens if token > 2)
        return spelled.replace("▁", " ").lstrip(" ")

    def check(self, graph):
        """Makes sure that a `Graph` of CTC has as many outputs, and returns itself."""
        if graph.width != self.get_piece_size():
            raise UserError(
                f"{self.file}: has {self.get_piece_size()} tokens, but the model's outputs are "
                f"{graph.width}: {AGAIN}"
            )
        return self


def number_of(metadata, key, file, default=None):
    """Returns a number of a graph's metadata, which are texts.

    Arguments
    ---------
    metadata : dict
    key : str
    file : Path
        Of the graph.
    default : float or None
        Where there is no such key; None: that is an error.

    Raises
    ------
    UserError
        If it is no number above 0.
    """
    try:
        number = json.loads(metadata[key]) if default is None or key in metadata else default
        if isinstance(number, (int, float)) and math.isfinite(number) and number > 0:
            return number
    except (KeyError, ValueError):
        pass
    raise UserError(
        f"{file}: its metadata say {metadata.get(key)!r} of {key}, which must be a number above 0: "
        f"{AGAIN}"
    )
