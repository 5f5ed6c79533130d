"""Files of trained models, from a folder or from the hub."""

import os
import re
from pathlib import Path

import torch
from speechbrain.utils.fetching import fetch

from speechbrain_summarymixing.errors import UserError


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
        return Path(fetch(name, str(source)))
    except Exception as error:  # the hub's client has many kinds
        raise UserError(
            f"{option} is {source}: no such folder, and {name} did not come from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


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
    """
    if own_folder is not None:
        own_folder.path = Path(path).parent
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)


def load_labels(encoder, path):
    """Loads the classes of a `CategoricalEncoder`, however many there are."""
    encoder.load(path)
    encoder.ignore_len()
