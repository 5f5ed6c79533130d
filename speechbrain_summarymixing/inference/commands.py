"""The command ``summarymixing serve``.

A command imports what it needs when it runs, since torch takes seconds.
"""

import logging

from speechbrain_summarymixing.errors import UserError


def add_serve(commands):
    """Adds ``serve`` to the commands of a parser."""
    parser = commands.add_parser(
        "serve",
        help="recognise speech while it is said, for many clients",
        description="Listens for websockets, and shows a page that sends the microphone's sound.",
    )
    parser.add_argument("model", help="folder of an exported model, or its name on the hub")
    parser.add_argument("--host", default="127.0.0.1", help="default: this machine alone")
    parser.add_argument("--port", type=int, default=8765, help="0 is any (default: 8765)")
    parser.add_argument("--chunk-ms", type=int, help="heard at once (default: 640)")
    parser.add_argument("--left-ms", type=int, help="seen before a chunk (default: all)")
    parser.add_argument(
        "--endpoint-ms", type=int, help="pause after which words are final (default: 1200)"
    )
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
    parser.set_defaults(run=_serve)


def _serve(arguments):
    def given(*names):
        values = vars(arguments)
        return {name: values[name] for name in names if values[name] is not None}

    try:
        from speechbrain_summarymixing.inference import server
    except ImportError as error:
        raise UserError(
            "serve needs websockets, which is not installed: "
            'pip install "speechbrain-summarymixing[serve]"'
        ) from error
    from speechbrain_summarymixing.inference.streaming import StreamingModel
    from speechbrain_summarymixing.inference.transcribe import load_model

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    logging.getLogger("websockets").setLevel(logging.CRITICAL)  # else each port scan a traceback
    model = load_model(arguments.model, arguments.device)
    model = StreamingModel(model, **given("chunk_ms", "left_ms", "endpoint_ms"))
    options = given("host", "port", "max_clients", "max_silence_seconds", "origins")
    server.run(model, **options)
    return 0
