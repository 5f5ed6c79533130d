"""The encoders of hyperparameter files, ready to be measured."""

import os
import tempfile
from pathlib import Path

import ruamel.yaml
import torch

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.systems import find
from speechbrain_summarymixing.training.config import load_hyperparams, options_of

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of autocast
FRAMES_PER_SECOND = 25  # after the two blocks of a front-end, each of which halves their number


class System:
    """The encoder of one hyperparameter file: ``encode`` of its ``transformer``.

    Arguments
    ---------
    path : str or Path
        A file as ``train.py`` takes it.
    name : str or None
        In tables; None means the file's name without its ending.
    settings : sequence of str
        Options ``key=value`` over those of the file.
    device : str
        "cpu" or "cuda".
    precision : str
        "fp32", or "bf16" or "fp16" for steps under autocast.

    Raises
    ------
    UserError
        If the file cannot be read or built with the settings.
    """

    def __init__(self, path, *, name=None, settings=(), device="cpu", precision="fp32"):
        self.path, self.name, self.device = str(path), name or Path(path).stem, device
        self.precision = precision
        self.settings = list(settings)
        self.hparams = hparams = _load(path, parse_settings(settings))
        self.transformer = hparams["transformer"].to(device)
        self.searcher = hparams.get("test_search")
        self.input_size = int(hparams["front_end_output"])
        self.frames_per_second = FRAMES_PER_SECOND * 2.0 ** (2 - len(hparams["front_end_channels"]))
        encoder = (self.transformer.custom_src_module, self.transformer.encoder)
        self.parameters = sum(p.numel() for module in encoder for p in module.parameters())

    def random_input(self, seconds, batch=1):
        """Returns random front-end output (batch, frames, input size) for a length in seconds."""
        frames = round(self.frames_per_second * seconds)
        return torch.randn(batch, frames, self.input_size, device=self.device)

    def step(self, what, x):
        """Encodes ``x`` (batch, frames, input size); for "training" gradients are computed too.

        They stay in the parameters until `forget_gradients`.
        """
        training = what == "training"
        self.transformer.train(training)
        reduced = DTYPES[self.precision]
        with torch.set_grad_enabled(training):
            with torch.autocast(x.device.type, reduced, enabled=reduced is not None):
                output = self.transformer.encode(x)
            if training:
                output.sum().backward()

    def forget_gradients(self):
        """Frees the gradients of the last step."""
        self.transformer.zero_grad(set_to_none=True)


def load_systems(paths, *, settings=(), device="cpu", precision="fp32"):
    """Loads systems under different names.

    Arguments
    ---------
    paths : sequence of str or Path
    settings : sequence of str
        Options ``key=value``; each system gets those that its file has.
    device, precision : str
        As for `System`.

    Returns
    -------
    list of System
        Named by their files, with folders where two names would be the same.

    Raises
    ------
    UserError
        If there is no path, one stands twice, one cannot be loaded, or no file has an option.
    """
    paths = [str(path) for path in paths]
    if not paths:
        raise UserError(
            "no system is given, but one or more are needed: give hyperparameter files, such as "
            "hparams/sumformer.yaml"
        )
    paths = [str(find(path)) for path in paths]
    names = names_of(paths)
    options = {path: options_of(path) for path in paths}
    keys = list(parse_settings(settings))
    for key in keys:
        if not any(key in known for known in options.values()):
            raise UserError(
                f"--set {key}: no such option in {', '.join(paths)}: see their keys and those of "
                "the parts that they include"
            )
    return [
        System(
            path,
            name=name,
            settings=[s for key, s in zip(keys, settings) if key in options[path]],
            device=device,
            precision=precision,
        )
        for path, name in zip(paths, names)
    ]


def names_of(paths):
    """Names files and folders in tables: by their own name, or by the path where two share it.

    Arguments
    ---------
    paths : sequence of str or Path

    Returns
    -------
    list of str
        A file's name is without its ending.

    Raises
    ------
    UserError
        If one is given twice.
    """
    paths = [str(path) for path in paths]
    places = [os.path.realpath(path) for path in paths]
    if twice := next((path for path, p in zip(paths, places) if places.count(p) > 1), None):
        raise UserError(f"{twice} is given twice, but each system is measured once: leave one out")
    names = [(Path(p).stem if Path(p).is_file() else Path(p).name) or p for p in paths]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths)]


def parse_settings(settings):
    """Returns a dict of options ``key=value``, whose values are YAML."""
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise UserError(
                f"--set {setting}: must be key=value, such as num_encoder_layers=18 "
                "(hyperparameter files stand before --set)"
            )
        try:
            parsed[key] = ruamel.yaml.YAML(typ="safe").load(value)
        except ruamel.yaml.YAMLError as error:
            raise UserError(
                f"--set {setting}: {value!r} is no YAML value: give a number, a word or [a, list]"
            ) from error
    return parsed


def _load(path, overrides):
    # the checkpointer of a system makes its folders when it is built
    with tempfile.TemporaryDirectory() as folder:
        hparams = load_hyperparams(path, {**overrides, "output_folder": folder})
    for key in ("transformer", "front_end_output", "front_end_channels"):
        if key not in hparams:
            raise UserError(
                f"{path} has no key {key}, but the encoder is taken from transformer, its input's "
                "width from front_end_output and its frames a second from front_end_channels: add "
                "it (see hparams/parts/asr.yaml)"
            )
    return hparams
