"""Time of one step of the beam search against the length of the prefix, systems side by side.

Each system's search that steps stands beside SpeechBrain's own, which decodes the whole prefix.
A step is the decoder's work for the newest token of every beam: what the search's memory does, the
decoder with its cross-attention, the output layer, and the memory's permutation; no scorer. With a
prefix of one token it includes the projection of the encoder's output.
"""

import csv
import statistics
import sys

import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder

from speechbrain_summarymixing.analysis.measuring import check_device, machine, seconds_of
from speechbrain_summarymixing.analysis.systems import FRAMES_PER_SECOND, load_systems
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.lobes.search import BoundedByOwnLength, SteppingBeamSearcher

COLUMNS = ("system", "search", "prefix", "frames", "step_ms", "low_ms", "high_ms", "repetitions")
STEPS = (10, 50, 100, 200, 400)


class SpeechBrainSearch(BoundedByOwnLength, S2STransformerBeamSearcher):
    """SpeechBrain's search, which decodes whole prefixes and loops over CTC's frames.

    Arguments
    ---------
    search : SteppingBeamSearcher
        Whose model, settings and CTC head it takes; a language model is left out.
    """

    def __init__(self, search):
        scorer = None
        if search.scorer is not None and "ctc" in search.scorer.full_scorers:
            ctc = search.scorer.full_scorers["ctc"]
            theirs = CTCScorer(ctc.ctc_fc, ctc.blank_index, ctc.eos_index)
            weights = {"ctc": search.scorer.weights["ctc"]}
            scorer = ScorerBuilder(weights=weights, full_scorers=[theirs])
        settings = (
            *("bos_index", "eos_index", "min_decode_ratio", "max_decode_ratio", "beam_size"),
            *("using_eos_threshold", "eos_threshold", "length_normalization", "temperature"),
        )
        options = {name: getattr(search, name) for name in settings}
        super().__init__(modules=[search.model, search.fc], scorer=scorer, **options)
        self.eval()


class Decoding:
    """A system's beam search over random speech.

    Arguments
    ---------
    system : System
        With a beam search over a Transformer decoder.
    seconds : float
        Length of the one utterance.
    beam : int
        Hypotheses N.
    whole_prefixes : bool
        The search is SpeechBrain's own.

    Raises
    ------
    UserError
        If the system has no such search.
    """

    def __init__(self, system, *, seconds=10.0, beam=10, whole_prefixes=False):
        self.name, self.device, self.searcher = system.name, system.device, system.searcher
        self.search = "whole prefixes" if whole_prefixes else "steps"
        self.decoder = getattr(system.transformer, "decoder", None)
        if not isinstance(self.searcher, SteppingBeamSearcher) or self.decoder is None:
            raise UserError(
                f"{system.path} has no beam search over a Transformer decoder (test_search is "
                f"{type(self.searcher).__name__}, num_decoder_layers may be 0), but its steps are "
                "to be timed: give a system with one, such as hparams/sumformer.yaml"
            )
        if whole_prefixes:
            self.searcher = SpeechBrainSearch(self.searcher)
        self.searcher.to(system.device).eval()
        self.searcher.beam_size = beam
        with torch.no_grad():
            encoded = system.transformer.encode(system.random_input(seconds))
        self.encoded = encoded.repeat_interleave(beam, 0)  # (N, T, D)
        self.lengths = torch.full((beam,), encoded.size(1), device=system.device)
        self.order = torch.arange(beam, device=system.device)

    @torch.no_grad()
    def go_to(self, prefix):
        """Goes to the step whose prefix has ``prefix`` random tokens, the newest included."""
        shape, vocabulary = (len(self.order), prefix), self.searcher.set_n_out()
        tokens = torch.randint(vocabulary, shape, device=self.device)
        self.memory, self.token = None, tokens[:, -1]
        if self.search == "steps":
            for token in tokens[:, :-1].T:
                self.memory = self._forward(token)
        elif prefix > 1:
            self.memory = tokens[:, :-1]  # the prefix itself

    @torch.no_grad()
    def step(self):
        """Does the step, and stays where it is."""
        self.searcher.permute_mem(self._forward(self.token), self.order)

    def frames(self):
        """Returns how many frames of each hypothesis pass through the decoder in the step."""
        seen = []
        hook = self.decoder.layers[0].register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].size(1))
        )
        self.step()
        hook.remove()
        return sum(seen)

    def _forward(self, token):
        return self.searcher.forward_step(token, self.memory, self.encoded, self.lengths)[1]


def decoding_cost(systems, *, steps=STEPS, seconds=10.0, beam=10, repetitions=5):
    """Times the step of each system's searches at each length of the prefix, in turn.

    Arguments
    ---------
    systems : list of System
    steps : sequence of int
        Tokens of the prefix, the newest included.
    seconds : float
        Length of the one utterance, of random speech.
    beam : int
    repetitions : int
        Timed steps at each point, after a warm-up; the systems take turns.

    Yields
    ------
    dict
        A row with the `COLUMNS`: the decoder's frames of a hypothesis; median, least and most
        milliseconds.

    Raises
    ------
    UserError
        If a system has no beam search over a Transformer decoder.
    """
    decodings = [
        Decoding(system, seconds=seconds, beam=beam, whole_prefixes=whole)
        for system in systems
        for whole in (True, False)
    ]
    for prefix in steps:
        times = {}
        for decoding in decodings:
            decoding.go_to(prefix)
            times[decoding] = []
        for _ in range(1 + repetitions):
            for decoding, runs in times.items():
                runs.append(1e3 * seconds_of(decoding.step, decoding.device))
        for decoding, runs in times.items():
            del runs[0]  # the warm-up
            figures = (statistics.median(runs), min(runs), max(runs), repetitions)
            about = (decoding.name, decoding.search, prefix, decoding.frames())
            yield dict(zip(COLUMNS, (*about, *figures)))


def benchmark_decoding(
    paths, *, settings=(), steps=STEPS, seconds=10.0, beam=10, repetitions=5, device="cpu"
):
    """Measures the steps of systems and prints the table as CSV.

    Arguments
    ---------
    paths : sequence of str or Path
        Hyperparameter files, as ``train.py`` takes them.
    settings : sequence of str
        Options ``key=value`` over those of every file.
    steps, seconds, beam, repetitions
        As in `decoding_cost`.
    device : str
        "cpu" or "cuda".

    Returns
    -------
    list of dict
        The table's rows.

    Raises
    ------
    UserError
        If there is no system, one cannot be loaded or has no beam search over a Transformer
        decoder, or a number is out of range.
    """
    rules = [("steps", prefix, 1) for prefix in steps]
    rules += [("seconds", seconds, 1 / FRAMES_PER_SECOND)]
    rules += [("beam", beam, 1), ("repetitions", repetitions, 1)]
    for name, value, least in rules:
        if not least <= value < float("inf"):
            raise UserError(f"--{name} has {value:g}, but must be {least:g} or more: change it")
    check_device(device)
    systems = load_systems(paths, settings=settings, device=device)
    costs = decoding_cost(
        systems, steps=sorted(set(steps)), seconds=seconds, beam=beam, repetitions=repetitions
    )
    header = f"# {machine(device)}; decoder without scorers, beam {beam}, {seconds:g} s of audio"
    rows = []
    for row in costs:
        if not rows:
            print("; ".join([header, *settings]), ",".join(COLUMNS), sep="\n", flush=True)
        values = (f"{v:.3f}" if isinstance(v, float) else v for v in row.values())
        csv.writer(sys.stdout, lineterminator="\n").writerow(values)
        sys.stdout.flush()
        rows.append(row)
    return rows
