"""From manifests to batches: tokenizer, datasets and loaders."""

import hashlib
import io
import json
import os
import signal
from pathlib import Path

import sentencepiece
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple


def train_tokenizer(texts, path, *, vocab_size, token_type="bpe"):
    """Trains a sentencepiece tokenizer, or loads the one already trained on the same text.

    Arguments
    ---------
    texts : list of str
        Training transcripts.
    path : str or Path
        Where the model lies; its settings stand beside it, as ``<path>.json``.
    vocab_size : int
        Number of tokens, with unknown 0 (also the CTC blank), begin 1 and end 2.
    token_type : str
        "bpe", "unigram" or "char".

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        If the text does not allow for so many, or so few, tokens.
    """
    path = Path(path)
    settings = {"vocab_size": vocab_size, "token_type": token_type, "texts": _digest(texts)}
    stamp = path.with_name(path.name + ".json")
    if not (path.is_file() and stamp.is_file() and json.loads(stamp.read_text()) == settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type=token_type,
                character_coverage=1.0,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"vocab_size is {vocab_size}, which these {len(texts)} training transcripts do not "
                f"allow ({str(error).splitlines()[0].split(') ')[-1]}): change --vocab_size, or "
                "take --token_type char"
            ) from error
        for file, content in ((path, model.getvalue()), (stamp, json.dumps(settings).encode())):
            temporary = file.with_name(file.name + ".new")
            temporary.write_bytes(content)
            os.replace(temporary, file)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def unspellable(texts):
    """Returns a function that says why a transcript cannot be written in the tokens, or None.

    Arguments
    ---------
    texts : list of str
        Training transcripts: every character in them has a token.
    """
    known = set().union(*texts)

    def reason(text):
        unknown = sorted(set(text) - known)
        return f"characters not in the training text: {' '.join(unknown)}" if unknown else None

    return reason


def make_dataset(utterances, tokenizer, *, sample_rate, whole_samples, augment=None):
    """Makes the dataset that reads, augments and spells utterances.

    Arguments
    ---------
    utterances : list of Utterance
        From `corpora.manifest.read_manifest`.
    tokenizer : sentencepiece.SentencePieceProcessor
    sample_rate : int
        In Hz; audio of another rate is resampled.
    whole_samples : int
        Waveforms are zero-padded to a multiple of this: one frame of the encoder.
    augment : callable or None
        From a waveform (1, T) to a waveform (1, T'); for training.

    Returns
    -------
    DynamicItemDataset
        With sig (T,), tokens, tokens_bos, tokens_eos and wrd.
    """

    def waveform_of(wav):
        waveform = read_audio(wav, sample_rate)
        if augment is not None:
            waveform = augment(waveform.unsqueeze(0)).squeeze(0)
        return pad_to_multiple(waveform, whole_samples)

    def spelling(wrd):
        tokens = tokenizer.encode(wrd)
        yield torch.LongTensor(tokens)
        yield torch.LongTensor([tokenizer.bos_id(), *tokens])
        yield torch.LongTensor([*tokens, tokenizer.eos_id()])

    rows = {u.ID: {"duration": u.duration, "wav": u.wav, "wrd": u.wrd} for u in utterances}
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(waveform_of, takes="wav", provides="sig")
    dataset.add_dynamic_item(spelling, takes="wrd", provides=["tokens", "tokens_bos", "tokens_eos"])
    dataset.set_output_keys(["id", "duration", "sig", "wrd", "tokens", "tokens_bos", "tokens_eos"])
    return dataset


def train_loader_options(dataset, *, batch_seconds, max_batch_size, num_buckets, seed, num_workers):
    """Options of a training loader: random batches of utterances of like length.

    Arguments
    ---------
    dataset : DynamicItemDataset
    batch_seconds : float
        Audio in one batch, at most, in seconds; a longer utterance is a batch alone.
    max_batch_size : int
        Utterances in one batch, at most.
    num_buckets : int
        Number of length classes.
    seed, num_workers : int

    Returns
    -------
    dict
    """
    sampler = DynamicBatchSampler(
        dataset,
        batch_seconds,
        num_buckets=num_buckets,
        length_func=lambda row: row["duration"],
        shuffle=True,
        batch_ordering="random",
        max_batch_ex=max_batch_size,
        seed=seed,
    )
    return {"batch_sampler": sampler, **worker_options(num_workers)}


def eval_loader_options(*, batch_size, num_workers):
    """Options of a loader for validation and test."""
    return {"batch_size": batch_size, **worker_options(num_workers)}


def worker_options(num_workers):
    """Workers leave Ctrl-C to the main process, which saves before it stops."""
    options = {"num_workers": num_workers, "collate_fn": PaddedBatch}
    if num_workers > 0:
        options["worker_init_fn"] = _ignore_interrupts
    return options


def _ignore_interrupts(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _digest(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
