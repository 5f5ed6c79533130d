"""Trained recognisers as ONNX graphs, which run without Python, torch or SpeechBrain.

Input and output names and metadata are those that sherpa-onnx 2.0 takes unmodified: offline as
``OfflineRecognizer.from_zipformer_ctc``, streaming as ``OnlineRecognizer.from_nemo_ctc``. B is the
batch, T the frames of the features (Kaldi's log-mel filterbank, 10 ms), C the encoder's frames of a
chunk, V the number of tokens.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import shutil
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.lobes.padding import padding_mask

logger = logging.getLogger(__name__)

OPSET = 18
SUBSAMPLING = 4  # feature frames for one of the encoder; sherpa-onnx takes it for granted
SILENCE = -15.942385  # of the filterbank where there are zeros: log of float32's epsilon
TOLERANCE = 1e-4  # of log-probabilities, onnxruntime's against torch's
FEATURES = {
    "sample_rate": 16000,
    "n_mels": 80,
    "low_freq": 20.0,
    "high_freq": -400.0,
}  # of sherpa-onnx
OFFLINE_METADATA = {"model_type": "zipformer2_ctc", "version": 1}
OFFLINE_USAGE = """    import sherpa_onnx
    recognizer = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model="model.onnx", tokens="tokens.txt"
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(16000, samples)  # floats in [-1, 1]
    recognizer.decode_stream(stream)
    print(stream.result.text)"""
STREAMING_USAGE = """    import sherpa_onnx
    recognizer = sherpa_onnx.OnlineRecognizer.from_nemo_ctc(
        model="model.onnx", tokens="tokens.txt"
    )
    stream = recognizer.create_stream()
    for samples in microphone:  # floats in [-1, 1]; a second of zeros at the end
        stream.accept_waveform(16000, samples)
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        print(recognizer.get_result(stream))"""
CARD = """# Speech recogniser (CTC) in ONNX

Made by speechbrain-summarymixing (SummaryMixing: arXiv 2307.07421). It runs in sherpa-onnx:

{usage}

config.json tells the features, versions and the sha256 of each file. No file holds code.
"""
INSTALL = 'pip install "speechbrain-summarymixing[onnx]"'


class OfflineGraph(nn.Module):
    """From the features of whole utterances to CTC's log-probabilities.

    Arguments
    ---------
    normalize, front_end, transformer, ctc_lin : torch.nn.Module
        Of a trained recogniser.
    """

    inputs, outputs = ("x", "x_lens"), ("log_probs", "log_probs_lens")

    def __init__(self, normalize, front_end, transformer, ctc_lin):
        super().__init__()
        self.front_end, self.transformer, self.ctc_lin = front_end, transformer, ctc_lin
        self.register_buffer("mean", normalize.glob_mean.detach().clone())
        self.register_buffer("std", normalize.glob_std.detach().clone())

    def forward(self, x, x_lens):
        """Returns log-probabilities (B, T', V) and their lengths (B,) of features (B, T, F)."""
        frames = (x_lens + SUBSAMPLING - 1) // SUBSAMPLING
        after = torch.arange(x.size(1), device=x.device) >= x_lens.unsqueeze(1)
        x = x.masked_fill(after.unsqueeze(2), SILENCE)
        x = nn.functional.pad(x, (0, 0, 0, -x.size(1) % SUBSAMPLING), value=SILENCE)
        lengths = (SUBSAMPLING * frames).to(x.dtype) / x.size(1)
        x = self.front_end((x - self.mean) / self.std, lengths)
        return self.ctc_lin(self.transformer.encode(x, lengths)).log_softmax(-1), frames

    def example(self, bands):
        """Returns inputs to trace it by, and which of their dimensions vary."""
        dynamic = torch.export.Dim.DYNAMIC
        inputs = (torch.randn(2, 240, bands), torch.tensor([240, 137]))
        return inputs, ({0: dynamic, 1: dynamic}, {0: dynamic})


class StreamingGraph(nn.Module):
    """From the features of a chunk, and a state, to CTC's log-probabilities and the next state.

    Of the state all floats are in one tensor and all float64 sums in another, each as a float32 and
    the rest as a second one; all are zero at the start.

    Arguments
    ---------
    encoder : SpeechEncoder
    ctc_lin : torch.nn.Module
    """

    inputs = ("x", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
    outputs = ("log_probs", "log_probs_len", *(f"{name}_next" for name in inputs[2:]))

    def __init__(self, encoder, ctc_lin):
        super().__init__()
        self.offline = OfflineGraph(
            encoder.normalize, encoder.front_end, encoder.transformer, ctc_lin
        )
        self.config, self.chunk_frames = encoder.config, encoder.chunk_frames
        with torch.no_grad():
            self.leaves, self.spec = tree_flatten(encoder.initial_state(1))

    def forward(self, x, length, floats, sums, count):
        """Returns log-probabilities (B, C, V), their lengths, and the state after.

        Arguments
        ---------
        x : torch.Tensor
            (B, F, 4 C).
        length : torch.Tensor
            (B,), frames of x that are there.
        floats, sums : torch.Tensor
            (B, 1, 1, N) each.
        count : torch.Tensor
            (B,), frames of the encoder so far.
        """
        net = self.offline
        frames = (length + SUBSAMPLING - 1) // SUBSAMPLING
        convolved, encoder = self._unpack(floats.flatten(1), sums.flatten(1), count)
        lengths = frames.to(x.dtype) / self.chunk_frames
        x = (x.transpose(1, 2) - net.mean) / net.std
        x, convolved = net.front_end.step(x, convolved, lengths)
        padding = padding_mask(lengths, self.chunk_frames)
        encoded, encoder = net.transformer.step(x, encoder, self.config, padding)
        log_probs = net.ctc_lin(encoded).log_softmax(-1)
        return log_probs, frames, *self._pack((convolved, encoder))

    def example(self, bands):
        """Returns inputs to trace it by, and which of their dimensions vary."""
        batch = {0: torch.export.Dim.DYNAMIC}
        state = tuple(x.repeat(2, *[1] * (x.dim() - 1)) for x in self.start())
        length = torch.full((2,), SUBSAMPLING * self.chunk_frames)
        x = torch.randn(2, bands, SUBSAMPLING * self.chunk_frames)
        return (x, length, *state), (batch,) * 5

    def start(self):
        """Returns the state (floats, sums, count) of one stream at its start: zeros."""
        return tuple(self._pack(tree_unflatten(self.leaves, self.spec)))

    def _pack(self, state):
        floats, sums, count = [], [], None
        for leaf in tree_flatten(state)[0]:
            if leaf.dtype == torch.long:
                count = leaf
            elif leaf.dtype == torch.float64:
                high = leaf.flatten(1).float()
                sums += [high, (leaf.flatten(1) - high).float()]
            else:
                floats.append(leaf.flatten(1).float())
        batch = count.size(0)
        for parts in (floats, sums):  # sherpa-onnx wants both
            parts.append(count.new_zeros(batch, 1, dtype=torch.float32))
        return *(torch.cat(parts, 1)[:, None, None] for parts in (floats, sums)), count

    def _unpack(self, floats, sums, count):
        leaves, places = [], {"floats": 0, "sums": 0}

        def taken(name, source, leaf):
            place, size = places[name], leaf[0].numel()
            places[name] += size
            return source[:, place : place + size].unflatten(1, leaf.shape[1:])

        for leaf in self.leaves:
            if leaf.dtype == torch.long:
                leaves.append(count)
            elif leaf.dtype == torch.float64:
                high, low = (taken("sums", sums, leaf).double() for _ in range(2))
                leaves.append(high + low)
            else:
                leaf_now = taken("floats", floats, leaf)
                leaves.append(leaf_now > 0.5 if leaf.dtype == torch.bool else leaf_now)
        return tree_unflatten(leaves, self.spec)


def export_onnx(model, folder, *, chunk_ms=None, left_ms=None, int8=False, fp16=False):
    """Writes a trained recogniser's encoder and CTC head as ONNX graphs.

    The folder holds model.onnx, tokens.txt, config.json with the sha256 of each file and README.md;
    its subfolder ``streaming`` the same of the graph for streams, where ``chunk_ms`` asks for it.
    Each graph is compared with torch before it is there. Nothing in it is run when it is loaded.

    Arguments
    ---------
    model : EncoderASR or EncoderDecoderASR
        From `transcribe.load_model`. A decoder is left out: the graph recognises by CTC.
    folder : str or Path
        Made anew.
    chunk_ms, left_ms : int or None
        As for `StreamingModel`; without chunk_ms there is no graph for streams.
    int8, fp16 : bool
        Writes model.int8.onnx, whose matrix products are of 8-bit integers, and model.fp16.onnx.

    Returns
    -------
    dict
        From the path of each graph to its largest difference from torch, of log-probabilities.

    Raises
    ------
    UserError
        If a package is missing, the model cannot be exported, or a graph differs from torch.
    """
    _packages()
    hparams, folder = model.hparams, Path(folder)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{folder}: exists, and is no export of ONNX: give another folder")
    features = hparams.compute_features
    told = {name: getattr(features, name, None) for name in FEATURES}
    if told != FEATURES or hparams.normalize.norm_type != "global":
        raise UserError(
            f"the model's features are {type(features).__name__} {told}, normalised "
            f"{hparams.normalize.norm_type}, but an ONNX graph is of {FEATURES}, normalised "
            "global: train with hparams/parts/features.yaml as it is"
        )
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    parts = hparams.normalize, hparams.front_end, hparams.transformer, hparams.ctc_lin
    model.eval()
    graphs = {"": (OfflineGraph(*parts), OFFLINE_METADATA)}
    if chunk_ms is not None:
        streaming = StreamingModel(model, chunk_ms=chunk_ms, left_ms=left_ms)
        graph = StreamingGraph(streaming.encoder, hparams.ctc_lin)
        graphs["streaming"] = (graph, _streaming_metadata(graph, hparams.ctc_lin.w.out_features))
    differences = {}
    for name, (graph, metadata) in graphs.items():
        place = new / name
        place.mkdir(parents=True)
        file = place / "model.onnx"
        logger.info("%s: is made, which takes minutes", folder / name / "model.onnx")
        _write(graph.eval(), file, metadata)
        differences[str(folder / name / "model.onnx")] = _compared(graph, file)
        smaller = {"int8": (int8, _quantize), "fp16": (fp16, _halve)}
        for kind, (asked, convert) in smaller.items():
            if asked:
                convert(file, place / f"model.{kind}.onnx")
        _write_tokens(model.tokenizer, place / "tokens.txt")
        about = {"streams": name == "streaming", "chunk_ms": chunk_ms if name else None}
        _write_config(place, metadata, about)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return differences


def _packages():
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: {INSTALL}") from error


def _streaming_metadata(graph, tokens):
    chunk = SUBSAMPLING * graph.chunk_frames
    floats, sums, _ = graph.start()
    return {
        "model_type": "EncDecCTCModelBPE",
        "window_size": chunk,
        "chunk_shift": chunk,
        "subsampling_factor": SUBSAMPLING,
        "vocab_size": tokens - 1,  # without the blank
        **{f"cache_last_channel_dim{i}": floats.size(i) for i in (1, 2, 3)},
        **{f"cache_last_time_dim{i}": sums.size(i) for i in (1, 2, 3)},
    }


def _write(graph, file, metadata):
    """Writes a graph of any batch, and any length where it is not of chunks."""
    import onnx

    inputs, dynamic = graph.example(FEATURES["n_mels"])
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in metadata.items()})
    onnx.save(proto, str(file))


def _compared(graph, file):
    """The largest difference of a graph's log-probabilities from torch's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    largest, bands = 0.0, FEATURES["n_mels"]
    torch.manual_seed(0)
    if isinstance(graph, OfflineGraph):
        trials = [
            (5 * torch.randn(2, frames, bands) - 10, torch.tensor([frames, (frames + 1) // 2]))
            for frames in (1, 7, 240, 2999)
        ]
    else:
        chunk = SUBSAMPLING * graph.chunk_frames
        trials = [(5 * torch.randn(2, bands, chunk) - 10, torch.full((2,), chunk))] * 5
    state = ()
    if isinstance(graph, StreamingGraph):
        state = tuple(x.repeat(2, *[1] * (x.dim() - 1)) for x in graph.start())
    for inputs in trials:
        with torch.no_grad():
            expected, lengths, *after = graph(*inputs, *state)
        feeds = dict(zip(graph.inputs, (x.numpy() for x in (*inputs, *state))))
        found = torch.from_numpy(session.run([graph.outputs[0]], feeds)[0])
        padding = torch.arange(found.size(1)) >= lengths.unsqueeze(1)
        off = (found - expected).abs().masked_fill(padding.unsqueeze(2), 0.0)
        largest, state = max(largest, off.max().item()), tuple(after)
    if not largest <= TOLERANCE:
        raise UserError(
            f"{file}: differs from torch by {largest:.1e}, more than {TOLERANCE}: tell us the "
            "system and the versions of torch and onnxruntime"
        )
    return largest


def _quantize(file, smaller):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().disabled, before = True, logging.getLogger().disabled
    try:
        quantize_dynamic(
            str(file), str(smaller), op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8
        )
    finally:
        logging.getLogger().disabled = before


def _halve(file, smaller):
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(str(file)), keep_io_types=True), str(smaller))


def _write_tokens(tokenizer, file):
    pieces = ["<blk>", *map(tokenizer.id_to_piece, range(1, tokenizer.get_piece_size()))]
    lines = "".join(f"{piece} {index}\n" for index, piece in enumerate(pieces))
    file.write_text(lines, encoding="utf-8")


def _write_config(place, metadata, about):
    packages = ("speechbrain_summarymixing", "speechbrain", "torch", "onnx", "onnxruntime")
    config = {
        **about,
        "features": {"type": "Kaldi log-mel filterbank (kaldi-native-fbank)", **FEATURES},
        "metadata": metadata,
        "blank": 0,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "sha256": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(place.iterdir())
            if path.is_file()
        },
    }
    (place / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    usage = STREAMING_USAGE if about["streams"] else OFFLINE_USAGE
    (place / "README.md").write_text(CARD.format(usage=usage), encoding="utf-8")
