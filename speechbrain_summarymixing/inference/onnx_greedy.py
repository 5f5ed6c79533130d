"""Exports in ONNX as recognisers of whole files by CTC's best tokens, without torch.

Torch and SpeechBrain take seconds to import; by a graph the first words are there before. B is the
batch, T the frames of the encoder, V the number of tokens.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy

from speechbrain_summarymixing.inference.confidence import Span
from speechbrain_summarymixing.inference.onnx_graph import (
    CTC,
    FEATURES,
    HOP_SAMPLES,
    SUBSAMPLING,
    TOKENS,
    Graph,
    Tokens,
    find_graph,
    number_of,
)
from speechbrain_summarymixing.inference.transcripts import CONTROLS, Hypothesis, recognise

DEVICES = (None, "cpu")
# of `transcribe`; by another option its searches and networks are needed
OPTIONS = {"segment_seconds", "segments", "batch_seconds", "decoder", "nbest"}
SEARCHES = (None, "greedy")
WAYS = (None, "pauses", "windows")


def without_torch(source, device=None, **options):
    """Returns the `OnnxGreedy` that does what is asked for, or None where torch is needed for it.

    Arguments
    ---------
    source, device
        As for `transcribe.load_recognizer`.
    **options
        As for `transcribe.transcribe`.

    Raises
    ------
    UserError
        As `OnnxGreedy` does.
    """
    graph = find_graph(source)
    if graph is None or not graph.name.startswith(CTC) or device not in DEVICES:
        return None
    if not (set(options) <= OPTIONS and options.get("nbest", 1) == 1):
        return None
    if options.get("decoder") not in SEARCHES or options.get("segments") not in WAYS:
        return None
    try:
        import kaldi_native_fbank  # noqa: F401
    except ImportError:
        return None
    return OnnxGreedy(graph)


class OnnxGreedy:
    """A recogniser of whole files by CTC's best tokens, whose network onnxruntime computes.

    Its transcripts are those of `OnnxRecognizer` by ``decoder="greedy"``; kaldi-native-fbank
    computes the features.

    Arguments
    ---------
    graph : str or Path
        As from `find_graph`, of CTC; what is beside it belongs to it.

    Raises
    ------
    UserError
        If onnxruntime or a file is missing, or a file is damaged or not as it was exported.

    Example
    -------
    >>> model = OnnxGreedy("FOLDER/model.onnx")  # doctest: +SKIP
    >>> [transcript.text for transcript in model.transcribe(["speech.wav"])]  # doctest: +SKIP
    ['SET AN ALARM']
    """

    device = "cpu"

    def __init__(self, graph):
        graph = Path(graph)
        self._graph = Graph(graph).check("x", "x_lens")
        self.tokenizer = Tokens(graph.with_name(TOKENS)).check(self._graph)
        self.hparams = SimpleNamespace(
            sample_rate=FEATURES["sample_rate"],
            compute_features=SimpleNamespace(samples=SUBSAMPLING * HOP_SAMPLES),
        )
        about = self._graph.metadata
        if "segment_seconds" in about:
            self.hparams.segment_seconds = number_of(about, "segment_seconds", graph)

    def transcribe(self, files, *, decoder=None, **options):
        """Transcribes files, as `transcripts.recognise`.

        Arguments
        ---------
        files : iterable of str, Path or Utterance
        decoder : str or None
            "greedy", which None is too.
        **options
            Of `transcripts.recognise`.

        Returns
        -------
        iterator of Transcript
            One for each file, in their order.
        """
        if decoder not in SEARCHES:
            raise ValueError(f"decoder is {decoder!r}, but must be one of {SEARCHES}")
        return recognise(self, files, self.decode, **options)

    def decode(self, wavs, lengths):
        """Decodes waveforms (B, samples) of whole frames and relative lengths (B,).

        Returns
        -------
        list of list of Hypothesis
            Of each waveform one.
        """
        samples = (lengths * wavs.shape[1]).round().astype(int)
        rows = [features(wav[:count]) for wav, count in zip(wavs, samples)]
        frames = numpy.array([len(row) for row in rows])
        x = numpy.zeros((len(rows), frames.max(), FEATURES["n_mels"]), numpy.float32)
        for place, row in zip(x, rows):
            place[: len(row)] = row
        log_probs, counts = self._graph.encode(x, frames)  # (B, T, V), (B,)
        return [[best(row[:count])] for row, count in zip(log_probs, counts)]


def features(samples):
    """Returns Kaldi's filterbank (frames, 80), `FEATURES`, of samples (N,) in [-1, 1]."""
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = FEATURES["sample_rate"]
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = FEATURES["n_mels"]
    options.mel_opts.low_freq = FEATURES["low_freq"]
    options.mel_opts.high_freq = FEATURES["high_freq"]
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(FEATURES["sample_rate"], samples.tolist())
    fbank.input_finished()
    return numpy.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def best(log_probs):
    """Returns the `Hypothesis` of the best token of each frame, whose frames are its alignment.

    Arguments
    ---------
    log_probs : numpy.ndarray
        (T, V), of CTC.

    Example
    -------
    >>> best(numpy.log([[0.1, 0.1, 0.1, 0.7], [0.9, 0.1, 0.1, 0.1]])).tokens
    [3]
    """
    path, said = log_probs.argmax(1), numpy.exp(log_probs.max(1))  # (T,)
    starts = numpy.flatnonzero(numpy.diff(path, prepend=-1))
    runs = zip(path[starts].tolist(), starts.tolist(), [*starts[1:].tolist(), len(path)])
    spoken = [run for run in runs if run[0] not in CONTROLS]
    spans = [Span(start, stop, float(said[start:stop].mean())) for _, start, stop in spoken]
    return Hypothesis([token for token, *_ in spoken], None, spans)
