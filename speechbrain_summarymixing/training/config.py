"""Hyperparameter files: a short system file that includes the parts it shares with others."""

import difflib
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
        If the file is missing or no file defines an option.
    """
    if isinstance(overrides, str):
        overrides = ruamel.yaml.YAML(typ="safe").load(overrides) or {}
    own, parts = _keys(Path(path))
    routed, unknown = {}, []
    for key, value in overrides.items():
        home = next((name for name, keys in parts.items() if key in keys), None)
        if key in own:
            routed[key] = value
        elif home is not None:
            routed.setdefault(home, {})[key] = value
        else:
            unknown.append(key)
    if unknown:
        known = sorted(options_of(path))
        raise UserError("\n".join(_unknown(key, known, path) for key in unknown))
    return routed


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
    for name in _keys(Path(path))[1]:
        part = hparams.pop(name)
        hparams = {**part, **hparams}
    return hparams


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
    own, parts = _keys(Path(path))
    return own.union(*parts.values())


def _keys(path):
    """The keys that a file defines, and those of each part that it includes, by the part's key."""
    own, parts = set(), {}
    for key, value in _top_level(path):
        if value.tag.startswith(INCLUDE):
            part = path.parent / value.tag[len(INCLUDE) :]
            passed = {node.value for node, _ in value.value} if value.value else set()
            parts[key] = passed | {name for name, _ in _top_level(part)}
        else:
            own.add(key)
    return own, parts


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
