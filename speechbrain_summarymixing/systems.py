"""Where the YAML files of the systems lie, in a clone and in an installed package."""

import difflib
from pathlib import Path

from speechbrain_summarymixing.errors import UserError

PACKAGE = Path(__file__).parent
OWN, RECIPES = "hparams", "recipes"


def home():
    """Returns the folder that holds hparams and recipes: the clone's, or else the package's."""
    clone = PACKAGE.parent
    return clone if (clone / OWN / "parts").is_dir() else PACKAGE


def names():
    """Returns a dict from the name of each system that comes with the package to its file.

    A recipe's is that of its folder and file: ``AN4/ASR/sumformer`` is
    ``recipes/AN4/ASR/hparams/sumformer.yaml``.
    """
    found = {}
    for top in (OWN, RECIPES):
        folder = home() / top
        for file in sorted(folder.rglob("*.yaml")):
            parts = file.relative_to(folder).with_suffix("").parts
            if "parts" not in parts and (top == OWN or "hparams" in parts):
                found["/".join(part for part in parts if part != "hparams")] = file
    return found


def find(system):
    """Returns the path of a system's YAML file.

    Arguments
    ---------
    system : str or Path
        A file, which need not exist if it ends in .yaml, or one of `names`.

    Raises
    ------
    UserError
        If it is neither.
    """
    if Path(system).is_file() or Path(system).suffix == ".yaml":
        return Path(system)
    known = names()
    if (file := known.get(str(system))) is not None:
        return file
    close = difflib.get_close_matches(str(system), known, n=3) or ("sumformer",)
    raise UserError(
        f"{system}: is neither a file nor the name of a system: give a YAML file's path, or one of "
        f"those that summarymixing train --list prints, such as {', '.join(close)}"
    )


def headline(file):
    """Returns what the first line of a system's file says of it."""
    with open(file, encoding="utf-8") as lines:
        return next(lines).lstrip("# ").strip()
