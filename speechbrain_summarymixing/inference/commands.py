"""Options of the commands that recognise speech, and how what they find is written.

A command imports what it needs when it runs, since torch takes seconds.
"""

import errno
import json
import logging
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.inference import subtitles
from speechbrain_summarymixing.inference.stream_commands import SEARCH, given_options, line_of

MODEL = (
    "folder of an exported model, or its name on the hub; or of its ONNX form, or a graph there, "
    "as FOLDER/model.int8.onnx"
)
FORMATS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
DECODING = (*SEARCH, "batch_seconds", "segment_seconds", "segments", "nbest")


def add_trust(parser):
    """Adds ``--trust`` to a command that loads a model."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run whatever the model's hyperparams.yaml names: only of one whom you trust",
    )


def add_decoding(parser):
    """Adds options that choose the search."""
    parser.add_argument(
        "--decoder",
        choices=["greedy", "beam", "joint"],
        help="greedy: CTC's best token of each frame, fastest; beam: CTC's beam search; joint: "
        "that of the attention decoder and CTC, of whole files (default: joint, or greedy of a "
        "model of CTC alone and of streams; a transducer has greedy and beam of its own)",
    )
    parser.add_argument("--beam-size", type=int, metavar="N", help="hypotheses that are kept")
    parser.add_argument(
        "--ngram", metavar="FILE", help="KenLM's or ARPA, which joins in CTC's --decoder beam"
    )
    parser.add_argument(
        "--hotwords",
        metavar="WORDS",
        help="names and such, apart by commas, or a file of them, to be found sooner by CTC's "
        "--decoder beam",
    )
    parser.add_argument(
        "--hotword-weight",
        type=float,
        metavar="X",
        help="added to a hypothesis's log-probability for each token of one (default: 1)",
    )


def add_segments(parser):
    """Adds options of how long files are cut."""
    parser.add_argument(
        "--segment-seconds",
        type=float,
        metavar="S",
        help="cut longer files into segments of so many seconds at most, each decoded by itself "
        "(default: as long as the model was trained on, or 20)",
    )
    parser.add_argument(
        "--segments",
        choices=["pauses", "vad", "windows"],
        help="pauses: cut longer files where it is quiet; vad: where silero-vad hears no speech; "
        "windows: anywhere, but segments overlap, and their words are merged (default: pauses)",
    )


def decoding_options(arguments):
    """Returns those of `DECODING` that are given, by name; a `UserError` tells of bad ones."""
    given = vars(arguments)
    options = {name: given[name] for name in DECODING if given.get(name) is not None}
    for name, value in options.items():
        if name.endswith("_seconds") and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}, but must be above 0")
    return options


def add_formats(parser):
    """Adds options of how transcripts are written."""
    parser.add_argument(
        "--format",
        choices=list(FORMATS),
        help="json, and tsv: words with times and confidence; srt and vtt: subtitles "
        "(default: text)",
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="write a file there for each audio file, by its name"
    )
    parser.add_argument(
        "--nbest", type=int, metavar="N", help="hypotheses of each segment, in JSON"
    )


def check_formats(arguments):
    """Settles the format of what is written; a `UserError` tells what does not go together."""
    given = vars(arguments)
    chosen = given.get("format")
    if arguments.json and chosen not in (None, "json"):
        raise UserError(f"--format is {chosen}, but --json is given too: give one of them")
    arguments.format = "json" if arguments.json else chosen or "text"
    if (given.get("nbest") or 1) > 1 and arguments.format != "json":
        raise UserError(
            f"--nbest is {arguments.nbest}, but --format {arguments.format} has room for one: give "
            "--format json"
        )
    if given.get("output") is None:
        if arguments.format in ("srt", "vtt", "tsv") and len(arguments.files) > 1:
            raise UserError(
                f"--format is {arguments.format} of {len(arguments.files)} files, which are no one "
                "file: give --output FOLDER"
            )
        return
    names = Counter(Path(file).stem for file in arguments.files)
    if double := [name for name, count in names.items() if count > 1]:
        raise UserError(
            f"--output is {arguments.output}, but {names[double[0]]} files are called {double[0]}: "
            "give each in a run of its own"
        )
    for file in arguments.files if arguments.format == "text" else ():
        words = Path(file).with_suffix(".txt")
        if words.is_file() and words.parent.resolve() == Path(arguments.output).resolve():
            raise UserError(
                f"--output is {arguments.output}, which has {words.name} beside the audio, as are "
                "the words that summarymixing evaluate compares with: give another folder, or "
                "remove it"
            )
    try:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output is {arguments.output}, which is no folder and cannot be made "
            f"({reason_of(error)}): give another"
        ) from error


def write_answer(result, arguments):
    """Writes an `Answer`, to standard output or to its file.

    A file that cannot be written is told on stderr.

    Arguments
    ---------
    result : Answer
    arguments : argparse.Namespace
        After `check_formats`.

    Returns
    -------
    bool
        Whether there is an answer and it was written.

    Raises
    ------
    OSError
        If there is no space left.
    """
    kind, folder = arguments.format, getattr(arguments, "output", None)
    if kind == "json":
        content = {k: v for k, v in asdict(result).items() if v is not None}
        text = json.dumps(content, ensure_ascii=False) + "\n"
    elif result.error is not None:
        return False
    elif kind == "text":
        line = result.line()
        text = (line_of(result.file, line, arguments) if folder is None else line) + "\n"
    else:
        text = getattr(subtitles, kind)(result.words)
    if folder is None:
        print(text, end="", flush=True)
    elif result.error is None:
        path = Path(folder) / f"{Path(result.file).stem}.{FORMATS[kind]}"
        try:
            write_atomically(path, text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(
                f"error: {path}: cannot be written ({reason_of(error)}): give another --output, or "
                "the audio file a shorter name",
                file=sys.stderr,
            )
            return False
    return result.error is None


def add_serve(commands):
    """Adds ``serve`` to the commands of a parser."""
    parser = commands.add_parser(
        "serve",
        help="recognise speech while it is said, for many clients",
        description="Listens for websockets, and shows a page that sends the microphone's sound.",
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument("--port", type=int, default=8765, help="0 is any (default: 8765)")
    parser.add_argument("--chunk-ms", type=int, help="heard at once (default: 640)")
    parser.add_argument("--left-ms", type=int, help="seen before a chunk (default: all)")
    parser.add_argument(
        "--endpoint-ms", type=int, help="pause after which words are final (default: 1200)"
    )
    add_decoding(parser)
    parser.add_argument("--max-clients", type=int, help="at once (default: 20)")
    parser.add_argument(
        "--max-silence-seconds",
        type=float,
        metavar="S",
        help="without words, after which a client is closed (default: 60)",
    )
    parser.add_argument(
        "--origin",
        nargs="+",
        dest="origins",
        metavar="URL",
        help="whose pages may connect too, such as https://example.org",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add_trust(parser)
    parser.set_defaults(run=_serve)


def _serve(arguments):
    try:
        from speechbrain_summarymixing.inference import server
    except ImportError as error:
        raise UserError(
            "serve needs websockets, which is not installed: "
            'pip install "speechbrain-summarymixing[serve]"'
        ) from error
    from speechbrain_summarymixing.inference.streaming import StreamingModel
    from speechbrain_summarymixing.inference.transcribe import load_recognizer

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # else each port scan a traceback
    model = load_recognizer(arguments.model, arguments.device, trust=arguments.trust)
    names = ("chunk_ms", "left_ms", "endpoint_ms", *SEARCH)
    model = StreamingModel(model, **given_options(arguments, *names))
    names = ("host", "port", "max_clients", "max_silence_seconds", "origins")
    server.run(model, **given_options(arguments, *names))
    return 0
