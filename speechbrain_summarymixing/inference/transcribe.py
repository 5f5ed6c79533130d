"""Transcription of many files by an exported model."""

from dataclasses import dataclass
from pathlib import Path

import torch
from speechbrain.inference.ASR import EncoderDecoderASR
from speechbrain.utils.data_utils import batch_pad_right

from speechbrain_summarymixing.audio import audio_info, read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple


@dataclass(frozen=True)
class Transcript:
    """What became of one file: its text, or why there is none.

    Arguments
    ---------
    file : str
    seconds : float or None
        Duration of the audio.
    text : str or None
    error : str or None
    """

    file: str
    seconds: float | None = None
    text: str | None = None
    error: str | None = None


def load_model(folder, device=None):
    """Loads an exported model.

    Arguments
    ---------
    folder : str or Path
        As `inference.export.export` writes it.
    device : str or None
        Such as "cuda"; None takes the GPU where there is one.

    Returns
    -------
    speechbrain.inference.ASR.EncoderDecoderASR

    Raises
    ------
    UserError
        If the folder is not a model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder: give the folder 'pretrained' in the output folder of a "
            "training, or another exported model"
        )
    for name in ("hyperparams.yaml", "model.ckpt", "normalizer.ckpt", "tokenizer.ckpt"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: {name} is missing, so this is no exported model: give the folder "
                "'pretrained' in the output folder of a training"
            )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return EncoderDecoderASR.from_hparams(source=str(folder), run_opts={"device": device})


def transcribe(model, files, *, batch_seconds=120.0, batch_files=16):
    """Transcribes files in batches; a bad file spoils no other.

    Arguments
    ---------
    model : EncoderDecoderASR
        From `load_model`.
    files : iterable of str or Path
        Audio of any format, rate and number of channels that libsndfile reads.
    batch_seconds : float
        Padded audio in one batch, at most, in seconds; a longer file is a batch alone.
    batch_files : int
        Files in one batch, at most.

    Yields
    ------
    Transcript
        One for each file, in their order.
    """
    batch, longest = [], 0.0
    for file in map(str, files):
        seconds = _seconds(file)
        longest = max(longest, seconds)
        if batch and (longest * (len(batch) + 1) > batch_seconds or len(batch) == batch_files):
            yield from _transcribe_batch(model, batch)
            batch, longest = [], seconds
        batch.append(file)
    if batch:
        yield from _transcribe_batch(model, batch)


def _seconds(file):
    try:
        return audio_info(file).seconds
    except UserError:
        return 0.0  # reading it tells the error


def _transcribe_batch(model, files):
    """Yields the transcripts of files that are read and decoded together."""
    rate, waveforms, errors = model.hparams.sample_rate, {}, {}
    for file in files:
        try:
            waveforms[file] = read_audio(file, rate)
        except UserError as error:
            errors[file] = str(error)
    texts = {}
    if waveforms:
        whole = model.hparams.compute_features.samples
        wavs, lengths = batch_pad_right([pad_to_multiple(w, whole) for w in waveforms.values()])
        words, _ = model.transcribe_batch(wavs, lengths)
        texts = dict(zip(waveforms, words))
    for file in files:
        if file in errors:
            yield Transcript(file, error=errors[file])
        else:
            yield Transcript(file, waveforms[file].numel() / rate, texts[file])
