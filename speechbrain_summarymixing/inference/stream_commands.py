"""``summarymixing transcribe --stream``: words of files, a pipe or a microphone as they come.

It imports what it needs when it runs, since torch takes seconds.
"""

import argparse
import json
import logging
import shutil
import sys
import unicodedata
from dataclasses import asdict

from speechbrain_summarymixing.errors import UserError

ESCAPED = {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}
STDIN = "-"
READ_SECONDS = 10.0  # of a file, at most, in memory
OF_STREAMS = ("chunk_ms", "left_ms", "endpoint_ms", "microphone")
SEARCH = ("decoder", "beam_size", "ngram", "hotwords", "hotword_weight")
OF_WHOLE_FILES = (
    "batch_seconds",
    "segment_seconds",
    "segments",
    "format",
    "output",
    "nbest",
)


def add_stream(parser, files):
    """Adds the options of streams to those of ``transcribe``.

    Arguments
    ---------
    parser : argparse.ArgumentParser
    files : argparse.Action
        The argument that a microphone can do without.
    """

    class Microphone(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None):
            namespace.microphone, files.required = values, False

    options = parser.add_argument_group(
        "streams",
        "Words while the sound goes on: each part between two pauses is a line, with its begin and "
        "end in seconds, and the last line is the whole text. Ctrl-C ends - and --microphone.",
    )
    options.add_argument(
        "--stream",
        action="store_true",
        help="recognise as it comes; the file - is standard input: raw 16-bit little-endian mono "
        "samples of the model's rate",
    )
    options.add_argument(
        "--chunk-ms", type=int, metavar="N", help="sound that is waited for (default: 640)"
    )
    options.add_argument(
        "--left-ms",
        type=int,
        metavar="N",
        help="sound before a chunk that is looked at, a multiple of --chunk-ms (default: all)",
    )
    options.add_argument(
        "--endpoint-ms",
        type=int,
        metavar="N",
        help="a pause so long ends a part (default: 1200)",
    )
    options.add_argument(
        "--microphone",
        action=Microphone,
        nargs="?",
        const="",
        metavar="DEVICE",
        help="in place of files, after MODEL; its number or a part of its name (python -m "
        "sounddevice lists them; default: the system's)",
    )


def check_stream(arguments):
    """Checks that the options of ``transcribe`` go together.

    Arguments
    ---------
    arguments : argparse.Namespace

    Raises
    ------
    UserError
        If they do not.
    """
    files = arguments.files
    given = {name for name, value in vars(arguments).items() if value is not None}
    if not arguments.stream:
        for name in OF_STREAMS:
            if name in given:
                raise UserError(f"{_option(name)} is one of streams: give --stream too")
        if STDIN in files:
            raise UserError(
                "- is standard input, which is heard as a stream: give --stream too, or ./- if it "
                "is the name of a file"
            )
    for name in OF_WHOLE_FILES:
        if arguments.stream and name in given:
            raise UserError(
                f"{_option(name)} is one of whole files: leave it out, or leave out --stream"
            )
    if arguments.microphone is not None and files:
        raise UserError(
            f"--microphone is given, and so is {files[0]}: give one or the other, and the "
            "microphone's DEVICE right after --microphone"
        )
    if STDIN in files and len(files) > 1:
        raise UserError("- is given beside other files: give it alone")


def transcribe_streams(arguments):
    """Prints what is said in files, standard input or a microphone; returns the exit status.

    Arguments
    ---------
    arguments : argparse.Namespace
        Of ``transcribe``.
    """
    from speechbrain_summarymixing.inference.streaming import StreamingModel
    from speechbrain_summarymixing.inference.transcribe import load_recognizer

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    model = load_recognizer(arguments.model, arguments.device, trust=arguments.trust)
    names = ("chunk_ms", "left_ms", "endpoint_ms", *SEARCH)
    model = StreamingModel(model, **given_options(arguments, *names))
    failed = 0
    for name, pieces in _sounds(arguments, model):
        printer = _Printer(name, arguments)
        try:
            _transcribe(model, pieces, printer)
        except UserError as error:
            printer.error(error)
            failed = 1
    return failed


def given_options(arguments, *names):
    """Returns those of some options that are given, by name."""
    values = vars(arguments)
    return {name: values[name] for name in names if values[name] is not None}


def line_of(file, line, arguments):
    """Returns a line of a file, which its name precedes where there are several files."""
    if len(arguments.files) < 2:
        return line
    return f"{file.translate(ESCAPED)}\t{line}"  # one line, whatever it is called


def _option(name):
    return f"--{name.replace('_', '-')}"


def _sounds(arguments, model):
    """The name and the samples, piece by piece, of each sound."""
    from speechbrain_summarymixing.inference.live_audio import microphone, standard_input

    if arguments.microphone is not None:
        yield "microphone", microphone(arguments.microphone or None, model.sample_rate)
    for file in arguments.files:
        yield file, standard_input() if file == STDIN else _file(file, model)


def _file(file, model):
    """Samples of a file, of a chunk or less."""
    from speechbrain_summarymixing.audio import read_segments

    chunk = model.encoder.chunk_frames * model.encoder.frame_samples
    for segment in read_segments(file, model.sample_rate, longest=READ_SECONDS):
        yield from (segment[start : start + chunk] for start in range(0, len(segment), chunk))


def _transcribe(model, pieces, printer):
    samples, failed = 0, None
    with model.open() as stream:
        try:
            for piece in pieces:
                samples += len(piece)
                for event in stream.accept(piece):
                    printer.event(event)
        except UserError as error:
            if not samples:
                raise
            failed = error  # what was heard before it is told
        for event in stream.finish():
            printer.event(event)
        printer.end(stream.text, samples / model.sample_rate)
    if failed is not None:
        raise failed


class _Printer:
    """Lines of one stream, and on a terminal the words that are not final yet."""

    def __init__(self, file, arguments):
        self.file, self.arguments = file, arguments
        terminal = sys.stdout.isatty() and not arguments.json
        self.shows_partial, self.partial = terminal and not arguments.no_progress, ""

    def event(self, event):
        if self.arguments.json:
            self._json(**asdict(event))
        elif event.final:
            begin, end = event.words[0].begin, event.words[-1].end
            self._line(f"{begin:.2f}\t{end:.2f}\t{event.text}")
        elif self.shows_partial:
            self.partial = _tail(event.text, shutil.get_terminal_size().columns - 1)
            print(f"\r{self.partial}\x1b[K", end="", flush=True)

    def end(self, text, seconds):
        if not text:
            self._warn(f"warning: {self.file}: no words")
        if self.arguments.json:
            self._json(text=text, seconds=seconds)
        else:
            self._line(text)

    def error(self, error):
        self._warn(f"error: {error}")
        if self.arguments.json:
            self._json(error=str(error))

    def _json(self, **content):
        print(json.dumps({"file": self.file, **content}, ensure_ascii=False), flush=True)

    def _line(self, line):
        self._clear()
        print(line_of(self.file, line, self.arguments), flush=True)

    def _warn(self, line):
        self._clear()
        print(line, file=sys.stderr)

    def _clear(self):
        if self.partial:
            print("\r\x1b[K", end="", flush=True)
            self.partial = ""


def _tail(text, columns):
    """The end of a text that fits in so many columns."""
    widths = [2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text]
    if sum(widths) <= columns:
        return text
    start = 0
    while sum(widths[start:]) >= columns:
        start += 1
    return "…" + text[start:]
