"""Dynamic chunks: those that training draws and those that tests are measured with.

Reference: arXiv 2012.05481; with SummaryMixing arXiv 2409.07165.
"""

import speechbrain as sb
import torch
from speechbrain.utils.dynamic_chunk_training import (
    DynChunkTrainConfig,
    DynChunkTrainConfigRandomSampler,
)

from speechbrain_summarymixing.data.augment import drawn_from
from speechbrain_summarymixing.errors import UserError

TOLD = ("chunk_frames", "left_chunks", "test_chunks")  # to those who use the model, as keys


def check_chunks(hparams):
    """Makes sure, before anything is trained, that chunks can be what they are asked to be.

    Arguments
    ---------
    hparams : dict
        With the keys of ``hparams/parts/asr.yaml``.

    Raises
    ------
    UserError
        If a value is wrong, or the encoder always sees the whole utterance.
    """
    tested = tested_chunks(hparams)
    if chunk_sampler(hparams) is None and not tested:
        return
    transformer = hparams["transformer"].eval()
    try:
        with torch.no_grad():
            frames = torch.zeros(1, 2, hparams["front_end_output"])
            transformer.encode(frames, dynchunktrain_config=DynChunkTrainConfig(1, 1))
    except ValueError as error:
        key = "test_chunks" if hparams["chunk_frames"] is None else "chunk_frames"
        raise UserError(
            f"--{key} is {hparams[key]}, but this system's encoder takes no chunks ({error}): "
            f"leave --{key} null, or take another system, such as sumformer_streaming"
        ) from error
    finally:
        transformer.train()


def chunk_sampler(hparams):
    """Returns what draws chunks for training, or None: each batch sees all of its speech.

    Arguments, and what is raised for a wrong value, are those of `check_chunks`.

    Returns
    -------
    DynChunkTrainConfigRandomSampler or None
        SpeechBrain's.
    """
    for key in ("chunk_probability", "left_chunks_probability"):
        if not 0 <= hparams[key] <= 1:
            raise UserError(f"--{key} is {hparams[key]}, but must be 0 to 1")
    frames, left = _bounds(hparams, "chunk_frames", 1), _bounds(hparams, "left_chunks", 0)
    if frames is None:
        return None
    fewest, most = left or (0, 0)
    return DynChunkTrainConfigRandomSampler(
        chunkwise_prob=hparams["chunk_probability"],
        chunk_size_min=frames[0],
        chunk_size_max=frames[1],
        limited_left_context_prob=0.0 if left is None else hparams["left_chunks_probability"],
        left_context_chunks_min=fewest,
        left_context_chunks_max=most,
    )


def drawn_chunks(hparams, epoch, ids):
    """Returns the chunks of a training batch, which the seed, the epoch and its IDs decide.

    Arguments
    ---------
    hparams : dict
    epoch : int
    ids : sequence of str

    Returns
    -------
    DynChunkTrainConfig or None
        None: all of the speech.
    """
    sampler = chunk_sampler(hparams)
    if sampler is None:
        return None
    with drawn_from("chunks", hparams["seed"], epoch, *ids):
        return sampler(sb.Stage.TRAIN)


def tested_chunks(hparams):
    """Returns the chunks that each test set is measured with, beside all of its speech.

    Arguments, and what is raised for a wrong value, are those of `check_chunks`.

    Returns
    -------
    list of DynChunkTrainConfig
    """
    pairs = hparams["test_chunks"]
    if pairs is None:
        return []
    if not isinstance(pairs, list) or not all(map(_is_chunking, pairs)):
        raise UserError(
            f"--test_chunks is {pairs!r}, but must be a list of [frames of a chunk, chunks before "
            "it], where null is all of the past, such as [[16, null], [16, 4]], or null"
        )
    return [DynChunkTrainConfig(*pair) for pair in pairs]


def duration_of(chunks, frame_ms):
    """Returns what results tell of chunks: ``chunk_ms``, and ``left_ms``, None for all the past."""
    left = chunks.left_context_size_frames()
    return {
        "chunk_ms": round(chunks.chunk_size * frame_ms),
        "left_ms": None if left is None else round(left * frame_ms),
    }


def _bounds(hparams, key, least):
    """Two whole numbers, the lower one first, or None."""
    value = hparams[key]
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(_is_whole, value)):
        raise UserError(
            f"--{key} is {value!r}, but must be two whole numbers, such as [8, 32], or null"
        )
    if not least <= value[0] <= value[1]:
        raise UserError(
            f"--{key} is {value!r}, but must be two numbers from {least} on, the lower one first"
        )
    return value


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_chunking(pair):
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not _is_whole(pair[0]):
        return False
    return pair[0] > 0 and (pair[1] is None or (_is_whole(pair[1]) and pair[1] >= 0))
