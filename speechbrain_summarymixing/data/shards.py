"""Training on shards: tar files that are read from end to end, as `corpora.shards` writes them."""

import itertools
import json
import math
import random
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import WDS_AVAILABLE
from speechbrain.dataio.iterators import dynamic_bucketed_batch
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.corpora.checks import sensible
from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.corpora.shards import read_shard
from speechbrain_summarymixing.data import loading
from speechbrain_summarymixing.data.tokens import spelled
from speechbrain_summarymixing.errors import UserError

if WDS_AVAILABLE:
    import webdataset

logger = get_logger(__name__)

BATCHES_WAITING = 40  # so many times batch_seconds are held in memory, as they are compressed


@dataclass(frozen=True)
class Amount:
    """How much shards hold: numbers of shards and utterances, and seconds of audio."""

    shards: int
    utterances: int
    seconds: float


def unfit(utterance, *, spell=None):
    """Says why an utterance cannot be used, or None.

    Arguments
    ---------
    utterance : corpora.shards.ShardUtterance
    spell : callable or None
        Returns why a transcript cannot be written in the tokens, or None.
    """
    if not (math.isfinite(utterance.duration) and utterance.duration > 0):
        return f"{utterance}: {utterance.duration:g} s is no duration"
    if not utterance.wrd.strip():
        return f"{utterance}: empty transcript"
    if spell is not None and (reason := spell(utterance.wrd)):
        return f"{utterance}: cannot be spelled: {reason}"
    return None


def scan(urls, **limits):
    """Reads all transcripts and checks them in one report.

    Arguments
    ---------
    urls : list of str
    **limits
        As for `corpora.checks.sensible`: utterances outside are left out, and the log tells them.

    Returns
    -------
    tuple
        Transcripts (list of str), and the `Amount` that is trained on.

    Raises
    ------
    UserError
        If utterances cannot be used, or a folder of shards does not hold as many as it should.
    """
    utterances, problems, where = [], [], {}
    for url in urls:
        for utterance in read_shard(url, audio=False):
            if reason := unfit(utterance):
                problems.append(reason)
            if utterance.ID in where:
                problems.append(f"{utterance}: also in {where[utterance.ID]}")
            where[utterance.ID] = url
            utterances.append(utterance)
    if problems:
        raise UserError(
            listed(f"{len(problems)} utterances of the shards cannot be used", problems)
            + "\nmend them or leave them out, and write the shards anew"
        )
    told = _told(urls)
    if told is not None and told.shards == len(urls) and told.utterances != len(utterances):
        raise UserError(
            f"{Path(urls[0]).parent}: its shards hold {len(utterances)} utterances, but "
            f"{told.utterances} by shards.json: copy or write them anew"
        )
    kept, report = sensible(utterances, **limits)
    if not kept:
        raise UserError(f"nothing to train on: {report}")
    if report is not None:
        logger.warning(report)
    amount = Amount(len(urls), len(kept), sum(utterance.duration for utterance in kept))
    return [utterance.wrd for utterance in utterances], amount


def amount_beside(urls):
    """Returns the `Amount` that the shards.json beside local shards tells, or None.

    It is in proportion where the shards are only some of those.

    Arguments
    ---------
    urls : list of str
    """
    if (told := _told(urls)) is None:
        return None
    part = min(1.0, len(urls) / max(1, told.shards))
    return Amount(min(len(urls), told.shards), round(told.utterances * part), told.seconds * part)


def _told(urls):
    folders = {Path(url.removeprefix("file:")).parent for url in urls}
    try:
        told = [
            Amount(**json.loads((folder / "shards.json").read_text(encoding="utf-8")))
            for folder in folders
        ]
    except (OSError, ValueError, TypeError):
        return None
    return Amount(*(sum(part) for part in zip(*map(astuple, told))))


def epoch_steps(amount, *, batch_seconds, max_batch_size, processes=1):
    """Returns about how many batches of a process make one pass over all shards.

    Arguments
    ---------
    amount : Amount
    batch_seconds : float
        Audio in one batch, at most.
    max_batch_size : int
        Utterances in one batch, at most.
    processes : int
    """
    batches = max(amount.seconds / batch_seconds, amount.utterances / max_batch_size)
    return max(1, math.ceil(batches / processes))


class ShardReader:
    """Reads shards as an endless stream of random batches of utterances of like length.

    Each pass over the shards has them in another order, and each of its utterances is in one batch
    of one worker of one process. An utterance is decoded when its batch is complete.

    Arguments
    ---------
    urls : list of str
    tokenizer : sentencepiece.SentencePieceProcessor
    batch_seconds : float
        Audio in one batch, at most, in seconds; a longer utterance is a batch alone.
    max_batch_size : int
        Utterances in one batch, at most.
    num_buckets : int
        So many full batches wait, at most 40 in seconds, among which those of like length are
        sought.
    seed : int
    check : callable or None
        Returns why a `corpora.shards.ShardUtterance` cannot be used, or None.
    min_seconds, max_seconds : float
        Utterances that are shorter or longer are left out.
    rank, processes : int
        Of this process and of all.
    **reading
        As for `loading.waveform_of`.
    """

    def __init__(
        self,
        urls,
        tokenizer,
        *,
        batch_seconds,
        max_batch_size,
        num_buckets,
        seed,
        check=None,
        min_seconds=0.0,
        max_seconds=math.inf,
        rank=0,
        processes=1,
        **reading,
    ):
        self.urls, self.tokenizer, self.check, self.reading = urls, tokenizer, check, reading
        self.seed, self.rank, self.processes = seed, rank, processes
        self._shortest, self._longest = min_seconds, max_seconds
        self.steps_before = 0  # optimiser steps of a run that goes on: it hears another order
        self._passes, self._order = 0, ""
        self._random = random.Random()
        self._limits = {
            "target_batch_numel": batch_seconds,
            "max_batch_numel": batch_seconds,
            "max_batch_size": max_batch_size,
        }
        self._waiting = max(1, num_buckets * max_batch_size)
        self._waiting_seconds = min(num_buckets, BATCHES_WAITING) * batch_seconds

    def dataset(self, passes=-1):
        """Returns a webdataset.DataPipeline of so many passes, or of passes without end."""
        return webdataset.DataPipeline(self._shards, self._utterances, self._batches).repeat(passes)

    def _shards(self):
        self._order = order = f"{self.seed} {self.steps_before} {self._passes}"
        self._passes += 1
        worker = torch.utils.data.get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        share, shares = self.rank * workers + index, self.processes * workers
        urls = list(self.urls)
        random.Random(order).shuffle(urls)  # alike for all, who take turns
        self._random = random.Random(f"{order} {share}")
        return urls[share::shares]

    def _utterances(self, urls):
        empty = True
        for url in urls:
            for utterance in read_shard(url):
                if self.check is not None and (reason := self.check(utterance)):
                    raise UserError(f"{reason}: mend it, and write the shards anew")
                if self._shortest <= utterance.duration <= self._longest:
                    empty = False
                    yield utterance
        if empty:  # the stream would end
            raise UserError(
                f"{', '.join(urls)}: no utterance of {self._shortest:g} to {self._longest:g} s: "
                "leave such shards out, or change --min_seconds and --max_seconds"
            )

    def _batches(self, utterances):
        # SpeechBrain bounds what waits by number alone: here are as many as are so long
        utterances, first, seconds = iter(utterances), [], 0.0
        while seconds < self._waiting_seconds and len(first) < self._waiting:
            if (utterance := next(utterances, None)) is None:
                break
            first.append(utterance)
            seconds += utterance.duration
        return dynamic_bucketed_batch(
            itertools.chain(first, utterances),
            len_fn=lambda utterance: utterance.duration,
            buffersize=max(1, len(first)),
            collate_fn=lambda batch: PaddedBatch([self._item(utterance) for utterance in batch]),
            sampler_kwargs={**self._limits, "randint_generator": self._random.randint},
        )

    def _item(self, utterance):
        tokens, tokens_bos, tokens_eos = spelled(utterance.wrd, self.tokenizer)
        return {
            "id": utterance.ID,
            "duration": utterance.duration,
            "sig": loading.waveform_of(
                f"{self._order} {utterance.ID}",
                utterance.audio,
                name=str(utterance),
                **self.reading,
            ),
            "wrd": utterance.wrd,
            "tokens": tokens,
            "tokens_bos": tokens_bos,
            "tokens_eos": tokens_eos,
        }


def train_loader_options(urls, *, steps, num_workers, device="cpu", processes=1):
    """Options of a loader of `ShardReader`'s dataset.

    Arguments
    ---------
    urls : list of str
    steps : int
        Batches of a process that are called an epoch.
    num_workers, device
        As for `loading.worker_options`.
    processes : int

    Returns
    -------
    dict

    Raises
    ------
    UserError
        If there are fewer shards than readers.
    """
    workers = max(1, loading.number_of_workers(num_workers, device))
    readers = processes * workers
    if len(urls) < readers:
        raise UserError(
            f"{len(urls)} shards cannot be split among {processes} processes of "
            f"{workers} workers: lower --num_workers, or write smaller shards "
            "(summarymixing shard --shard-seconds)"
        )
    options = loading.worker_options(num_workers, device)
    del options["collate_fn"]  # the dataset's items are batches
    return {**options, "looped_nominal_epoch": steps}
