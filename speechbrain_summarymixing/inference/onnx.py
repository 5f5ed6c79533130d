"""Trained recognisers as ONNX graphs, which run without Python, torch or SpeechBrain.

Input and output names and metadata are those that sherpa-onnx 2.0 takes unmodified: offline as
``OfflineRecognizer.from_zipformer_ctc``, streaming as ``OnlineRecognizer.from_zipformer2_ctc``
(``from_nemo_ctc`` computes other features). The features are Kaldi's log-mel filterbank.
"""

import contextlib
import io
import logging
import shutil
import warnings
from itertools import zip_longest
from pathlib import Path

import torch

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.graphs import SUBSAMPLING, OfflineGraph, StreamingGraph
from speechbrain_summarymixing.inference.provenance import write_config
from speechbrain_summarymixing.inference.streaming import StreamingModel

logger = logging.getLogger(__name__)

OPSET = 18
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
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
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
        graphs["streaming"] = (graph, graph.metadata())
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
    largest, after, bands = 0.0, (), FEATURES["n_mels"]
    torch.manual_seed(0)
    if isinstance(graph, OfflineGraph):
        trials = [
            (5 * torch.randn(2, frames, bands) - 10, torch.tensor([frames, (frames + 1) // 2]))
            for frames in (1, 7, 240, 2999)
        ]
        starts = [()] * len(trials)
    else:
        chunk = SUBSAMPLING * graph.chunk_frames
        trials = [(5 * torch.randn(2, chunk, bands) - 10,)] * 5
        starts = [graph.start(2)]
    for inputs, state in zip_longest(trials, starts):
        state = after if state is None else state
        with torch.no_grad():
            expected, *after = graph(*inputs, *state)
        feeds = dict(zip(graph.inputs, (x.numpy() for x in (*inputs, *state))))
        found = torch.from_numpy(session.run([graph.outputs[0]], feeds)[0])
        off = (found - expected).abs()
        if isinstance(graph, OfflineGraph):
            off[torch.arange(off.size(1)) >= after[0].unsqueeze(1)] = 0.0
        largest = max(largest, off.max().item())
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
    write_config(
        place,
        packages=("onnx", "onnxruntime"),
        **about,
        features={"type": "Kaldi log-mel filterbank (kaldi-native-fbank)", **FEATURES},
        metadata=metadata,
        blank=0,
    )
    usage = STREAMING_USAGE if about["streams"] else OFFLINE_USAGE
    (place / "README.md").write_text(CARD.format(usage=usage), encoding="utf-8")
