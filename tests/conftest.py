"""What all tests share."""

import os
from pathlib import Path

import hypothesis
import pytest
from speechbrain.utils.importutils import LazyModule

# hypothesis asks each loaded module for __file__; SpeechBrain's lazy ones would import k2 and fail
_import_on_access = LazyModule.__getattr__


def _file_is_not_worth_an_import(self, name):
    if name == "__file__":
        raise AttributeError(name)
    return _import_on_access(self, name)


LazyModule.__getattr__ = _file_is_not_worth_an_import

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
