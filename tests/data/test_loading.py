import os
from functools import partial

import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.data.augment import DrawnByUtterance
from speechbrain_summarymixing.data.loading import (
    Utterances,
    eval_loader_options,
    number_of_workers,
    train_loader_options,
    worker_options,
)
from speechbrain_summarymixing.data.tokens import SPELLED, spelled, train_tokenizer, unspellable
from speechbrain_summarymixing.errors import UserError

TEXTS = ["TURN ON THE LIGHT", "CALL MY SISTER", "SEVEN THIRTY", "DON'T STOP"] * 3


def test_tokenizer_has_its_special_tokens_and_is_trained_once(tmp_path):
    path = tmp_path / "tokenizer.model"
    tokenizer = train_tokenizer(TEXTS, path, vocab_size=40)
    assert tokenizer.vocab_size() == 40
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    made = path.stat().st_mtime_ns
    train_tokenizer(TEXTS[::-1], path, vocab_size=40)
    assert path.stat().st_mtime_ns == made
    assert train_tokenizer(TEXTS, path, vocab_size=35).vocab_size() == 35


def test_fewer_characters_than_tokens_asked_for_are_an_error(tmp_path):
    with pytest.raises(UserError, match="have 7 tokens of type char: give --vocab_size 7"):
        train_tokenizer(["ABC", "CAB A"], tmp_path / "t.model", vocab_size=30, token_type="char")
    with pytest.raises(UserError, match="vocab_size is 6, .* 7 tokens of type char: give --vocab_"):
        train_tokenizer(["ABC", "CAB A"], tmp_path / "t.model", vocab_size=6, token_type="char")
    assert not list(tmp_path.iterdir())
    tokenizer = train_tokenizer(["ABC", "CAB A"], tmp_path / "t", vocab_size=7, token_type="char")
    assert tokenizer.get_piece_size() == 7


@pytest.mark.parametrize("vocab_size", [5, 5000])
def test_vocabulary_that_does_not_fit_the_text_is_an_error(tmp_path, vocab_size):
    with pytest.raises(UserError, match=f"vocab_size is {vocab_size}.*change --vocab_size"):
        train_tokenizer(TEXTS, tmp_path / "t.model", vocab_size=vocab_size)
    assert not list(tmp_path.iterdir())


def test_unspellable_names_the_characters():
    reason = unspellable(TEXTS)
    assert reason("CALL SEVEN") is None
    assert reason("CALL 7 ÉTOILES") == "characters not in the training text: 7 É"


def test_names_of_special_tokens_cannot_be_spelled(tmp_path):
    reason = unspellable(TEXTS, train_tokenizer(TEXTS, tmp_path / "t.model", vocab_size=40))
    assert reason("CALL SEVEN") is None
    assert reason("CALL <unk>") == "characters not in the tokenizer: < > k n u"
    assert reason("CALL sunk") == "characters not in the tokenizer: k n s u"


@pytest.fixture
def utterances(tmp_path):
    rows = []
    for index in range(20):
        path = tmp_path / f"{index}.wav"
        seconds = 0.2 + 0.1 * index
        soundfile.write(path, torch.zeros(int(16000 * seconds)).numpy() + 0.01, 16000)
        rows.append(Utterance(f"u{index}", seconds, str(path), "s", TEXTS[index % 4]))
    return rows


def dataset(utterances, tmp_path, **options):
    tokenizer = train_tokenizer(TEXTS, tmp_path / "t" / "tokenizer.model", vocab_size=40)
    spell = partial(spelled, tokenizer=tokenizer)
    return Utterances(utterances, spell, SPELLED, sample_rate=16000, whole_samples=640, **options)


def test_dataset_pads_to_whole_frames_and_spells(utterances, tmp_path):
    item = dataset(utterances, tmp_path)[3]
    assert len(item["sig"]) == 8320  # 0.5 s are 8000 samples
    assert item["tokens_bos"].tolist() == [1, *item["tokens"].tolist()]
    assert item["tokens_eos"].tolist() == [*item["tokens"].tolist(), 2]


def test_augmentation_gets_a_batch_of_one(utterances, tmp_path):
    augment = DrawnByUtterance(lambda wav: wav[:, ::2], seed=1)
    half = dataset(utterances, tmp_path, augment=augment)
    assert len(half[3]["sig"]) == 4480


def test_random_batches_hold_each_utterance_once_and_respect_their_limits(utterances, tmp_path):
    data = dataset(utterances, tmp_path)
    options = train_loader_options(
        data, batch_seconds=4.0, max_batch_size=5, num_buckets=3, seed=1, num_workers=0
    )
    sampler = options["batch_sampler"]
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(20))
    assert all(len(batch) <= 5 for batch in batches)
    for batch in batches:
        longest = max(utterances[i].duration for i in batch)
        assert len(batch) == 1 or len(batch) * longest <= 4.0 + 1e-9


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_main_process_does_however_they_start(utterances, tmp_path, method):
    augment = DrawnByUtterance(torch.nn.Dropout(0.5), seed=1)
    data = dataset(utterances[:6], tmp_path, augment=augment)
    options = {"batch_size": 2, "multiprocessing_context": method, **worker_options(2)}
    loader = DataLoader(data, **options)
    for epoch in (1, 2):  # the same workers see the epoch
        augment.epoch.fill_(epoch)
        state = torch.get_rng_state()
        batches = list(loader)
        assert torch.get_rng_state().equal(state)  # or a run that goes on would draw once more
        for batch, own in zip(batches, DataLoader(data, batch_size=2, **worker_options(0))):
            assert batch.id == own.id
            assert batch.sig.data.equal(own.sig.data) and batch.tokens.data.equal(own.tokens.data)


@pytest.mark.parametrize("count", [0, 1, 7, 20])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_batches_that_one_evaluates(count, processes):
    shares = [
        eval_loader_options(
            range(count), batch_size=3, rank=rank, processes=processes, num_workers=0
        )["batch_sampler"]
        for rank in range(processes)
    ]
    (whole,) = [eval_loader_options(range(count), batch_size=3, num_workers=0)["batch_sampler"]]
    assert [index for batch in whole for index in batch] == list(range(count))
    assert all(len(batch) == 3 for batch in whole[:-1])
    assert sorted(batch for share in shares for batch in share) == whole
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_workers_by_default(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert number_of_workers(None, "cpu") == 0
    assert number_of_workers(None, "cuda:1") == 8
    assert number_of_workers(3, "cuda") == number_of_workers(3, "cpu") == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert number_of_workers(None, "cuda:1") == 2
    on_gpu, on_cpu = worker_options(None, "cuda:0"), worker_options(None, "cpu")
    assert on_gpu["pin_memory"] and on_gpu["persistent_workers"] and on_gpu["prefetch_factor"] == 4
    assert on_cpu.keys() == {"num_workers", "collate_fn"}
    for wrong in (-1, 1.5, "four", True):
        with pytest.raises(UserError, match="--num_workers is .*but must be 0 or more, or null"):
            number_of_workers(wrong, "cpu")
