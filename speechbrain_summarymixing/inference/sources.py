"""Files of trained models, from a folder or from the hub."""

import functools
import os
import pickle
import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import sentencepiece
import torch
from huggingface_hub.constants import ENDPOINT
from speechbrain.utils.fetching import FetchConfig, fetch

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.inference.provenance import CONFIG, check_sums


def find_file(source, name, *, option):
    """Returns the path of a file of a trained model.

    Arguments
    ---------
    source : str or Path
        A folder, or a name on the Hugging Face hub such as
        "speechbrain/asr-transformer-transformerlm-librispeech".
    name : str
        Of the file in it.
    option : str
        What the user gave the source by, such as "--lm_folder".

    Returns
    -------
    Path

    Raises
    ------
    UserError
        If the folder or the file is missing, or the hub does not give it.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / name).is_file():
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
            raise UserError(
                f"{option} is {source}, which has no {name} but {found}: give the folder "
                "'pretrained' of the run that made it"
            )
        return folder / name
    # where the first part is a folder, a path is meant
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)) or folder.parent.is_dir():
        raise UserError(
            f"{option} is {source}: no such folder, and no name on the hub (owner/name); give the "
            "folder 'pretrained' of the run that made it"
        )
    try:
        return Path(fetch(name, str(source), fetch_config=hub()))
    except Exception as error:  # the hub's client has many kinds
        reason = reason_of(error)
        if not hub().allow_network:
            reason = f"{ENDPOINT} cannot be reached, and the cache does not have it"
        raise UserError(
            f"{option} is {source}: no such folder, and {name} did not come from the hub "
            f"({reason}): look at the name and at your connection"
        ) from error


def check_files(source, files, *, option):
    """Compares files of a trained model with the sums that its export wrote, as `check_sums`.

    Arguments
    ---------
    source, option
        As for `find_file`.
    files : dict
        From the name of each file to its path.
    """
    try:
        config = find_file(source, CONFIG, option=option)
    except UserError:  # older exports have none
        return
    check_sums(config, files)


def hub():
    """How to fetch from the hub: where it cannot be reached, from the cache, and not after retries.

    It is looked up once a minute, since networks come and go while a process lives.

    Returns
    -------
    speechbrain.utils.fetching.FetchConfig
    """
    return _hub(time.monotonic() // 60)


@functools.lru_cache(maxsize=1)
def _hub(minute):
    address = urlsplit(ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        if not getproxies():
            socket.create_connection((address.hostname, port), timeout=5).close()
    except OSError:
        return FetchConfig(allow_network=False)
    return FetchConfig()


class OwnFolder(os.PathLike):
    """The folder that an exported model was loaded from, wherever that is."""

    path = None

    def __fspath__(self):
        """Returns the path, once `load_strictly` has found it."""
        return str(self.path)

    __str__ = __fspath__  # SpeechBrain takes either


def load_strictly(module, path, own_folder=None):
    """Loads a state dict; a missing or unknown key raises, where SpeechBrain only warns.

    Arguments
    ---------
    module : torch.nn.Module
    path : str or Path
    own_folder : OwnFolder or None
        Comes to know the file's folder.

    Raises
    ------
    UserError
        If the file is damaged, holds more than weights, weights that are no numbers, or those of
        another model.
    """
    if own_folder is not None:
        own_folder.path = Path(path).parent
    state = load_weights(path)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: holds the weights of another model than the YAML beside it makes "
            f"({reason[:300]}): copy all files of the model again"
        ) from error


def load_weights(path):
    """Returns the weights in a file, by name, on the CPU; nothing in it is run.

    Arguments
    ---------
    path : str or Path

    Raises
    ------
    UserError
        If the file is damaged, or holds anything but weights, or weights that are no numbers.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        values = list(state.items())
    except (
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        EOFError,
        AttributeError,
        ValueError,
        KeyError,
    ) as error:
        raise UserError(
            f"{path}: cannot be loaded as weights ({reason_of(error)}): copy the model again, from "
            "one whom you trust"
        ) from error
    for name, value in values:
        if not (isinstance(value, torch.Tensor) and value.isfinite().all()):
            raise UserError(
                f"{path}: {name} has values that are NaN or infinite, so all it would say is "
                "wrong: take the model of an earlier checkpoint, or train it again"
            )
    return state


def load_tokenizer(path):
    """Loads a trained tokenizer.

    Arguments
    ---------
    path : str or Path
        Such as tokenizer.model in the output folder of a run.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{path}: no such file, so there is nothing to test: train first (without "
            "--test_only); several machines need the output folder on a disk that they share"
        )
    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except RuntimeError as error:
        raise UserError(
            f"{path}: is no sentencepiece model: copy it again, or train it anew"
        ) from error


def load_labels(encoder, path):
    """Loads the classes of a `CategoricalEncoder`, however many there are."""
    encoder.load(path)
    encoder.ignore_len()
