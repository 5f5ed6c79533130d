"""Time, memory and state of streams against audio heard, beside SpeechBrain's attention.

A chunk is timed from its samples to its tokens: filterbank, front-end, encoder and greedy search.
States of streams that are long and short, of all systems, take turns in one process.
"""

import statistics
import time
from types import SimpleNamespace

import numpy
import torch
from speechbrain.lobes.models.transformer.Conformer import ConformerEncoder
from speechbrain.nnet.attention import RelPosEncXL
from torch import nn

from speechbrain_summarymixing.analysis.measuring import resident_mb, wall_and_cpu_seconds_of
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.lobes.conformer import MixerConformerEncoder
from speechbrain_summarymixing.nnet.streaming import state_bytes

COLUMNS = (
    *("system", "chunk_ms", "elapsed_s", "heard_s", "median_ms", "p99_ms", "cpu_ms"),
    *("real_time_factor", "over_shortest", "attention_over", "resident_MB", "state_bytes"),
    *("parameters", "repetitions"),
)
SECONDS = (10.0, 60.0, 600.0, 3600.0)
ATTENTION = ("RelPosMHAXL", "regularMHA")
WARM_UP = 2  # chunks


class AttentionStreams(nn.Module):
    """SpeechBrain's Conformer by its ``forward_streaming``, in the place of a `SummaryMixingASR`.

    Arguments
    ---------
    attention_type : str
        One of `ATTENTION`.
    input_size, d_model, num_layers, d_ffn, nhead, kernel_size : int
        As SpeechBrain's.
    """

    def __init__(
        self, attention_type, *, input_size, d_model, num_layers, d_ffn, nhead, kernel_size
    ):
        super().__init__()
        self.custom_src_module = nn.Linear(input_size, d_model)
        self.encoder = ConformerEncoder(
            num_layers,
            d_model,
            d_ffn,
            nhead,
            kernel_size=kernel_size,
            attention_type=attention_type,
        )
        self.positions = RelPosEncXL(d_model) if attention_type == "RelPosMHAXL" else None

    def initial_state(self, dynchunktrain_config, batch):
        """Returns the state of streams at their start: no frames."""
        return [(None, None)] * len(self.encoder.layers)

    def step(self, src, state, dynchunktrain_config, key_padding_mask=None):
        """Encodes the next chunk (B, T, …); returns (B, T, D) and the state, layer by layer."""
        context = self.encoder.make_streaming_context(dynchunktrain_config)
        for layer, (attended, convolved) in zip(context.layers, state):
            layer.mha_left_context, layer.dcconv_left_context = attended, convolved
        x, pos_embs = self.custom_src_module(src.flatten(2)), None
        if self.positions is not None:
            left = 0 if state[0][0] is None else state[0][0].size(1)
            pos_embs = self.positions(x.new_empty(1, left + x.size(1), 0))
        encoded, _ = self.encoder.forward_streaming(x, context, pos_embs)
        return encoded, [(at.mha_left_context, at.dcconv_left_context) for at in context.layers]


class StreamedSystem:
    """A system as it hears one stream.

    Arguments
    ---------
    name : str
        In tables.
    model : EncoderASR, EncoderDecoderASR or SimpleNamespace
        With ``hparams``, ``mods``, ``tokenizer`` and ``device``, as for `StreamingModel`.
    chunk_ms : int
    left_ms : int or None
        As for `StreamingModel`.
    is_attention : bool
        It is what others are compared with.

    Raises
    ------
    UserError
        If the system cannot be used for streams.
    """

    def __init__(self, name, model, *, chunk_ms, left_ms=None, is_attention=False):
        self.name, self.is_attention, self.chunk_ms = name, is_attention, chunk_ms
        try:
            self.model = StreamingModel(model, chunk_ms=chunk_ms, left_ms=left_ms)
        except UserError as error:
            raise UserError(
                f"{name}: {error}; for attention beside it give --attention, which is "
                "SpeechBrain's own Conformer"
            ) from error
        self.device = self.model.device
        encoder = self.model.encoder
        self.frames = torch.tensor([encoder.chunk_frames], device=self.device)
        windows = encoder.windows()
        self.samples = encoder.chunk_frames * encoder.frame_samples
        self.samples += windows.before + windows.after
        transformer = encoder.transformer
        parts = (encoder.front_end, transformer.custom_src_module, transformer.encoder)
        self.parameters = sum(p.numel() for part in parts for p in part.parameters())

    def start(self):
        """Returns the state of a stream before its first chunk."""
        return self.model.encoder.initial_state(1), self.model.search.start(1)

    def random_window(self):
        """Returns the samples (1, N) of a chunk: noise."""
        return 0.1 * torch.randn(1, self.samples, device=self.device)

    @torch.no_grad()
    def step(self, window, state):
        """Hears a chunk; returns the next state, and leaves ``state`` as it is."""
        encoder, search = state
        encoded, encoder = self.model.encoder.step(window, self.frames, encoder)
        _, search = self.model.search.step(encoded, search, self.frames)
        return encoder, search


def streamed(system, *, chunk_ms):
    """Returns the `StreamedSystem` of a `System` with random weights."""
    return StreamedSystem(system.name, _model(system.hparams, system.device), chunk_ms=chunk_ms)


def attention_beside(system, attention_type, *, chunk_ms, left_chunks):
    """Returns the `StreamedSystem` of SpeechBrain's Conformer with the widths of a `System`.

    Arguments
    ---------
    system : System
        A Conformer.
    attention_type : str
        One of `ATTENTION`; its heads are those of ``nhead``.
    chunk_ms : int
    left_chunks : int
        Chunks before its own that a frame sees.

    Raises
    ------
    UserError
        If the system is no Conformer.
    """
    if not isinstance(system.transformer.encoder, MixerConformerEncoder):
        raise UserError(
            f"--attention is {attention_type}, SpeechBrain's Conformer with the widths of the "
            f"first SYSTEM, but {system.path} is a {type(system.transformer.encoder).__name__}: "
            "give a Conformer first, such as hparams/conformer_streaming.yaml"
        )
    given = system.hparams
    transformer = AttentionStreams(
        attention_type,
        input_size=given["front_end_output"],
        d_model=given["d_model"],
        num_layers=given["num_encoder_layers"],
        d_ffn=given["encoder_d_ffn"] or given["d_ffn"],
        nhead=given["nhead"],
        kernel_size=given["kernel_size"],
    )
    model = _model({**given, "transformer": transformer}, system.device)
    return StreamedSystem(
        f"speechbrain_{attention_type}",
        model,
        chunk_ms=chunk_ms,
        left_ms=left_chunks * chunk_ms,
        is_attention=True,
    )


def _model(hparams, device):
    for value in hparams.values():
        if isinstance(value, nn.Module):
            value.to(device)
    normalize, bands = hparams["normalize"], hparams["n_mels"]
    normalize.glob_mean = torch.zeros(bands, device=device)
    normalize.glob_std = torch.ones(bands, device=device)
    mods = SimpleNamespace(decoder=hparams.get("greedy_search"))  # of a transducer
    hparams = SimpleNamespace(**{**hparams, "chunk_frames": True})  # else it would warn of words
    return SimpleNamespace(hparams=hparams, mods=mods, tokenizer=None, device=device)


def streaming_cost(systems, *, seconds=SECONDS, repetitions=100, budget=120.0):
    """Measures a chunk of each system after each length of audio.

    Arguments
    ---------
    systems : list of StreamedSystem
    seconds : sequence of float
        Audio that a stream has heard before.
    repetitions : int
        Timed chunks of each point; the points of all systems take turns.
    budget : float
        Seconds of CPU time in which a system hears; then the state that it has is taken for
        longer ones too, and the column ``heard_s`` tells what it has heard. The shortest length is
        always heard.

    Yields
    ------
    dict
        A row with the `COLUMNS`: the median and 99th percentile of a chunk's time in milliseconds,
        and the median of the process's CPU time; the median over the chunk's length; the median of
        the ratios of its times to those of the system's shortest length, and of the ratios of the
        first attention's times, after as much audio, to its own; the process's resident memory
        after hearing, in MB; the size of the state in bytes.
    """
    seconds = sorted(seconds)
    heard = {
        (system, length): found
        for system in systems
        for length, found in zip(seconds, hear(system, seconds, budget=budget))
    }
    times = interleaved({key: state for key, (_, state, _) in heard.items()}, repetitions)
    attention = next((system for system in systems if system.is_attention), None)
    for (system, length), (before, state, resident) in heard.items():
        walls, cpus = times[system, length]
        over_shortest, attention_over = median_ratio(walls, times[system, seconds[0]][0]), None
        if attention not in (None, system):
            attention_over = median_ratio(times[attention, length][0], walls)
        median, cpu = 1e3 * statistics.median(walls), 1e3 * statistics.median(cpus)
        values = (
            *(system.name, system.chunk_ms, length, before),
            *(median, 1e3 * float(numpy.percentile(walls, 99)), cpu, median / system.chunk_ms),
            *(over_shortest, attention_over, resident, state_bytes(state)),
            *(system.parameters, repetitions),
        )
        yield dict(zip(COLUMNS, values))


def hear(system, seconds, *, budget):
    """Hears noise, chunk after chunk.

    Arguments
    ---------
    system : StreamedSystem
    seconds : sequence of float
        Lengths of audio, the shortest first.
    budget : float
        Seconds of CPU time; the first length is always heard.

    Yields
    ------
    tuple
        For each length: seconds of audio that were heard, the state, resident memory in MB.
    """
    state, chunks, began = system.start(), 0, time.process_time()
    for length in seconds:
        while chunks * system.chunk_ms < 1000 * length:
            if length > seconds[0] and time.process_time() - began > budget:
                break
            state, chunks = system.step(system.random_window(), state), chunks + 1
        yield chunks * system.chunk_ms / 1000, state, resident_mb(system.device)


def interleaved(states, repetitions):
    """Times a chunk from each state in turn, there and back; the states stay as they are.

    Arguments
    ---------
    states : dict
        From (system, anything) to a state of that system.
    repetitions : int

    Returns
    -------
    dict
        From the same keys to the seconds of each repetition, and to those of the CPU.
    """
    times = {key: [] for key in states}
    for repetition in range(WARM_UP + repetitions):
        points = list(states.items())
        for key, state in points[:: -1 if repetition % 2 else 1]:
            system, window = key[0], key[0].random_window()
            took = wall_and_cpu_seconds_of(lambda: system.step(window, state), system.device)  # noqa: B023
            times[key].append(took)
    return {key: tuple(zip(*runs[WARM_UP:])) for key, runs in times.items()}


def median_ratio(one, other):
    """Returns the median of the ratios of two lists, which were measured in turn."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))
