"""What exported models make of many audio files: words, meanings or classes."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from speechbrain.inference.ASR import EncoderASR, EncoderDecoderASR
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.fetching import FetchConfig

from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.inference.batches import in_batches
from speechbrain_summarymixing.inference.decoding import Decoder
from speechbrain_summarymixing.inference.onnx_graph import OPTION, find_graph
from speechbrain_summarymixing.inference.onnx_model import OnnxRecognizer
from speechbrain_summarymixing.inference.sources import check_files, find_file, hub, load_tokenizer
from speechbrain_summarymixing.inference.transcripts import Answer, recognise
from speechbrain_summarymixing.inference.trust import check_yaml
from speechbrain_summarymixing.processes import check_device

COMMAND_SECONDS = 30.0  # longest file that is one command to understand, as in training

# What the hyperparams.yaml of a kind of model alone has: its command, file and interface.
# EndToEndSLU would hold an understanding model's weights twice: it decodes as a recogniser does.
KINDS = {
    "\nasr_model_source:": ("understand", "tokenizer.ckpt", EncoderDecoderASR),
    "\nlabel_encoder:": ("classify", "label_encoder.ckpt", EncoderClassifier),
    "\ncode_lin:": ("train --encoder_folder", "quantizer.ckpt", None),
    "\ndecoding_function:": ("transcribe", "tokenizer.ckpt", EncoderASR),
    "": ("transcribe", "tokenizer.ckpt", EncoderDecoderASR),
}


@dataclass(frozen=True)
class Meaning(Answer):
    """What was meant in a file, as ``semantics``: labels and a list of entities."""

    semantics: dict | None = None

    def line(self):
        """Returns it as a line of JSON."""
        return json.dumps(self.semantics, ensure_ascii=False)


@dataclass(frozen=True)
class Class(Answer):
    """The most probable class of a file, as ``label``, and its ``probability``."""

    label: str | None = None
    probability: float | None = None

    def line(self):
        """Returns it as a line: the label, a tab and the probability."""
        return f"{self.label}\t{self.probability:.3f}"


def load_model(source, device=None, *, command="transcribe", trust=False):
    """Loads an exported model, of which no code is run that it brings or names.

    Arguments
    ---------
    source : str or Path
        A folder that `inference.export.export` wrote, or the hub name of one.
    device : str or None
        Such as "cuda"; None takes the GPU where there is one.
    command : str
        What it is for: "transcribe", "understand" or "classify".
    trust : bool
        Lets its YAML run whatever that names, as a mixer of your own (`trust.check_yaml`).

    Returns
    -------
    EncoderDecoderASR, EncoderASR or EncoderClassifier
        SpeechBrain's interface; EncoderASR is that of a recogniser without a decoder.

    Raises
    ------
    UserError
        If it is not a model, one for another command, one that would run code, or not as it was
        exported, or there is no such device.
    """
    file = find_file(source, "hyperparams.yaml", option=OPTION)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}: is no UTF-8 text (byte {error.start + 1}): copy it again"
        ) from error
    kind, spelling, interface = kind_of(text)
    files = {
        name: find_file(source, name, option=OPTION)
        for name in ("model.ckpt", "normalizer.ckpt", spelling)
    }
    if kind != command:
        raise UserError(
            f"{OPTION} is {source}, which is not made to {command}: summarymixing {kind} uses it"
        )
    check_files(source, {file.name: file, **files}, option=OPTION)
    if not trust:
        check_yaml(text, file)
    if device is not None:
        check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if interface is not EncoderClassifier:
        load_tokenizer(files[spelling])
    network = FetchConfig() if Path(source).is_dir() else hub()  # a folder asks no network
    try:
        model = interface.from_hparams(
            source=str(source), run_opts={"device": device}, fetch_config=network
        )
    except UserError:
        raise
    except Exception as error:  # of YAML, of what it builds, of torch
        raise UserError(
            f"{OPTION} is {source}, which cannot be loaded ({reason_of(error)}): copy its files "
            "again, or export the model anew"
        ) from error
    if interface is not EncoderClassifier:
        _check_tokens(model, files[spelling])
    return model


def kind_of(text):
    """Returns the command, file of spellings and interface of a model, of its hyperparams.yaml."""
    return next(found for sign, found in KINDS.items() if sign in text)


def load_recognizer(source, device=None, *, trust=False):
    """Loads a recogniser: an exported model, or its form in ONNX.

    Arguments
    ---------
    source : str or Path
        As for `load_model`; or a folder of ``summarymixing export``, or a graph there, as
        model.int8.onnx.
    device, trust
        As for `load_model`.

    Returns
    -------
    EncoderDecoderASR or EncoderASR

    Raises
    ------
    UserError
        As `load_model` and `OnnxRecognizer` do.
    """
    if (graph := find_graph(source)) is not None:
        return OnnxRecognizer(graph, device)
    return load_model(source, device, trust=trust)


def _check_tokens(model, file):
    """A model whose outputs are the tokens of another tokenizer would say other words."""
    outputs, known = model.hparams.ctc_lin.w.out_features, model.tokenizer.get_piece_size()
    if outputs != known:
        raise UserError(
            f"{file}: has {known} tokens, but the model's outputs are {outputs}: copy the "
            "tokenizer that it was trained with"
        )


def transcribe(
    model,
    files,
    *,
    segment_seconds=None,
    segments=None,
    decoder=None,
    beam_size=None,
    ngram=None,
    hotwords=None,
    hotword_weight=None,
    nbest=1,
    **batches,
):
    """Transcribes files in batches; a bad file spoils no other.

    Arguments
    ---------
    model : EncoderDecoderASR or EncoderASR
        From `load_recognizer`.
    files : iterable of str, Path or Utterance
        Audio of any format, rate and number of channels that libsndfile reads.
    segment_seconds : float or None
        A longer file is cut into segments of so many seconds at most, which are decoded by
        themselves. None takes the longest utterance that the model was trained on, or
        20 s if that is less, since it may be lost in longer ones.
    segments : str or None
        Where a longer file is cut, and what is left out: "pauses", by loudness; "vad", by
        silero-vad's network; "windows": nowhere, but segments overlap, and their words are merged.
        None: "pauses".
    decoder, beam_size, ngram, hotwords, hotword_weight, nbest
        As for `Search`, where decoder is its name.
    **batches
        As for `in_batches`.

    Returns
    -------
    iterator of Transcript
        One for each file, in their order.

    Raises
    ------
    UserError
        If an option cannot be, or "vad" needs what is not installed.
    """
    search = {"beam_size": beam_size, "ngram": ngram, "hotwords": hotwords}
    decode = Decoder(model, decoder, **search, hotword_weight=hotword_weight, nbest=nbest)
    options = {"segment_seconds": segment_seconds, "segments": segments, "nbest": nbest}
    return recognise(model, files, _of_tensors(decode), **options, **batches)


def _of_tensors(answer):
    """Lets `in_batches` ask what takes tensors."""
    return lambda wavs, lengths: answer(torch.from_numpy(wavs), torch.from_numpy(lengths))


def understand(model, files, **batches):
    """Understands files in batches; a bad file spoils no other.

    Arguments
    ---------
    model : EncoderDecoderASR
        From `load_model` for "understand".
    files, **batches
        As for `transcribe`.

    Yields
    ------
    Meaning
        One for each file, in their order; where the model wrote no semantics, or the file is longer
        than COMMAND_SECONDS, its error tells what.
    """
    names = getattr(model.hparams, "label_names", None)  # old exports lack them

    @_of_tensors
    def answer(wavs, lengths):
        with torch.no_grad():
            lengths = lengths.to(model.device)
            hypotheses, *_ = model.mods.decoder(model.encode_batch(wavs, lengths), lengths)
        return [model.tokenizer.decode_ids(list(map(int, tokens))) for tokens in hypotheses]

    for result in in_batches(model, files, answer, segment_seconds=COMMAND_SECONDS, **batches):
        if (answers := result.pop("answers", None)) is not None:
            try:
                texts = [text for *_, text in answers]
                result["semantics"] = _semantics(texts, result["seconds"], names)
            except ValueError as error:
                result["error"] = f"{result['file']}: {error}"
        yield Meaning(**result)


def _semantics(texts, seconds, names):
    if seconds > COMMAND_SECONDS:
        raise ValueError(
            f"holds {seconds:.1f} s, and a command is {COMMAND_SECONDS:.0f} s at most: cut it into "
            "its commands"
        )
    if not texts:
        raise ValueError("has no speech")
    (text,) = texts
    try:
        parse(text, names)
    except ValueError as error:
        raise ValueError(f"the model's output {text!r} {error}") from error
    return json.loads(text)


def classify(model, files, **batches):
    """Classifies files in batches; a bad file spoils no other.

    Arguments
    ---------
    model : EncoderClassifier
        From `load_model` for "classify".
    files, **batches
        As for `transcribe`.

    Yields
    ------
    Class
        One for each file, in their order.
    """

    @_of_tensors
    def answer(wavs, lengths):
        with torch.no_grad():
            _, scores, _, labels = model.classify_batch(wavs, lengths)
        probabilities = scores.exp().tolist()
        return [{"label": a, "probability": b} for a, b in zip(labels, probabilities)]

    for result in in_batches(model, files, answer, only_speech=False, **batches):
        ((*_, found),) = result.pop("answers", ((0.0, 0.0, {}),))
        yield Class(**result, **found)
