"""What made a figure or a model's folder, and whether its files are still the same."""

import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
from pathlib import Path

import speechbrain_summarymixing
from speechbrain_summarymixing.errors import UserError

logger = logging.getLogger(__name__)

PACKAGES = ("speechbrain", "torch", "torchaudio", "hyperpyyaml", "sentencepiece", "numpy")
CONFIG = "config.json"
NOT_SUMMED = (CONFIG, "README.md")


def checkout():
    """Returns the commit of this package's checkout, with -dirty where a file was changed.

    None where it is no checkout, or git cannot tell.
    """
    root = Path(speechbrain_summarymixing.__file__).parents[1]
    if not (root / ".git").exists():  # installed, perhaps inside of another project's checkout
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always"]
    options = ["--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(
            [*command, *options], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions(*more):
    """Returns a dict from a package, and python, to its version, or None where it has none.

    Arguments
    ---------
    *more : str
        Packages beside the usual ones.
    """
    found = {
        "python": platform.python_version(),
        "speechbrain_summarymixing": speechbrain_summarymixing.__version__,
    }
    for name in (*PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def write_config(folder, *, packages=(), **about):
    """Writes a model's config.json: commit, versions and the sha256 of each file that is there.

    Arguments
    ---------
    folder : Path
        Of the model's files. README.md is left out, since it may be changed.
    packages : sequence of str
        Whose versions matter beside the usual ones.
    **about
        What else it tells, of JSON's types.
    """
    told = {
        **about,
        "commit": checkout(),
        "versions": versions(*packages),
        "sha256": {
            path.name: _sum(path)
            for path in sorted(folder.iterdir())
            if path.is_file() and path.name not in NOT_SUMMED
        },
    }
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def check_sums(config, files):
    """Compares files of a model with the sums that its export wrote; older exports have none.

    A YAML file that was changed is told in the log, since it may be changed by hand.

    Arguments
    ---------
    config : Path
        The model's config.json; where there is none, nothing is compared.
    files : dict
        From the name of each file to its path.

    Raises
    ------
    UserError
        If another file is not that of the export, or config.json cannot be read.
    """
    if not config.is_file():
        return
    try:
        sums = dict(json.loads(config.read_text(encoding="utf-8")).get("sha256", {}))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"{config}: is no JSON with the sums of files, as an export writes it: copy it again, "
            "or delete it, and the files are not compared with it"
        ) from error
    for name, path in files.items():
        if name not in sums or (found := _sum(path)) == sums[name]:
            continue
        if path.suffix == ".yaml":
            logger.warning("%s: was changed since its export, and is taken as it is", path)
            continue
        raise UserError(
            f"{path}: is not the file that was exported: its sha256 is {found[:12]}…, but "
            f"{str(sums[name])[:12]}… in {CONFIG}: copy the model again, or, if you changed the "
            f"file yourself, take its line out of {CONFIG}"
        )


def _sum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
