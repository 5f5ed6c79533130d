"""What all tests share."""

import functools
import os
from pathlib import Path

import hypothesis
import pytest
import speechbrain.utils.logger
import torch
from speechbrain.utils.importutils import LazyModule
from tiny import changed_csv, command, corrupt, meanings, noises, train  # noqa: F401 (fixtures)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# hypothesis asks each loaded module for __file__; SpeechBrain's lazy ones would import k2 and fail
_import_on_access = LazyModule.__getattr__


def _file_is_not_worth_an_import(self, name):
    if name == "__file__":
        raise AttributeError(name)
    return _import_on_access(self, name)


LazyModule.__getattr__ = _file_is_not_worth_an_import

# each start of a training asks pip, which takes seconds, and nothing is installed in between
speechbrain.utils.logger.get_environment_description = functools.cache(
    speechbrain.utils.logger.get_environment_description
)

# how fast an example runs is a property of the machine
hypothesis.settings.register_profile("without deadline", deadline=None)
hypothesis.settings.load_profile("without deadline")


@pytest.fixture(scope="session")
def speech_data():
    """The folder of real speech that the environment variable SPEECH_DATA names."""
    folder = os.environ.get("SPEECH_DATA")
    if not folder:
        pytest.skip("SPEECH_DATA is not set: it names a folder of real speech")
    return Path(folder)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.fixture
def largest_tensor():
    """A context whose ``elements`` become those of the largest tensor made in it."""
    return LargestTensor()
