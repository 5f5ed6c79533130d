"""Time of whole beam searches with an exported model, beside SpeechBrain's own search, in turn."""

import csv
import os
import statistics
import sys

import torch

from speechbrain_summarymixing.analysis.decoding_cost import SpeechBrainSearch
from speechbrain_summarymixing.analysis.measuring import machine, seconds_of
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.transcribe import load_model
from speechbrain_summarymixing.lobes.search import SteppingBeamSearcher

COLUMNS = (
    *("seconds", "tokens", "search_s", "speechbrain_s", "ratio", "same_tokens"),
    *("score_difference", "repetitions"),
)


def benchmark_search(
    source, files, *, seconds=(3.0, 15.0, 60.0), repetitions=3, device="cpu", trust=False
):
    """Measures a model's searches over the speech of files and prints the table as CSV.

    Arguments
    ---------
    source : str or Path
        An exported model's folder, or its name on the hub.
    files : sequence of str or Path
        Speech, which is joined, and repeated where it is too short.
    seconds : sequence of float
        Lengths of the audio.
    repetitions : int
        Timed searches of each kind, after a warm-up; they take turns.
    device : str
        "cpu" or "cuda".
    trust : bool
        As for `load_model`.

    Returns
    -------
    list of dict
        The table's rows, with the `COLUMNS`: medians of the seconds that the search and
        SpeechBrain's take without the encoder, how many times SpeechBrain's takes, whether both
        find the same tokens, and how far their scores are apart.

    Raises
    ------
    UserError
        If the model or a file cannot be used, or a number is out of range.
    """
    rules = [("seconds", value, 0.04) for value in seconds] + [("repetitions", repetitions, 1)]
    for name, value, least in rules:
        if not least <= value < float("inf"):
            raise UserError(f"--{name} has {value:g}, but must be {least:g} or more: change it")
    model = load_model(source, device, trust=trust)
    search = getattr(model.mods, "decoder", None)
    if not isinstance(search, SteppingBeamSearcher):
        raise UserError(
            f"MODEL is {source}, which has no beam search over a Transformer decoder (its decoder "
            f"is {type(search).__name__}), but its searches are to be timed: give one that has"
        )
    rate = int(model.hparams.sample_rate)
    speech = torch.cat([read_audio(file, rate) for file in files])
    theirs, rows = SpeechBrainSearch(search).to(device), []
    with torch.no_grad():
        for length in sorted(set(seconds)):
            samples = round(length * rate)
            wavs = speech.repeat(samples // len(speech) + 1)[None, :samples]
            whole = torch.ones(1, device=device)
            encoded = model.encode_batch(wavs, whole)
            if not rows:
                print(
                    f"# {machine(device)}, load {os.getloadavg()[0]:.1f}; beam {search.beam_size}"
                )
                print(",".join(COLUMNS), flush=True)
                search(encoded[:, :25], whole)  # warms up
                theirs(encoded[:, :25], whole)
            row = _compared(search, theirs, (encoded, whole), repetitions, device)
            rows.append(dict(zip(COLUMNS, (length, *row, repetitions))))
            values = (f"{v:.4g}" if isinstance(v, float) else v for v in rows[-1].values())
            csv.writer(sys.stdout, lineterminator="\n").writerow(values)
            sys.stdout.flush()
    return rows


def _compared(search, theirs, speech, repetitions, device):
    """The table's figures of one length."""
    times, found = {search: [], theirs: []}, {}
    for _ in range(repetitions):
        for searcher, runs in times.items():

            def run(searcher=searcher):
                found[searcher] = searcher(*speech)

            runs.append(seconds_of(run, device))
    ours, other = (statistics.median(runs) for runs in times.values())
    tokens, expected = found[search][0][0], found[theirs][0][0]
    difference = (found[search][2] - found[theirs][2]).abs().item()
    return len(tokens), ours, other, other / ours, tokens == expected, difference
