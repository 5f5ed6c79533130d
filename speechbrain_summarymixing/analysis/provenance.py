"""What made a figure: the commit of this checkout and the versions of packages."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import speechbrain_summarymixing

PACKAGES = ("speechbrain", "torch", "torchaudio", "hyperpyyaml", "sentencepiece", "numpy")


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


def versions():
    """Returns a dict from a package, and python, to its version."""
    found = {
        "python": platform.python_version(),
        "speechbrain_summarymixing": speechbrain_summarymixing.__version__,
    }
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
