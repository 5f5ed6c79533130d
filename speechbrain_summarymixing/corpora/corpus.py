"""What a corpus's module declares, by which training finds it."""

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field

from speechbrain_summarymixing import corpora


@dataclass(frozen=True)
class Corpus:
    """A corpus, declared as ``CORPUS`` in its module of `corpora`.

    Arguments
    ---------
    name : str
        Of the option ``--corpus``.
    prepare : callable
        Called as ``(data_folder, save_folder, splits=, workers=, progress=, **options)``: writes
        ``<split>.csv`` into ``save_folder`` and returns a dict from each split to the file's path;
        ``workers`` and ``progress`` are as in `manifest.probe`.
    train, valid, test : list of str
        Splits to train, validate and test on, where the options name no others.
    options : dict
        From ``prepare``'s arguments to the hyperparameters that they get.
    """

    name: str
    prepare: Callable
    train: list
    valid: list
    test: list
    options: dict = field(default_factory=dict)


@functools.cache
def declared():
    """Returns a dict from its name to each `Corpus` that a module of `corpora` declares."""
    names = [
        module.name for module in pkgutil.iter_modules(corpora.__path__, f"{corpora.__name__}.")
    ]
    modules = map(importlib.import_module, names)
    found = [module.CORPUS for module in modules if hasattr(module, "CORPUS")]
    return {corpus.name: corpus for corpus in found}
