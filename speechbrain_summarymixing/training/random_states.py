"""Random states in checkpoints: a run that was killed goes on as if it had not been."""

import random

import numpy
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)


@register_checkpoint_hooks
class RandomStates:
    """The states of Python's, numpy's and torch's random numbers, on the CPU and all GPUs.

    A checkpointer's recoverable. What it has loaded amid an epoch counts from `restore` on, since
    to begin an epoch draws numbers.
    """

    _loaded = None

    @mark_as_saver
    def _save(self, path):
        kind, keys, *rest = numpy.random.get_state()  # noqa: NPY002 (SpeechBrain draws from it)
        states = {
            "python": random.getstate(),
            "numpy": (kind, keys.tolist(), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        torch.save(states, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        self._loaded = torch.load(path, map_location="cpu", weights_only=True)
        if end_of_epoch:
            self.restore()

    def restore(self):
        """Goes on with the random numbers of the checkpoint that was loaded, once."""
        if self._loaded is None:
            return
        states, self._loaded = self._loaded, None
        random.setstate(states["python"])
        numpy.random.set_state(states["numpy"])  # noqa: NPY002
        torch.set_rng_state(states["torch"])
        if len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
