"""Masks of frames, drawn where batches are made."""

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.lobes.models.BESTRQ import compute_mask

from speechbrain_summarymixing.data.augment import drawn_from


class MaskedBatches:
    """Makes batches with ``mask`` (B, T), True on frames of the encoder that are to be masked.

    SpeechBrain's `compute_mask` draws it for each utterance, by the seed, the epoch and its ID: of
    the frames of its own length, not of those of the shortest in the batch. An utterance shorter
    than a mask has none. Workers may be spawned with it.

    Arguments
    ---------
    probability : float
        Of a feature frame to begin a mask, as `compute_mask` has it.
    length : int
        Feature frames of a mask, a multiple of ``stride``.
    stride : int
        Feature frames in one of the encoder.
    samples : int
        Of the waveform in a frame of the encoder.
    seed : int
    """

    def __init__(self, *, probability, length, stride, samples, seed):
        self.probability, self.length, self.stride = probability, length, stride
        self.samples, self.seed = samples, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by all workers

    def __call__(self, examples):
        """Returns SpeechBrain's `PaddedBatch` of dicts with id, sig (samples,) and more."""
        return PaddedBatch([{**one, "mask": self.mask(one["id"], one["sig"])} for one in examples])

    def mask(self, key, waveform):
        """Returns the mask (T,), bool, of the utterance with the ID ``key``."""
        frames = waveform.size(0) // self.samples  # `waveform_of` makes them whole ones
        mask = torch.zeros(frames, dtype=torch.bool)
        features = frames * self.stride
        if features >= self.length:
            with drawn_from("mask", self.seed, int(self.epoch), key):
                shape = (1, features, 1)
                index = compute_mask(shape, [features], self.probability, self.length)
            mask[index // self.stride] = True
        return mask
