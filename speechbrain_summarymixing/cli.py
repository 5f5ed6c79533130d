"""The command ``summarymixing``."""

import argparse
import json
import logging
import sys
from dataclasses import asdict

from speechbrain_summarymixing import __version__
from speechbrain_summarymixing.errors import UserError


def main(argv=None):
    """Runs the command line; returns its exit status.

    Arguments
    ---------
    argv : list of str or None
        Arguments; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="summarymixing", description="Speech recognition with SummaryMixing"
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_transcribe(commands)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _add_transcribe(commands):
    parser = commands.add_parser(
        "transcribe",
        help="print the words in audio files",
        description="Prints a line for each file, in order. A file that cannot be read gets its "
        "error on stderr, the others their text, and the exit status is 1.",
    )
    parser.add_argument("model", help="folder of an exported model")
    parser.add_argument("files", nargs="+", metavar="file", help="wav, flac, mp3, ogg, sph")
    parser.add_argument("--json", action="store_true", help="a JSON object for each file")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument(
        "--batch-seconds", type=float, default=120.0, help="padded audio in one batch"
    )
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=_transcribe)


def _transcribe(arguments):
    if not arguments.batch_seconds > 0:
        raise UserError(f"--batch-seconds is {arguments.batch_seconds}, but must be above 0")
    # torch takes seconds to import: only a command that needs it waits
    from tqdm import tqdm

    from speechbrain_summarymixing.inference.transcribe import load_model, transcribe

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    model = load_model(arguments.model, arguments.device)
    failed = 0
    with tqdm(
        total=len(arguments.files), unit="file", disable=True if arguments.no_progress else None
    ) as bar:
        for result in transcribe(model, arguments.files, batch_seconds=arguments.batch_seconds):
            failed += result.error is not None
            with bar.external_write_mode():
                _print(result, arguments)
            bar.update()
    return 1 if failed else 0


def _print(result, arguments):
    if result.error is not None:
        print(f"error: {result.error}", file=sys.stderr)
    if arguments.json:
        content = {k: v for k, v in asdict(result).items() if v is not None}
        print(json.dumps(content, ensure_ascii=False), flush=True)
    elif result.error is None:
        many = len(arguments.files) > 1
        print(f"{result.file}\t{result.text}" if many else result.text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
