"""Hyperparameter files: a short system file that includes the parts it shares with others."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import ruamel.yaml
import yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

from speechbrain_summarymixing.errors import UserError, reason_of

INCLUDE = "!include:"
REFERENCE = re.compile(r"<(\w+)[>\[]")
BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
    yaml.YAMLError,
    ruamel.yaml.error.YAMLError,
)
KINDS = {  # of the value that a file gives to an option: what another must be
    "tag:yaml.org,2002:int": (int, "a whole number"),
    "tag:yaml.org,2002:float": ((int, float), "a number"),
    "tag:yaml.org,2002:bool": (bool, "True or False"),
}
ABOVE_ZERO = {
    "averaged_checkpoints",
    "batch_seconds",
    "batch_sentences",
    "classes",
    "code_dim",
    "codes",
    "d_ffn",
    "d_model",
    "lr",
    "mask_length",
    "mask_prob",
    "max_batch_size",
    "max_decode_ratio",
    "max_seconds",
    "max_symbols",
    "n_mels",
    "nhead",
    "num_buckets",
    "num_encoder_layers",
    "number_of_epochs",
    "sample_rate",
    "temperature",
    "test_batch_size",
    "test_beam_size",
    "valid_batch_size",
    "vocab_size",
}
FROM_ZERO = {
    "dropout",
    "early_stop_patience",
    "ema",
    "freeze_encoder_steps",
    "lm_weight",
    "log_every_steps",
    "max_grad_norm",
    "min_seconds",
    "noise_std",
    "num_workers",
    "valid_every_steps",
    "warmup_steps",
    "weight_decay",
}


def route_overrides(path, overrides):
    """Sends each option to the file that defines it.

    HyperPyYAML overrides reach the top level of one file; ours include others.

    Arguments
    ---------
    path : str or Path
        The system's YAML file.
    overrides : dict
        Options, as `parse_options` returns them.

    Returns
    -------
    dict
        Overrides for ``load_hyperpyyaml`` and ``create_experiment_directory``.

    Raises
    ------
    UserError
        If the file is missing, no file defines an option, or one has a value that it cannot have.
    """
    tree = _read(Path(path))
    routed, unknown, unfit = {}, [], []
    for key, value in overrides.items():
        home, tag = tree.home(key)
        if home is None:
            unknown.append(key)
            continue
        if (rule := _rule(key, tag, value)) is not None:
            unfit.append(f"--{key} is {value!r}, but must be {rule}")
        target = routed
        for name in home:
            target = target.setdefault(name, {})
        target[key] = value
    if unknown:
        known = sorted(options_of(path))
        raise UserError("\n".join(_unknown(key, known, path) for key in unknown))
    if unfit:
        raise UserError("\n".join(unfit))
    return routed


def _rule(key, tag, value):
    """What an option must be, if its value is not."""
    if tag not in KINDS:
        return None
    kind, rule = KINDS[tag]
    if value is None:
        return f"{rule}: write --{key} VALUE"
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return rule
    if key in ABOVE_ZERO and not value > 0:
        return "above 0"
    return "0 or more" if key in FROM_ZERO and value < 0 else None


def load_hyperparams(path, overrides=None):
    """Loads a system's YAML file, its parts and the command line's options as one flat dict.

    Arguments
    ---------
    path : str or Path
        The system's YAML file.
    overrides : dict, optional
        As in `route_overrides`.

    Returns
    -------
    dict
        Hyperparameters, those of the included parts at the top level.

    Raises
    ------
    UserError
        If the file is missing, an option is unknown, or what the file makes cannot be built.
    """
    overrides = overrides or {}
    try:
        return _built(path, overrides)
    except BUILD_ERRORS as error:
        used = [key for key in overrides if key != "output_folder"]
        # those without which it can be built; else it may be any of them
        blamed = [key for key in used if len(used) > 1 and _builds_without(path, overrides, key)]
        listed = " ".join(f"--{key} {overrides[key]}" for key in blamed or used)
        raise UserError(
            f"{path} cannot be built with {listed or 'its own settings'} ({reason_of(error)}): "
            "change these"
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be made or read ({error.strerror}): take another "
            "--output_folder, or mend the paths in the YAML file"
        ) from error


def _built(path, overrides):
    routed = route_overrides(path, overrides)
    with open(path, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, routed, overrides_must_match=False)
    return _flat(hparams, _read(Path(path)))


def _builds_without(path, overrides, key):
    try:
        _built(path, {k: v for k, v in overrides.items() if k != key})
    except (*BUILD_ERRORS, OSError, UserError):
        return False
    return True


def value_of(path, key, overrides=None):
    """Returns the text of a key of a system's YAML file, or of its parts; nothing is built.

    Arguments
    ---------
    path : str or Path
        The system's YAML file.
    key : str
    overrides : dict, optional
        As in `route_overrides`.

    Returns
    -------
    str or None
        None where no file has the key.

    Raises
    ------
    UserError
        As in `route_overrides`, or if the file's references cannot be resolved.
    """
    routed = route_overrides(path, overrides or {})
    try:
        with open(path, encoding="utf-8") as file:
            level = [yaml.compose(resolve_references(file, routed))]
    except BUILD_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}): mend it") from error
    while level:  # the outermost file's goes before those of its parts
        pairs = [pair for node in level for pair in node.value]
        for name, value in pairs:
            if name.value == key:
                return value.value
        level = [value for _, value in pairs if isinstance(value, yaml.MappingNode)]
    return None


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
    """The keys that a file defines or gets, with YAML's tags, and the files that it includes.

    ``used`` are the keys to which it refers.
    """

    own: dict
    parts: dict
    used: set

    def home(self, key):
        """The keys of the includes that lead to the outermost file with an option; its tag."""
        level = [((), self)]
        while level:
            for way, file in level:
                if key in file.own:
                    return way, file.own[key]
            level = [((*way, name), p) for way, f in level for name, p in f.parts.items()]
        return None, None

    def builds_with(self, key):
        """Whether it, or a part, makes something with an option of its own."""
        own = key in self.own and key in self.used
        return own or any(part.builds_with(key) for part in self.parts.values())

    def options(self):
        return set(self.own).union(*(part.options() for part in self.parts.values()))


def _read(path):
    file = _File({}, {}, set(REFERENCE.findall(_text(path))))
    for key, value in _top_level(path):
        if value.tag.startswith(INCLUDE):
            part = file.parts[key] = _read(path.parent / value.tag[len(INCLUDE) :])
            _pass_on(value, part, path)
        else:
            file.own[key] = value.tag
    return file


def _pass_on(given, file, path):
    """Adds the keys that an include gives to a file, or by their name to the parts of it."""
    for key, value in given.value or ():
        if key.value in file.parts:
            _pass_on(value, file.parts[key.value], path)
            continue
        for name, part in file.parts.items():
            if key.value not in file.own.keys() | file.used and part.builds_with(key.value):
                raise UserError(
                    f"{path}: gives {key.value} to a file whose part {name} has it, which it would "
                    f"not reach: write it under {name}:"
                )
        file.own[key.value] = value.tag


def _flat(hparams, file):
    for name, part in file.parts.items():
        hparams = {**_flat(hparams[name], part), **hparams}
        del hparams[name]
    return hparams


def _text(path):
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot read this hyperparameter file ({error.strerror}): "
            "give the path of a YAML file, such as hparams/sumformer.yaml"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is no UTF-8 text (byte {error.start + 1}): save it as UTF-8"
        ) from error


def _top_level(path):
    try:
        root = yaml.compose(_text(path))
    except yaml.YAMLError as error:
        raise UserError(
            f"{path}: is no YAML ({' '.join(str(error).split())}): mend it; YAML indents by "
            "spaces, not by tabs"
        ) from error
    if not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{path}: holds no keys with values: give a hyperparameter file, such as "
            "hparams/sumformer.yaml"
        )
    return [(key.value, value) for key, value in root.value]


def _unknown(key, known, path):
    close = difflib.get_close_matches(key, known, n=3)
    hint = f"did you mean --{', --'.join(close)}?" if close else f"see the keys of {path}"
    return f"--{key}: no such option in {path} or its parts: {hint}"
