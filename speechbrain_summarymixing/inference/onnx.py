"""Trained recognisers as ONNX graphs, which run without Python, torch or SpeechBrain.

Input and output names and metadata are those that sherpa-onnx 2.0 takes unmodified: offline as
``OfflineRecognizer.from_zipformer_ctc``, streaming as ``OnlineRecognizer.from_zipformer2_ctc``
(``from_nemo_ctc`` computes other features), a transducer by ``from_transducer`` of both. The
features are Kaldi's log-mel filterbank.
"""

import contextlib
import io
import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.graphs import (
    JoinerGraph,
    OfflineGraph,
    PredictorGraph,
    StreamingGraph,
)
from speechbrain_summarymixing.inference.onnx_graph import CTC, ENCODER, FEATURES, INSTALL, TOKENS
from speechbrain_summarymixing.inference.provenance import CONFIG, NOT_SUMMED, write_config
from speechbrain_summarymixing.inference.streaming import StreamingModel

logger = logging.getLogger(__name__)

OPSET = 18
TOLERANCE = 1e-4  # of a graph's first output, onnxruntime's against torch's
NAMES = {  # of all that an export may hold
    *(*NOT_SUMMED, TOKENS, "streaming"),
    *(
        f"{name}{kind}.onnx"
        for name in (CTC, ENCODER, "decoder", "joiner")
        for kind in ("", ".int8", ".fp16")
    ),
}
KEYS = {"features", "metadata", "blank"}  # of an export's config.json
OFFLINE_METADATA = {"model_type": "zipformer2_ctc", "version": 1}
TRANSDUCER_METADATA = {"model_type": "zipformer2", "version": 1}
CALLS = {  # of sherpa-onnx, for a model of CTC or a transducer, of whole files or streams
    (False, False): "OfflineRecognizer.from_zipformer_ctc",
    (False, True): "OnlineRecognizer.from_zipformer2_ctc",
    (True, False): "OfflineRecognizer.from_transducer",
    (True, True): "OnlineRecognizer.from_transducer",
}
USAGE = """    import sherpa_onnx
    recognizer = sherpa_onnx.{call}(
        {graphs}, tokens="tokens.txt"
    )
    stream = recognizer.create_stream()
"""
OFFLINE_USAGE = """    stream.accept_waveform(16000, samples)  # floats in [-1, 1]
    recognizer.decode_stream(stream)
    print(stream.result.text)"""
STREAMING_USAGE = """    for samples in microphone:  # floats in [-1, 1]; then a second of zeros
        stream.accept_waveform(16000, samples)
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        print(recognizer.get_result(stream))"""
CARD = """# Speech recogniser ({kind}) in ONNX

Made by speechbrain-summarymixing (SummaryMixing: arXiv 2307.07421). It runs in sherpa-onnx:

{usage}

config.json tells the features, versions and the sha256 of each file. No file holds code.
"""


def export_onnx(model, folder, *, chunk_ms=None, left_ms=None, int8=False, fp16=False):
    """Writes a trained recogniser's encoder with its CTC head, or a transducer, as ONNX graphs.

    The folder holds model.onnx, or encoder.onnx, decoder.onnx and joiner.onnx of a transducer;
    tokens.txt, config.json with the sha256 of each file and README.md; its subfolder ``streaming``
    the same for streams, where ``chunk_ms`` asks for it. Each float32 graph is compared with torch
    before the folder is there; those of int8 and fp16 are made of them, and not compared. Nothing
    in it is run when it is loaded.

    Arguments
    ---------
    model : EncoderASR or EncoderDecoderASR
        From `transcribe.load_model`. An attention decoder is left out.
    folder : str or Path
        Made anew; what is there must be an export, and nothing else.
    chunk_ms, left_ms : int or None
        As for `StreamingModel`; without chunk_ms there is no graph for streams.
    int8, fp16 : bool
        Writes graphs named .int8.onnx, whose matrix products are of 8-bit integers, and .fp16.onnx.

    Returns
    -------
    dict
        From the path of each float32 graph to its largest difference from torch.

    Raises
    ------
    UserError
        If a package is missing, the folder holds something else than an export, the model cannot be
        exported, or a graph differs from torch.
    """
    _packages()
    hparams, folder = model.hparams, Path(folder)
    if folder.exists() and not _is_export(folder):
        raise UserError(
            f"{folder}: exists, and is no export of ONNX: give another folder; an export is made "
            "anew where it holds nothing else"
        )
    features = hparams.compute_features
    told = {name: getattr(features, name, None) for name in FEATURES}
    if told != FEATURES or hparams.normalize.norm_type != "global":
        raise UserError(
            f"the model's features are {type(features).__name__} {told}, normalised "
            f"{hparams.normalize.norm_type}, but an ONNX graph is of {FEATURES}, normalised "
            "global: train with hparams/parts/features.yaml as it is"
        )
    model.eval()
    graphs = _graphs(model, chunk_ms, left_ms)
    target = folder.resolve()  # "." has no name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".new", dir=target.parent) as temporary:
        new = Path(temporary) / "export"  # whose mode is not the temporary folder's
        differences = _fill(new, folder, graphs, model.tokenizer, chunk_ms, int8=int8, fp16=fp16)
        if target.exists():
            shutil.rmtree(target)
        new.rename(target)
    return differences


def _is_export(folder):
    """Whether a folder is an export and holds nothing else."""
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(told, dict)
        and told.keys() >= KEYS
        and all(
            path.name in NAMES
            and (_is_export(path) if path.name == "streaming" else path.is_file())
            for path in folder.iterdir()
        )
    )


def _fill(new, folder, graphs, tokenizer, chunk_ms, *, int8, fp16):
    """Writes what is to be ``folder`` into ``new``; returns the differences from torch."""
    differences = {}
    for place, named in graphs.items():
        (new / place).mkdir(parents=True)
        for name, (graph, metadata) in named.items():
            file, final = new / place / f"{name}.onnx", folder / place / f"{name}.onnx"
            logger.info("%s: is made, which takes minutes", final)
            _write(graph.eval(), file, metadata)
            differences[str(final)] = _compared(graph, file, final)
            smaller = {"int8": (int8, _quantize), "fp16": (fp16, _halve)}
            for kind, (asked, convert) in smaller.items():
                if asked:
                    convert(file, file.with_name(f"{name}.{kind}.onnx"))
        _write_tokens(tokenizer, new / place / TOKENS)
        about = {"streams": bool(place), "chunk_ms": chunk_ms if place else None}
        _write_config(new / place, {name: told for name, (_, told) in named.items()}, about)
    return differences


def _graphs(model, chunk_ms, left_ms):
    """From each folder to its graphs, with their metadata, by name."""
    hparams = model.hparams
    transducer = getattr(hparams, "head", None)
    if transducer is None:
        head, output = nn.Sequential(hparams.ctc_lin, nn.LogSoftmax(-1)), "log_probs"
        name, metadata, others = "model", {**OFFLINE_METADATA}, {}
    else:
        head, output = transducer.of_frame, "encoder_out"
        name = "encoder"
        metadata = {
            **TRANSDUCER_METADATA,
            "beam_size": model.mods.decoder.beam_size,
            "max_symbols": model.mods.decoder.max_symbols,
        }
        others = {"decoder": PredictorGraph(transducer), "joiner": JoinerGraph(transducer)}
        others = {key: (graph, graph.metadata()) for key, graph in others.items()}
    if hasattr(hparams, "segment_seconds"):
        metadata["segment_seconds"] = hparams.segment_seconds
    encoder = hparams.normalize, hparams.front_end, hparams.transformer
    graphs = {"": {name: (OfflineGraph(*encoder, head, output), metadata), **others}}
    if chunk_ms is not None:
        streaming = StreamingModel(model, chunk_ms=chunk_ms, left_ms=left_ms)
        graph = StreamingGraph(streaming.encoder, head, output)
        graphs["streaming"] = {name: (graph, graph.metadata()), **others}
    return graphs


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

    inputs = (*graph.examples(FEATURES["n_mels"])[0], *_start(graph))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=graph.dynamic(),
            opset_version=OPSET,
            verbose=False,
        )
    proto = _bare(program.model_proto)
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in metadata.items()})
    onnx.save(proto, str(file))


def _bare(proto):
    """A graph without lines of our source and the paths where they lay, which torch adds."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    return proto


def _start(graph):
    return graph.start(2) if graph.states else ()


def _compared(graph, file, final):
    """The largest difference of a graph's first output from torch's; an error names ``final``."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    largest, state = 0.0, _start(graph)
    torch.manual_seed(0)
    for inputs in graph.examples(FEATURES["n_mels"]):
        inputs = (*inputs, *state)
        with torch.no_grad():
            expected, *after = graph(*inputs)
        feeds = dict(zip(graph.inputs, (x.numpy() for x in inputs)))
        found = torch.from_numpy(session.run([graph.outputs[0]], feeds)[0])
        off = (found - expected).abs()
        if graph.states:
            state = after
        elif after:
            off[torch.arange(off.size(1)) >= after[0].unsqueeze(1)] = 0.0
        largest = max(largest, off.max().item())
    if not largest <= TOLERANCE:
        raise UserError(
            f"{final}: differs from torch by {largest:.1e}, more than {TOLERANCE}: tell us the "
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
    transducer = "joiner" in metadata
    graphs = ", ".join(f'{name}="{name}.onnx"' for name in metadata)
    usage = USAGE.format(call=CALLS[transducer, about["streams"]], graphs=graphs)
    usage += STREAMING_USAGE if about["streams"] else OFFLINE_USAGE
    card = CARD.format(kind="transducer" if transducer else "CTC", usage=usage)
    (place / "README.md").write_text(card, encoding="utf-8")
