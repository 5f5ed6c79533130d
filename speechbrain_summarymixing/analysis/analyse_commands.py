"""The command ``summarymixing analyse``; it imports torch, which takes seconds, when it runs."""

import logging
import shlex

from speechbrain_summarymixing.inference.commands import add_trust


def add_analyse(commands):
    """Adds ``analyse`` to the commands of a parser."""
    parser = commands.add_parser(
        "analyse",
        help="what attention or SummaryMixing does in a model, by layer and head",
        description="Writes tables, pictures and a page on the rows of attention (how diagonal, "
        "how even, how far from their mean) or the parts of SummaryMixing, and on what becomes of "
        "the encoder's output and of WER (greedy search; a class is a word) where a mean takes "
        "their place. Utterances that cannot be read are named on stderr, and the exit status is "
        "1.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of an exported recogniser or classifier, of a recogniser of SpeechBrain, or "
        "of a speech encoder of Hugging Face",
    )
    parser.add_argument(
        "audio",
        nargs="+",
        metavar="AUDIO",
        help="audio files, whose words may be in <name>.txt beside each, or manifests or folders "
        "as for evaluate",
    )
    parser.add_argument("--output", metavar="FOLDER", required=True, help="to write")
    parser.add_argument(
        "--utterances", type=int, metavar="N", help="take so many, at equal steps (default: all)"
    )
    parser.add_argument("--data-root", help="what $data_root in a manifest stands for")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add_trust(parser)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=_analyse)


def _analyse(arguments):
    from speechbrain_summarymixing.analysis.analyse import analyse

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    failed = analyse(
        arguments.model,
        arguments.audio,
        arguments.output,
        data_root=arguments.data_root,
        most=arguments.utterances,
        device=arguments.device,
        trust=arguments.trust,
        progress=not arguments.no_progress,
        command=shlex.join(["summarymixing", *arguments.argv]),
    )
    return 1 if failed else 0
