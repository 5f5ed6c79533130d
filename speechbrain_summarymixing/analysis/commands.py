"""The commands ``summarymixing evaluate``, ``benchmark`` and ``compare``.

A command imports what it needs when it runs, since torch takes seconds.
"""

import logging
import shlex
from itertools import product

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.commands import (
    MODEL,
    add_decoding,
    add_segments,
    add_trust,
    decoding_options,
)
from speechbrain_summarymixing.inference.stream_commands import SEARCH


def add_evaluate(commands):
    """Adds ``evaluate`` to the commands of a parser."""
    parser = commands.add_parser(
        "evaluate",
        help="word and character errors of a model on speech whose words are known",
        description="Prints WER and CER with 95% intervals over utterances, and the real-time "
        "factor. Utterances without a transcript or whose audio cannot be read are named on "
        "stderr, the others are measured, and the exit status is 1.",
    )
    parser.add_argument("model", help=MODEL)
    parser.add_argument(
        "manifest",
        help="CSV, NeMo's JSON lines, lhotse's .jsonl.gz, a data folder of Kaldi, or a folder of "
        "audio with <name>.txt beside each file",
    )
    parser.add_argument(
        "--against", metavar="MODEL", help="another model: difference by a paired bootstrap"
    )
    parser.add_argument("--data-root", help="what $data_root in the manifest stands for")
    parser.add_argument(
        "--language",
        metavar="LOCALE",
        help="normalise both texts first, as en: capitals, no punctuation (default: as they are)",
    )
    add_decoding(parser)
    add_segments(parser)
    parser.add_argument("--stream", action="store_true", help="hear each utterance as a stream")
    parser.add_argument("--chunk-ms", type=int, metavar="N", help="of a stream (default: 640)")
    parser.add_argument("--batch-seconds", type=float, metavar="S", help="as for transcribe")
    parser.add_argument("--alignments", metavar="FILE", help="write each utterance's, of MODEL")
    parser.add_argument("--json", action="store_true", help="a JSON object")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    add_trust(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments):
    options = decoding_options(arguments)
    chunk_ms = arguments.chunk_ms
    if arguments.stream and (unfit := [name for name in options if name not in SEARCH]):
        raise UserError(
            f"--stream is given with {' and '.join(unfit)}, but a stream has neither segments nor "
            "batches of files: leave these out"
        )
    if chunk_ms is not None and not arguments.stream:
        raise UserError(f"--chunk-ms is {chunk_ms}, but without --stream there are no chunks")
    from speechbrain_summarymixing.analysis.evaluate import evaluate
    from speechbrain_summarymixing.inference.streaming import CHUNK_MS

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    failed = evaluate(
        arguments.model,
        arguments.manifest,
        against=arguments.against,
        data_root=arguments.data_root,
        language=arguments.language,
        device=arguments.device,
        trust=arguments.trust,
        chunk_ms=CHUNK_MS if arguments.stream and chunk_ms is None else chunk_ms,
        alignments=arguments.alignments,
        as_json=arguments.json,
        progress=not arguments.no_progress,
        **options,
    )
    return 1 if failed else 0


def add_benchmark(commands):
    """Adds ``benchmark`` to the commands of a parser."""
    parser = commands.add_parser("benchmark", help="measure time and memory on this machine")
    subjects = parser.add_subparsers(dest="subject", required=True)
    _add_benchmark_systems(subjects)
    _add_benchmark_decoding(subjects)
    _add_benchmark_streaming(subjects)
    _add_benchmark_search(subjects)
    cell = subjects.add_parser(
        "cell",
        help="the cell beside its bare matrix products",
        description="Times the cell and what it is over alternately; prints CSV. The plain cell is "
        "over its matrix products, a cell with a window or decay is over the plain cell.",
    )
    cell.add_argument(
        "--form",
        nargs="+",
        choices=["plain", "causal", "causal-limited", "chunks", "decay", "selective"],
        default=["plain"],
        help="causal-limited sees 100 frames to the left, chunks of 16 see 4 chunks to the left",
    )
    cell.add_argument("--nhead", type=int, nargs="+", default=[1, 4])
    cell.add_argument("--frames", type=int, nargs="+", default=[250, 500, 1000, 2000, 5000])
    cell.add_argument("--d-model", type=int, default=512)
    cell.add_argument("--train", action="store_true", help="a training step; 3 x the products")
    cell.add_argument("--compile", action="store_true", help="the cell through torch.compile")
    cell.add_argument("--device", default="cpu")
    cell.add_argument("--repetitions", type=int, default=30)
    cell.set_defaults(run=_benchmark_cell)


def _benchmark_cell(arguments):
    from speechbrain_summarymixing.analysis.cell_cost import COLUMNS, cell_cost
    from speechbrain_summarymixing.analysis.measuring import check_device, machine

    check_device(arguments.device)
    print(f"# {machine(arguments.device)}")
    print(",".join(COLUMNS))
    for form, nhead, frames in product(arguments.form, arguments.nhead, arguments.frames):
        row = cell_cost(
            form=form,
            nhead=nhead,
            frames=frames,
            d_model=arguments.d_model,
            train=arguments.train,
            compiled=arguments.compile,
            device=arguments.device,
            repetitions=arguments.repetitions,
        )
        values = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        print(",".join(values), flush=True)
    return 0


def _add_system_files(parser):
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help="a YAML file, or a name")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options over those of every file that has them",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def _add_benchmark_systems(subjects):
    systems = subjects.add_parser(
        "systems",
        help="whole encoders side by side, time and memory against audio length",
        description="Times the encoders of hyperparameter files in turn and measures their peak "
        "memory, each point in a fresh process; prints CSV. On the CPU memory is what a run adds "
        "to the weights, on CUDA it is all that torch allocated. A point that does not fit in "
        "memory or in the budget is told, never estimated.",
    )
    _add_system_files(systems)
    systems.add_argument("--seconds", type=float, nargs="+", default=[10, 30, 60, 150, 300, 600])
    kinds = ["inference", "training"]
    systems.add_argument("--what", nargs="+", choices=kinds, default=kinds)
    systems.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    systems.add_argument("--batch", type=int, default=1, help="utterances of that length at once")
    systems.add_argument("--repetitions", type=int, default=5, help="timed runs after a warm-up")
    systems.add_argument(
        "--budget",
        type=float,
        default=120.0,
        help="seconds; where one run takes longer, longer lengths are not run (default: 120)",
    )
    systems.add_argument("--csv", metavar="FILE", help="write the table here too")
    systems.add_argument("--plot", metavar="FILE.png", help="draw time and memory over length")
    systems.set_defaults(run=_benchmark_systems)


def _benchmark_systems(arguments):
    from speechbrain_summarymixing.analysis.system_table import benchmark_systems

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    benchmark_systems(
        arguments.systems,
        settings=arguments.set,
        seconds=arguments.seconds,
        what=arguments.what,
        batch=arguments.batch,
        repetitions=arguments.repetitions,
        budget=arguments.budget,
        device=arguments.device,
        precision=arguments.precision,
        csv_file=arguments.csv,
        plot_file=arguments.plot,
    )
    return 0


def _add_benchmark_decoding(subjects):
    decoding = subjects.add_parser(
        "decoding",
        help="one step of the beam search against the length of the prefix",
        description="Times the decoder's step of hyperparameter files in turn, without scorers; "
        "prints CSV. The column frames tells how many frames of each hypothesis the decoder reads.",
    )
    _add_system_files(decoding)
    decoding.add_argument(
        "--steps", type=int, nargs="+", default=[10, 50, 100, 200, 400], help="tokens of the prefix"
    )
    decoding.add_argument("--seconds", type=float, default=10.0, help="of audio (default: 10)")
    decoding.add_argument("--beam", type=int, default=10)
    decoding.add_argument("--repetitions", type=int, default=5, help="timed steps after a warm-up")
    decoding.set_defaults(run=_benchmark_decoding)


def _benchmark_decoding(arguments):
    from speechbrain_summarymixing.analysis.decoding_cost import benchmark_decoding

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    benchmark_decoding(
        arguments.systems,
        settings=arguments.set,
        steps=arguments.steps,
        seconds=arguments.seconds,
        beam=arguments.beam,
        repetitions=arguments.repetitions,
        device=arguments.device,
    )
    return 0


def _add_benchmark_streaming(subjects):
    streaming = subjects.add_parser(
        "streaming",
        help="streams: a chunk's time against audio heard, latency of words, many at once",
        description="Times chunks of streams that have heard little and much, of all systems in "
        "turn, from samples to tokens; prints CSV. With --audio and --aligner it measures how late "
        "words are told, with --streams how many streams are heard in time.",
    )
    _add_system_files(streaming)
    streaming.add_argument("--chunk-ms", type=int, default=640)
    streaming.add_argument(
        "--seconds", type=float, nargs="+", default=[10, 60, 600, 3600], help="of audio heard"
    )
    streaming.add_argument(
        "--attention",
        nargs="+",
        choices=["RelPosMHAXL", "regularMHA"],
        default=[],
        help="SpeechBrain's own Conformer beside the systems, with the widths of the first",
    )
    streaming.add_argument(
        "--left-chunks", type=int, default=32, help="that attention sees (default: 32)"
    )
    streaming.add_argument("--streams", type=int, nargs="*", help="default: 1 5 10 20 40")
    streaming.add_argument("--audio", nargs="+", default=[], metavar="FILE", help="of speech")
    streaming.add_argument("--aligner", metavar="MODEL", help="with CTC, tells where words end")
    streaming.add_argument("--repetitions", type=int, default=100, help="timed chunks, or rounds")
    streaming.add_argument(
        "--budget",
        type=float,
        default=120.0,
        help="seconds of CPU time in which a system hears; its state then is that of longer "
        "lengths too, and heard_s tells what it has heard (default: 120)",
    )
    streaming.add_argument("--threads", type=int, help="of torch (default: its own)")
    streaming.add_argument("--csv", metavar="FILE", help="write the table here too")
    streaming.add_argument("--plot", metavar="FILE.png", help="draw time and state over audio")
    add_trust(streaming)
    streaming.set_defaults(run=_benchmark_streaming)


def _benchmark_streaming(arguments):
    from speechbrain_summarymixing.analysis.streaming_table import benchmark_streaming

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    given = vars(arguments)
    names = ("chunk_ms", "seconds", "attention", "left_chunks", "streams", "audio", "aligner")
    names += ("repetitions", "budget", "threads", "device", "trust")
    benchmark_streaming(
        arguments.systems,
        settings=arguments.set,
        csv_file=arguments.csv,
        plot_file=arguments.plot,
        command=shlex.join(["summarymixing", *arguments.argv]),
        **{name: given[name] for name in names},
    )
    return 0


def _add_benchmark_search(subjects):
    search = subjects.add_parser(
        "search",
        help="a model's beam search of whole audio beside SpeechBrain's",
        description="Times the beam search of an exported model and SpeechBrain's own in turn, "
        "without the encoder; prints CSV.",
    )
    search.add_argument("model", metavar="MODEL", help="an exported model's folder or hub name")
    search.add_argument("files", nargs="+", metavar="FILE", help="speech, which is joined")
    search.add_argument(
        "--seconds", type=float, nargs="+", default=[3.0, 15.0, 60.0], help="of audio"
    )
    search.add_argument("--repetitions", type=int, default=3, help="timed searches of each kind")
    search.add_argument("--device", default="cpu")
    add_trust(search)
    search.set_defaults(run=_benchmark_search)


def _benchmark_search(arguments):
    from speechbrain_summarymixing.analysis.search_cost import benchmark_search

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    benchmark_search(
        arguments.model,
        arguments.files,
        seconds=arguments.seconds,
        repetitions=arguments.repetitions,
        device=arguments.device,
        trust=arguments.trust,
    )
    return 0


def add_compare(commands):
    """Adds ``compare`` to the commands of a parser."""
    compare = commands.add_parser(
        "compare",
        help="train systems with several seeds and compare their errors",
        description="Trains each system on each corpus with each seed and prints how the error "
        "rates of the systems differ from the baseline's, with 95% intervals over seeds and "
        "utterances. The same command goes on where it was stopped, and trains again what failed.",
    )
    compare.add_argument(
        "systems",
        nargs="+",
        metavar="SYSTEM",
        help="FILE.yaml, NAME=FILE.yaml or NAME=FILE.yaml:key=value,key=value",
    )
    compare.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    compare.add_argument(
        "--corpora",
        nargs="+",
        default=["mini"],
        metavar="CORPUS",
        help="mini, or NAME:key=value,…, as in an4:data_folder=DIR,number_of_epochs=60",
    )
    compare.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options of every system whose file has them; a corpus's, then a system's, go before",
    )
    compare.add_argument("--baseline", metavar="NAME", help="a system (default: the last)")
    compare.add_argument(
        "--match-parameters",
        action="store_true",
        help="give each encoder as many parameters as the baseline's, by the width that its file's "
        "size_option names",
    )
    compare.add_argument("--folder", default="results/compare", help="default: results/compare")
    compare.add_argument("--train", metavar="TRAIN.py", help="your own, for a task of your own")
    compare.add_argument("--device", help="cpu, cuda (default: a GPU where there is one)")
    compare.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side, of one thread each"
    )
    compare.add_argument(
        "--keep-checkpoints", action="store_true", help="of finished runs too, to train on"
    )
    compare.add_argument("--no-progress", action="store_true", help="no progress bar")
    compare.set_defaults(run=_compare)


def _compare(arguments):
    from speechbrain_summarymixing.analysis.compare import compare

    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    failed = compare(
        arguments.systems,
        arguments.folder,
        seeds=arguments.seeds,
        corpora=arguments.corpora,
        settings=arguments.set,
        baseline=arguments.baseline,
        match_parameters=arguments.match_parameters,
        train=arguments.train,
        device=arguments.device,
        jobs=arguments.jobs,
        keep_checkpoints=arguments.keep_checkpoints,
        progress=not arguments.no_progress,
        command=shlex.join(["summarymixing", *arguments.argv]),
    )
    return 1 if failed else 0
