"""Exports in ONNX as recognisers: onnxruntime computes the network, the rest is as with torch.

B is the batch, T the frames of the encoder, V the number of tokens.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR
from torch import nn

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.graphs import StreamingGraph
from speechbrain_summarymixing.inference.onnx_graph import (
    CTC,
    ENCODER,
    OPTION,
    SUBSAMPLING,
    TOKENS,
    Graph,
    Tokens,
    number_of,
)
from speechbrain_summarymixing.lobes.frontend import KaldiFbank
from speechbrain_summarymixing.lobes.streaming import SampleWindows
from speechbrain_summarymixing.lobes.transducer import BLANK
from speechbrain_summarymixing.lobes.transducer_search import TransducerBeam, TransducerGreedy


class OnnxRecognizer(EncoderASR):
    """A recogniser whose network onnxruntime computes, on the CPU, by as many threads as torch.

    It is for `transcribe`, `Decoder` and `StreamingModel`, as what `load_model` returns.

    Arguments
    ---------
    graph : str or Path
        As from `find_graph`; what is beside it belongs to it, and its streams are in the folder
        ``streaming``.
    device : str or None
        None, or "cpu".

    Raises
    ------
    UserError
        If onnxruntime is missing, a file is missing, damaged or not as it was exported, or the
        device is another.

    Example
    -------
    >>> model = OnnxRecognizer("FOLDER/model.int8.onnx")  # doctest: +SKIP
    >>> [transcript.text for transcript in transcribe(model, ["speech.wav"])]  # doctest: +SKIP
    ['SET AN ALARM']
    """

    def __init__(self, graph, device=None):
        if device not in (None, "cpu"):
            raise UserError(
                f"--device is {device}, but {OPTION} is {graph}, and graphs are computed by the "
                "CPU here: leave --device out, or take the model that it was exported from"
            )
        self.graph = Path(graph)
        features, encoder = KaldiFbank(), TensorGraph(self.graph)
        about = encoder.metadata
        hparams = {
            "tokenizer": Tokens(self.graph.with_name(TOKENS)),
            "decoding_function": partial(ctc_greedy_decode, blank_id=BLANK),
            "compute_features": features,
            "sample_rate": features.sample_rate,
            "ctc_lin": nn.Identity(),  # a graph tells CTC's log-probabilities
        }
        if "segment_seconds" in about:
            hparams["segment_seconds"] = number_of(about, "segment_seconds", self.graph)
        modules = {"encoder": OfflineEncoder(features, encoder)}
        if not self.graph.name.startswith(CTC):
            head = Head(self.graph)
            symbols = {"max_symbols": int(number_of(about, "max_symbols", self.graph, 1))}
            beam = int(number_of(about, "beam_size", self.graph, 10))
            hparams["greedy_search"] = TransducerGreedy(head, **symbols)
            modules["decoder"] = TransducerBeam(head, beam_size=beam, **symbols)
        super().__init__(modules=modules, hparams=hparams, run_opts={"device": "cpu"})
        if "decoder" not in modules:
            self.tokenizer.check(encoder)

    def stream_encoder(self, dynchunktrain_config):
        """Returns the `StreamingEncoder` of its streams.

        Arguments
        ---------
        dynchunktrain_config : DynChunkTrainConfig
            The chunks that are asked for.

        Raises
        ------
        UserError
            If its streams are of other chunks, or there are none.
        """
        # `OfflineEncoder` takes graphs of whole files alone: those of streams lie below
        file = self.graph.parent / "streaming" / self.graph.name
        if not file.is_file():
            raise UserError(
                f"{file}: no such file, and a stream needs it: export the model with --chunk-ms"
            )
        return StreamingEncoder(
            self.hparams.compute_features, TensorGraph(file), dynchunktrain_config
        )


class TensorGraph(Graph):
    """A `Graph` of tensors, by as many threads as torch has."""

    def __init__(self, file):
        super().__init__(file, torch.get_num_threads())

    def __call__(self, *inputs):
        """Returns the outputs of inputs, tensors both."""
        return list(map(torch.from_numpy, super().__call__(*(x.numpy() for x in inputs))))


class OfflineEncoder(nn.Module):
    """From waveforms to CTC's log-probabilities, or to what a transducer's head is told.

    Arguments
    ---------
    features : KaldiFbank
    graph : TensorGraph
    """

    def __init__(self, features, graph):
        super().__init__()
        self.features, self._graph = features, graph.check("x", "x_lens")

    def forward(self, wavs, lengths):
        """Returns (B, T, V) of waveforms (B, samples) and relative lengths (B,)."""
        x = self.features(wavs, lengths)
        frames = (lengths * x.size(1)).round().long()
        return torch.from_numpy(self._graph.encode(x.numpy(), frames.numpy())[0])


class StreamingEncoder(nn.Module):
    """As `SpeechEncoder`, of a graph; a stream's last chunk hears silence after its end.

    Arguments
    ---------
    features : KaldiFbank
    graph : TensorGraph
    dynchunktrain_config : DynChunkTrainConfig

    Raises
    ------
    UserError
        If the graph is of other chunks.
    """

    def __init__(self, features, graph, dynchunktrain_config):
        super().__init__()
        self.features, self._graph = features, graph.check(*StreamingGraph.inputs)
        self.chunk_frames = int(number_of(graph.metadata, "T", graph.file)) // SUBSAMPLING
        self.frame_samples = features.samples
        frame_ms = 1000 * features.samples // features.sample_rate
        if dynchunktrain_config.chunk_size != self.chunk_frames:
            raise UserError(
                f"--chunk-ms is {frame_ms * dynchunktrain_config.chunk_size}, but {graph.file} "
                f"hears chunks of {frame_ms * self.chunk_frames} ms: give --chunk-ms "
                f"{frame_ms * self.chunk_frames}, or export the model anew"
            )
        if dynchunktrain_config.left_context_size is not None:
            raise UserError(
                f"--left-ms is given, but {graph.file} sees what its export said: leave it out"
            )

    def windows(self):
        """As `SpeechEncoder.windows`."""
        return SampleWindows(self.features, self.chunk_frames)

    def initial_state(self, batch):
        """As `SpeechEncoder.initial_state`."""
        return tuple(
            torch.zeros(
                batch,
                *(size for i, size in enumerate(one.shape) if i != axis),
                dtype=torch.long if "int64" in one.type else torch.float32,
            )
            for one, axis in zip(self._graph.inputs[1:], StreamingGraph.batch_axes)
        )

    def step(self, windows, frames, state):
        """As `SpeechEncoder.step`."""
        axes = StreamingGraph.batch_axes
        state = (x.movedim(0, axis).contiguous() for x, axis in zip(state, axes))
        encoded, *state = self._graph(self.features.of_windows(windows), *state)
        return encoded, tuple(x.movedim(axis, 0) for x, axis in zip(state, axes))


class Head(nn.Module):
    """As `TransducerHead`, of graphs, to which an encoder's graph tells projected frames.

    Arguments
    ---------
    encoder : Path
        Beside which the others are.
    """

    def __init__(self, encoder):
        super().__init__()
        places = (
            encoder.with_name(encoder.name.replace(ENCODER, n)) for n in ("decoder", "joiner")
        )
        self._predictor, self._joiner = map(TensorGraph, places)
        self._predictor.check("y")
        self._joiner.check("encoder_out", "decoder_out")
        self.context = int(number_of(self._predictor.metadata, "context_size", encoder))
        self.output = SimpleNamespace(weight=torch.empty(0))  # its type and device

    def predictor(self, tokens, state=None):
        """As `StatelessPredictor.forward`, of one token each (N, 1)."""
        if state is None:
            state = tokens.new_zeros(len(tokens), self.context - 1)
        said = torch.cat((state, tokens), dim=1)
        return self._predictor(said)[0].unsqueeze(1), said[:, 1:]

    def join(self, encoded, predicted):
        """As `TransducerHead.join`."""
        encoded, predicted = torch.broadcast_tensors(encoded, predicted)
        rows = (x.flatten(0, -2).contiguous() for x in (encoded, predicted))
        return self._joiner(*rows)[0].unflatten(0, encoded.shape[:-1])
