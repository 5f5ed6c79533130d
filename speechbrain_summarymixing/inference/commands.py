"""Options of the commands that recognise speech, and how what they find is written.

A command imports what it needs when it runs, since torch takes seconds.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.inference import subtitles

FORMATS = {"text": "txt", "json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
DECODING = ("decoder", "beam_size", "ngram", "batch_seconds", "segment_seconds", "nbest")
ESCAPED = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


def add_decoding(parser):
    """Adds options that choose the search."""
    parser.add_argument(
        "--decoder",
        choices=["greedy", "beam", "joint"],
        help="greedy: CTC's best token of each frame, fastest; beam: CTC's beam search; joint: "
        "that of the attention decoder and CTC (default: joint, or greedy of a model of CTC alone; "
        "a transducer has greedy and beam of its own)",
    )
    parser.add_argument("--beam-size", type=int, metavar="N", help="hypotheses that are kept")
    parser.add_argument(
        "--ngram", metavar="FILE", help="KenLM's or ARPA, which joins in CTC's --decoder beam"
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
        "--nbest", type=int, default=1, metavar="N", help="hypotheses of each segment, in JSON"
    )


def check_formats(arguments):
    """Settles the format of what is written; a `UserError` tells what does not go together."""
    given = vars(arguments)
    chosen = given.get("format")
    if arguments.json and chosen not in (None, "json"):
        raise UserError(f"--format is {chosen}, but --json is given too: give one of them")
    arguments.format = "json" if arguments.json else chosen or "text"
    if given.get("nbest", 1) > 1 and arguments.format != "json":
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
    try:
        Path(arguments.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output is {arguments.output}, which is no folder and cannot be made "
            f"({reason_of(error)}): give another"
        ) from error


def write_answer(result, arguments):
    """Writes an `Answer`, to standard output or to its file.

    Arguments
    ---------
    result : Answer
    arguments : argparse.Namespace
        After `check_formats`.
    """
    kind, folder = arguments.format, getattr(arguments, "output", None)
    if kind == "json":
        content = {k: v for k, v in asdict(result).items() if v is not None}
        text = json.dumps(content, ensure_ascii=False) + "\n"
    elif result.error is not None:
        return
    elif kind == "text":
        text = result.line() + "\n"
        if folder is None and len(arguments.files) > 1:
            text = f"{result.file.translate(ESCAPED)}\t{text}"  # a line for each file
    else:
        text = getattr(subtitles, kind)(result.words)
    if folder is None:
        print(text, end="", flush=True)
    elif result.error is None:
        path = Path(folder) / f"{Path(result.file).stem}.{FORMATS[kind]}"
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
