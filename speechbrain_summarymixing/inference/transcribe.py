"""What exported models make of many audio files: words, meanings or classes."""

import json
from dataclasses import dataclass

import torch
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.utils.data_utils import batch_pad_right

from speechbrain_summarymixing.audio import audio_info, read_audio
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError, lacks_memory
from speechbrain_summarymixing.inference.sources import find_file
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple
from speechbrain_summarymixing.processes import check_device

OPTION = "MODEL"

# From a command to what its models' hyperparams.yaml alone has, their files, and their interface.
# EndToEndSLU would hold an understanding model's weights twice: it decodes as a recogniser does.
KINDS = {
    "understand": ("\nasr_model_source:", "tokenizer.ckpt", EncoderDecoderASR),
    "classify": ("\nlabel_encoder:", "label_encoder.ckpt", EncoderClassifier),
    "transcribe": ("", "tokenizer.ckpt", EncoderDecoderASR),
}


@dataclass(frozen=True)
class Answer:
    """What became of one file, or why there is nothing.

    Arguments
    ---------
    file : str
    seconds : float or None
        Duration of the audio.
    error : str or None
    """

    file: str
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Transcript(Answer):
    """What was said in a file, as ``text``."""

    text: str | None = None

    def line(self):
        """Returns it as a line."""
        return self.text


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


def load_model(source, device=None, *, command="transcribe"):
    """Loads an exported model.

    Arguments
    ---------
    source : str or Path
        A folder that `inference.export.export` wrote, or the hub name of one. Its YAML runs what it
        names: load only models that you trust.
    device : str or None
        Such as "cuda"; None takes the GPU where there is one.
    command : str
        What it is for: "transcribe", "understand" or "classify".

    Returns
    -------
    EncoderDecoderASR or EncoderClassifier
        SpeechBrain's interface.

    Raises
    ------
    UserError
        If it is not a model, or one for another command, or there is no such device.
    """
    text = find_file(source, "hyperparams.yaml", option=OPTION).read_text(encoding="utf-8")
    kind = next(name for name, (sign, _, _) in KINDS.items() if sign in text)
    _, spelling, interface = KINDS[kind]
    for name in ("model.ckpt", "normalizer.ckpt", spelling):
        find_file(source, name, option=OPTION)
    if kind != command:
        raise UserError(
            f"{OPTION} is {source}, which is not made to {command}: summarymixing {kind} uses it"
        )
    if device is not None:
        check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return interface.from_hparams(source=str(source), run_opts={"device": device})


def transcribe(model, files, **batches):
    """Transcribes files in batches; a bad file spoils no other.

    Arguments
    ---------
    model : EncoderDecoderASR
        From `load_model`.
    files : iterable of str or Path
        Audio of any format, rate and number of channels that libsndfile reads.
    **batches
        As for `in_batches`.

    Yields
    ------
    Transcript
        One for each file, in their order.
    """

    def answer(wavs, lengths):
        words, _ = model.transcribe_batch(wavs, lengths)
        return [{"text": text} for text in words]

    for result in in_batches(model, files, answer, **batches):
        yield Transcript(**result)


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
        One for each file, in their order; where the model wrote no semantics, its error tells what.
    """
    names = getattr(model.hparams, "label_names", None)  # old exports lack them
    for said in transcribe(model, files, **batches):
        known = {"file": said.file, "seconds": said.seconds, "error": said.error}
        if said.error is None:
            try:
                parse(said.text, names)
                known["semantics"] = json.loads(said.text)
            except ValueError as error:
                known["error"] = f"{said.file}: the model's output {said.text!r} {error}"
        yield Meaning(**known)


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

    def answer(wavs, lengths):
        with torch.no_grad():
            _, scores, _, labels = model.classify_batch(wavs, lengths)
        probabilities = scores.exp().tolist()
        return [{"label": a, "probability": b} for a, b in zip(labels, probabilities)]

    for result in in_batches(model, files, answer, **batches):
        yield Class(**result)


def in_batches(model, files, answer, *, batch_seconds=120.0, batch_files=16):
    """Reads files and asks a model about them in batches.

    Arguments
    ---------
    model : Pretrained
        From `load_model`.
    files : iterable of str or Path
    answer : callable
        From waveforms (B, T) and relative lengths (B,) to a dict for each.
    batch_seconds : float
        Padded audio in one batch, at most, in seconds; a longer file is a batch alone.
    batch_files : int
        Files in one batch, at most.

    Yields
    ------
    dict
        With file, and seconds and the answer, or error; one for each file, in their order.
    """
    batch, longest = [], 0.0
    for file in map(str, files):
        seconds = _seconds(file)
        longest = max(longest, seconds)
        if batch and (longest * (len(batch) + 1) > batch_seconds or len(batch) == batch_files):
            yield from _answer_batch(model, batch, answer)
            batch, longest = [], seconds
        batch.append(file)
    if batch:
        yield from _answer_batch(model, batch, answer)


def _seconds(file):
    try:
        return audio_info(file).seconds
    except UserError:
        return 0.0  # reading it tells the error


def _answer_batch(model, files, answer):
    """Yields what is known of files that are read and answered together."""
    rate, waveforms, errors = model.hparams.sample_rate, {}, {}
    for file in files:
        try:
            waveforms[file] = read_audio(file, rate)
        except UserError as error:
            errors[file] = str(error)
    answers = _answers(model, waveforms, answer, errors)
    for file in files:
        if file in errors:
            yield {"file": file, "error": errors[file]}
        else:
            yield {"file": file, "seconds": waveforms[file].numel() / rate, **answers[file]}


def _answers(model, waveforms, answer, errors):
    """The answer to each of some waveforms; ``errors`` gets what is too much for the memory."""
    if not waveforms:
        return {}
    whole = model.hparams.compute_features.samples
    try:
        padded = batch_pad_right([pad_to_multiple(w, whole) for w in waveforms.values()])
        return dict(zip(waveforms, answer(*padded)))
    except (MemoryError, RuntimeError) as error:  # the CPU's allocator has no kind of its own
        if not (isinstance(error, MemoryError) or lacks_memory(error)):
            raise
    if len(waveforms) == 1:
        (file, waveform), rate = *waveforms.items(), model.hparams.sample_rate
        errors[file] = (
            f"{file}: no memory for its {waveform.numel() / rate:.1f} s at once: cut it, or take "
            "a machine with more"
        )
        return {}
    answers = {}
    for file, waveform in waveforms.items():
        answers |= _answers(model, {file: waveform}, answer, errors)
    return answers
