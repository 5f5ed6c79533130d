"""Hyperparameter files: a short system file that includes the parts it shares with others."""

import difflib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import ruamel.yaml
import yaml
from hyperpyyaml import load_hyperpyyaml

from speechbrain_summarymixing.errors import UserError

INCLUDE = "!include:"


def route_overrides(path, overrides):
    """Sends each option to the file that defines it.

    HyperPyYAML overrides reach the top level of one file; ours include others.

    Arguments
    ---------
    path : str or Path
        The system's YAML file.
    overrides : str or dict
        Options as YAML text, as SpeechBrain's ``parse_arguments`` returns them, or as a dict.

    Returns
    -------
    dict
        Overrides for ``load_hyperpyyaml`` and ``create_experiment_directory``.

    Raises
    ------
    UserError
        If the file is missing, no file defines an option, or one is given twice or is no YAML.
    """
    if isinstance(overrides, str):
        overrides = _options(overrides)
    tree = _read(Path(path))
    routed, unknown = {}, []
    for key, value in overrides.items():
        home = tree.home(key)
        if home is None:
            unknown.append(key)
            continue
        target = routed
        for name in home:
            target = target.setdefault(name, {})
        target[key] = value
    if unknown:
        known = sorted(options_of(path))
        raise UserError("\n".join(_unknown(key, known, path) for key in unknown))
    return routed


def _options(text):
    try:
        return ruamel.yaml.YAML(typ="safe").load(text) or {}
    except ruamel.yaml.constructor.DuplicateKeyError as error:
        keys = Counter(line.partition(":")[0] for line in text.splitlines())
        twice = ", ".join(f"--{key}" for key, count in keys.items() if count > 1)
        raise UserError(f"{twice or 'an option'} is given twice: give it once") from error
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(
            f"the options are no YAML ({' '.join(str(error).split())}): quote values with special "
            "characters, such as --speeds '[95, 100]'"
        ) from error


def load_hyperparams(path, overrides=""):
    """Loads a system's YAML file, its parts and the command line's options as one flat dict.

    Arguments
    ---------
    path : str or Path
        The system's YAML file.
    overrides : str or dict
        As in `route_overrides`.

    Returns
    -------
    dict
        Hyperparameters, those of the included parts at the top level.

    Raises
    ------
    UserError
        If the file is missing or an option is unknown.
    """
    routed = route_overrides(path, overrides)
    with open(path, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, routed, overrides_must_match=False)
    return _flat(hparams, _read(Path(path)))


def options_of(path):
    """Returns the names of the options of a system's YAML file and its parts.

    Arguments
    ---------
    path : str or Path

    Returns
    -------
    set of str

    Raises
    ------
    UserError
        If the file is missing.
    """
    return _read(Path(path)).options()


@dataclass
class _File:
    """The keys that a file defines or gets, and the files that it includes, by their key."""

    own: set
    parts: dict

    def home(self, key):
        """The keys of the includes that lead to the outermost file with an option, or None."""
        level = [((), self)]
        while level:
            for way, file in level:
                if key in file.own:
                    return way
            level = [((*way, name), p) for way, f in level for name, p in f.parts.items()]
        return None

    def options(self):
        return self.own.union(*(part.options() for part in self.parts.values()))


def _read(path):
    file = _File(set(), {})
    for key, value in _top_level(path):
        if value.tag.startswith(INCLUDE):
            part = _read(path.parent / value.tag[len(INCLUDE) :])
            part.own |= {node.value for node, _ in value.value or ()}
            file.parts[key] = part
        else:
            file.own.add(key)
    return file


def _flat(hparams, file):
    for name, part in file.parts.items():
        hparams = {**_flat(hparams[name], part), **hparams}
        del hparams[name]
    return hparams


def _top_level(path):
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read this hyperparameter file ({error.strerror}): "
            "give the path of a YAML file, such as hparams/sumformer.yaml"
        ) from error
    root = yaml.compose(text)
    return [(key.value, value) for key, value in root.value] if root is not None else []


def _unknown(key, known, path):
    close = difflib.get_close_matches(key, known, n=3)
    hint = f"did you mean --{', --'.join(close)}?" if close else f"see the keys of {path}"
    return f"--{key}: no such option in {path} or its parts: {hint}"
