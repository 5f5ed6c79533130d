"""The command ``summarymixing``."""

import argparse
import errno
import logging
import os
import signal
import sys
from functools import partial

from speechbrain_summarymixing import __version__
from speechbrain_summarymixing.analysis.analyse_commands import add_analyse
from speechbrain_summarymixing.analysis.commands import add_benchmark, add_compare, add_evaluate
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.commands import (
    MODEL,
    add_decoding,
    add_formats,
    add_segments,
    add_serve,
    add_trust,
    check_formats,
    decoding_options,
    write_answer,
)
from speechbrain_summarymixing.inference.stream_commands import (
    add_stream,
    check_stream,
    transcribe_streams,
)


def main(argv=None):
    """Runs the command line; returns its exit status.

    Arguments
    ---------
    argv : list of str or None
        Arguments; None takes those of the process.
    """
    arguments = make_parser().parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = arguments.run(arguments)
        if sys.stdout is not None:  # closed by ">&-"
            sys.stdout.flush()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # "| head -1" has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                raise
            print(
                f"error: {error.filename}: cannot be used ({error.strerror}): give another, or "
                "mend its permissions",
                file=sys.stderr,
            )
            return 1
        print(f"error: no space left to write the output ({error.strerror})", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def make_parser():
    """Returns the parser of the command and all its sub-commands."""
    parser = argparse.ArgumentParser(
        prog="summarymixing", description="Speech recognition and understanding with SummaryMixing"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_answering(commands, "transcribe", "print the words in audio files", "text")
    _add_answering(commands, "understand", "print the semantics of audio files", "JSON")
    _add_answering(
        commands, "classify", "print the class of audio files", "class and its probability"
    )
    add_serve(commands)
    add_evaluate(commands)
    _add_train(commands)
    _add_flatten(commands)
    _add_convert(commands)
    _add_export(commands)
    _add_shard(commands)
    _add_join(commands)
    add_benchmark(commands)
    add_compare(commands)
    add_analyse(commands)
    return parser


def _add_answering(commands, name, help_line, answer):
    parser = commands.add_parser(
        name,
        help=help_line,
        description="Prints a line for each file, in order. A file that cannot be read gets its "
        f"error on stderr, the others their {answer}, and the exit status is 1.",
    )
    parser.add_argument("model", help=MODEL if name == "transcribe" else MODEL.partition(";")[0])
    files = parser.add_argument(
        "files", nargs="+", default=[], metavar="file", help="wav, flac, mp3, ogg, sph"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object for each file")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument(
        "--batch-seconds",
        type=float,
        help="padded audio in one batch (default: 40 on a CPU, 120 on a GPU)",
    )
    add_trust(parser)
    if name == "transcribe":
        add_segments(parser)
        add_stream(parser, files)
        add_decoding(parser)
        add_formats(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=_answer)


def _answer(arguments):
    if arguments.command == "transcribe":
        check_stream(arguments)
        if arguments.stream:
            return transcribe_streams(arguments)
    options = decoding_options(arguments)
    check_formats(arguments)
    from tqdm import tqdm

    from speechbrain_summarymixing.inference import batches

    answers = _answers(arguments, options)
    failed = 0
    with tqdm(
        total=round(batches.seconds_of(arguments.files)),
        unit="s",
        desc="audio",
        bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]",
        disable=True if arguments.no_progress else None,
    ) as bar:
        for result in answers(arguments.files, progress=bar.update, **options):
            with bar.external_write_mode():
                failed += not _print(result, arguments)
    return 1 if failed else 0


def _answers(arguments, options):
    """The function that answers files, of a model that is loaded."""
    named, trust = (arguments.model, arguments.device), arguments.trust
    # torch takes seconds to import: only what needs it waits
    if arguments.command == "transcribe":
        from speechbrain_summarymixing.inference.onnx_greedy import without_torch

        if (model := without_torch(*named, **options)) is not None:
            return model.transcribe
    from speechbrain_summarymixing.inference import transcribe

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    if arguments.command == "transcribe":
        model = transcribe.load_recognizer(*named, trust=trust)
    else:
        model = transcribe.load_model(*named, command=arguments.command, trust=trust)
    return partial(getattr(transcribe, arguments.command), model)


def _print(result, arguments):
    if result.error is not None:
        print(f"error: {result.error}", file=sys.stderr)
    elif (doubt := result.doubt()) is not None:
        print(f"warning: {result.file}: {doubt}", file=sys.stderr)
    return write_answer(result, arguments)


def _add_train(commands):
    parser = commands.add_parser(
        "train",
        help="train, test and export a system",
        description="Trains a system that comes with the package, or a YAML file of your own, as "
        "train.py does in a clone. Every key of the file is an option (--lr 1e-3), and so are "
        "SpeechBrain's run options (--device cuda).",
    )
    parser.add_argument("--list", action="store_true", help="print the systems' names and end")
    parser.add_argument("system", nargs="?", metavar="SYSTEM", help="a name, or a YAML file")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="--key value")
    parser.set_defaults(run=_train)


def _train(arguments):
    from speechbrain_summarymixing import systems

    if arguments.list:
        for name, file in systems.names().items():
            print(f"{name}\t{systems.headline(file)}")
        return 0
    if arguments.system is None:
        raise UserError("train: no system is given: see summarymixing train --list")
    from speechbrain_summarymixing.tasks.train import train

    train([arguments.system, *arguments.options])
    return 0


def _add_flatten(commands):
    parser = commands.add_parser(
        "flatten",
        help="print a system as one plain YAML file",
        description="Prints a system and all that it includes as one file, to change as you like.",
    )
    parser.add_argument("system", metavar="SYSTEM", help="a name, or a YAML file")
    parser.set_defaults(run=_flatten)


def _flatten(arguments):
    from speechbrain_summarymixing.systems import find
    from speechbrain_summarymixing.training.flatten import flatten

    print(flatten(find(arguments.system)), end="")
    return 0


def _add_convert(commands):
    parser = commands.add_parser(
        "convert",
        help="weights of a published checkpoint for a system here",
        description="Reads the model.ckpt of a published checkpoint, of all modules, and writes "
        "it with the names of a system's modules. Options of the system (--layer_norm False) "
        "follow.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("system", metavar="SYSTEM", help="a name, or a YAML file")
    parser.add_argument("file", metavar="FILE", help="to write")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="--key value")
    parser.set_defaults(run=_convert)


def _convert(arguments):
    from speechbrain_summarymixing.systems import find
    from speechbrain_summarymixing.training.options import parse_options
    from speechbrain_summarymixing.training.published import convert

    system = str(find(arguments.system))
    _, _, options = parse_options([system, *arguments.options])
    count = convert(arguments.checkpoint, system, arguments.file, options)
    print(f"{arguments.file}: {count:,} parameters")
    return 0


def _add_export(commands):
    parser = commands.add_parser(
        "export",
        help="write a trained recogniser as ONNX",
        description="Writes a recogniser's encoder and CTC head, or a transducer, as ONNX graphs, "
        "which sherpa-onnx runs as they are: FOLDER/model.onnx, or encoder.onnx, decoder.onnx and "
        "joiner.onnx; tokens.txt, config.json; with --chunk-ms those of its streams too, in "
        "FOLDER/streaming. Each float32 graph is compared with torch first; those of --int8 and "
        "--fp16 are made of them, and not compared.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of an exported model")
    parser.add_argument("folder", metavar="FOLDER", help="made anew")
    parser.add_argument("--format", choices=["onnx"], default="onnx")
    parser.add_argument(
        "--chunk-ms", type=int, metavar="N", help="sound that a stream waits for, as 640"
    )
    parser.add_argument(
        "--left-ms", type=int, metavar="N", help="of the past that a stream sees (default: all)"
    )
    parser.add_argument("--int8", action="store_true", help="a graph of 8-bit products too")
    parser.add_argument("--fp16", action="store_true", help="a graph of 16-bit floats too")
    add_trust(parser)
    parser.set_defaults(run=_export)


def _export(arguments):
    if arguments.left_ms is not None and arguments.chunk_ms is None:
        raise UserError("--left-ms is of a stream: give --chunk-ms too")
    from speechbrain_summarymixing.inference.onnx import export_onnx
    from speechbrain_summarymixing.inference.transcribe import load_model

    options = {name: getattr(arguments, name) for name in ("chunk_ms", "left_ms", "int8", "fp16")}
    model = load_model(arguments.model, "cpu", trust=arguments.trust)
    for path, difference in export_onnx(model, arguments.folder, **options).items():
        print(f"{path}: differs from torch by {difference:.1e} at most")
    return 0


def _add_shard(commands):
    parser = commands.add_parser(
        "shard",
        help="pack a corpus into tar files",
        description="Writes the utterances of a manifest, shuffled, into tar files of webdataset's "
        "layout: <ID>.flac (or wav, mp3, …) as it is and <ID>.json with duration, spk_id and wrd.",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="as train.py's --train_csv")
    parser.add_argument("folder", metavar="FOLDER", help="made anew")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--shard-seconds", type=float, default=3600.0, help="audio in a shard (default: 3600)"
    )
    size.add_argument("--utterances-per-shard", type=int, metavar="N")
    parser.add_argument("--data-root", help="what $data_root in the manifest stands for")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=_shard)


def _shard(arguments):
    from speechbrain_summarymixing.corpora.shards import write_shards

    counts = write_shards(
        arguments.manifest,
        arguments.folder,
        shard_seconds=arguments.shard_seconds,
        utterances_per_shard=arguments.utterances_per_shard,
        data_root=arguments.data_root,
        progress=not arguments.no_progress,
    )
    print(
        f"{arguments.folder}: {counts['shards']} shards, {counts['utterances']} utterances, "
        f"{counts['seconds'] / 3600:.2f} hours"
    )
    return 0


def _add_join(commands):
    parser = commands.add_parser(
        "join",
        help="make long recordings of short ones",
        description="Joins the utterances of a manifest, shuffled, to longer recordings with "
        "pauses between, and writes their manifest: to train or test on long audio.",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="as train.py's --train_csv")
    parser.add_argument("folder", metavar="FOLDER", help="made anew")
    parser.add_argument(
        "--seconds",
        type=float,
        nargs=2,
        default=(10.0, 30.0),
        metavar=("LOW", "HIGH"),
        help="length of a recording, drawn between (default: 10 30)",
    )
    parser.add_argument(
        "--pause",
        type=float,
        nargs=2,
        default=(0.2, 0.6),
        metavar=("LOW", "HIGH"),
        help="seconds between two utterances, drawn between (default: 0.2 0.6)",
    )
    parser.add_argument(
        "--noise-db",
        type=float,
        metavar="DB",
        help="white noise in pauses and under speech, in dB of full scale (default: in pauses "
        "alone, of -60)",
    )
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--sample-rate", type=int, default=16000, help="in Hz (default: 16000)")
    parser.add_argument("--data-root", help="what $data_root in the manifest stands for")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=_join)


def _join(arguments):
    from speechbrain_summarymixing.corpora.joined import join

    options = ("seconds", "pause", "noise_db", "seed", "sample_rate", "data_root")
    path = join(
        arguments.manifest,
        arguments.folder,
        progress=not arguments.no_progress,
        **{name: getattr(arguments, name) for name in options},
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
