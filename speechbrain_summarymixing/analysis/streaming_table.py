"""The tables and the picture of streams, for the command line."""

import contextlib
import os
import sys
from pathlib import Path

import torch

from speechbrain_summarymixing.analysis.cost_plot import plot_streams
from speechbrain_summarymixing.analysis.measuring import check_device, machine
from speechbrain_summarymixing.analysis.streaming_cost import (
    COLUMNS,
    SECONDS,
    StreamedSystem,
    attention_beside,
    streamed,
    streaming_cost,
)
from speechbrain_summarymixing.analysis.streaming_words import (
    LATENCY_COLUMNS,
    STREAMS,
    THROUGHPUT_COLUMNS,
    latency,
    throughput,
)
from speechbrain_summarymixing.analysis.system_table import check_folder, open_csv, write_rows
from speechbrain_summarymixing.analysis.systems import load_systems, names_of
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.provenance import checkout
from speechbrain_summarymixing.inference.transcribe import load_model
from speechbrain_summarymixing.systems import PACKAGE

EXAMPLE = PACKAGE.parent / "examples" / "sumformer-mini"


def benchmark_streaming(
    systems,
    *,
    settings=(),
    chunk_ms=640,
    seconds=SECONDS,
    attention=(),
    left_chunks=32,
    streams=None,
    audio=(),
    aligner=None,
    repetitions=100,
    budget=120.0,
    threads=None,
    device="cpu",
    trust=False,
    csv_file=None,
    plot_file=None,
    command="",
):
    """Measures streams, prints a table as CSV and writes it and a picture to files.

    With ``aligner`` it is the latency of words, with ``streams`` many streams at once, else the
    cost of a chunk.

    Arguments
    ---------
    systems : sequence of str or Path
        Hyperparameter files, which are measured with random weights, or folders of exported models;
        for words and many streams folders alone, where none is the clone's example.
    settings : sequence of str
        Options ``key=value`` over those of every file that has them.
    chunk_ms : int
    seconds, repetitions, budget
        As in `streaming_cost`; repetitions are also the rounds of `throughput`.
    attention : sequence of str
        As in `attention_beside`, with the widths of the first system.
    left_chunks : int
        Of attention.
    streams : sequence of int or None
        As in `throughput`; empty is its default.
    audio : sequence of str or Path
        Files of speech, for words and many streams.
    aligner : str, Path or None
        Folder of a model, as in `latency`.
    threads : int or None
        Of torch; None leaves them.
    device : str
    trust : bool
        As for `load_model`.
    csv_file, plot_file : str, Path or None
        Where the table and, of a chunk's cost, the picture (PNG) go.
    command : str
        What is noted of how this was called.

    Returns
    -------
    list of dict
        The table's rows.

    Raises
    ------
    UserError
        If a system cannot be loaded or used for streams, or an option does not fit.
    """
    _check(seconds, left_chunks, streams, repetitions, budget, threads)
    check_device(device)
    words, many = aligner is not None, streams is not None
    if words and (many or not audio):
        raise UserError(
            "--aligner aligns the words of --audio, and --streams is another table: give --audio "
            "FILE… and no --streams"
        )
    if audio and not (words or many):
        raise UserError("--audio is for --aligner MODEL or --streams N…: give one of them")
    if (words or many) and (plot_file or attention):
        raise UserError("--plot and --attention are for the cost of a chunk: leave them out here")
    if plot_file is not None:
        check_folder(plot_file, "--plot")
    if threads is not None:
        torch.set_num_threads(threads)
    options = {"chunk_ms": chunk_ms}
    if words or many:
        folders = systems or [EXAMPLE]
        named = zip(names_of(folders), folders)
        models = {name: load_model(folder, device, trust=trust) for name, folder in named}
        points = len(models) * (1 if words else len(streams or STREAMS))
    if words:
        columns, heads = LATENCY_COLUMNS, load_model(aligner, device, trust=trust)
        results = (latency(n, model, heads, audio, **options) for n, model in models.items())
    elif many:
        columns, options["streams"] = THROUGHPUT_COLUMNS, streams or STREAMS
        options["samples"] = _joined(audio, next(iter(models.values())))
        results = (
            row
            for n, model in models.items()
            for row in throughput(n, model, rounds=repetitions, **options)
        )
    else:
        given = settings, attention, left_chunks, device, trust, options
        columns, loaded = COLUMNS, _load(systems, *given)
        points = len(loaded) * len(set(seconds))
        results = streaming_cost(
            loaded, seconds=set(seconds), repetitions=repetitions, budget=budget
        )
    with contextlib.ExitStack() as stack:
        outputs = [sys.stdout]
        if csv_file is not None:
            outputs.append(stack.enter_context(open_csv(csv_file)))
        rows = write_rows(results, columns, _header(device, command), outputs, points)
    if plot_file is not None:
        plot_streams(rows, plot_file)
    return rows


def _load(systems, settings, attention, left_chunks, device, trust, options):
    """The systems of files and folders, in the order given, and attention beside them."""
    names = dict(zip(systems, names_of(systems)))
    folders = [path for path in systems if Path(path).is_dir()]
    files = [path for path in systems if path not in folders]
    found = {}
    if files or not folders:
        built = load_systems(files, settings=settings, device=device)
        for system, path in zip(built, files):
            system.name = names[path]
        found = {path: streamed(system, **options) for path, system in zip(files, built)}
    if attention and not files:
        raise UserError("--attention takes its widths from a SYSTEM.yaml: give a Conformer's")
    for path in folders:
        model = load_model(path, device, trust=trust)
        found[path] = StreamedSystem(names[path], model, **options)
    return [found[path] for path in systems] + [
        attention_beside(built[0], kind, left_chunks=left_chunks, **options) for kind in attention
    ]


def _joined(files, model):
    rate = model.hparams.sample_rate
    return torch.cat([read_audio(file, rate) for file in files]) if files else None


def _header(device, command):
    parts = [machine(device), f"commit {checkout()}"]
    if hasattr(os, "getloadavg"):
        parts.append(f"load {os.getloadavg()[0]:.1f} before")
    return "; ".join(parts) + (f"\n# {command}" if command else "")


def _check(seconds, left_chunks, streams, repetitions, budget, threads):
    if not seconds:
        raise UserError("--seconds is empty, but needs a length: give numbers such as 10 or 3600")
    rules = [("seconds", length, 0.01) for length in seconds]
    rules += [("streams", count, 1) for count in streams or ()]
    rules += [("repetitions", repetitions, 1), ("left-chunks", left_chunks, 1)]
    rules += [("threads", 1 if threads is None else threads, 1), ("budget", budget, 0)]
    for name, value, least in rules:
        if not least <= value < float("inf"):
            raise UserError(f"--{name} has {value:g}, but must be {least:g} or more: change it")
