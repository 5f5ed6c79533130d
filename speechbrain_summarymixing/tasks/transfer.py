"""A trained model's encoder, to begin another training with."""

import torch
import yaml
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.sources import find_file, load_weights

logger = get_logger(__name__)

OPTION = "--encoder_folder"
ENCODER = ("0.", "1.encoder.", "1.custom_src_module.")  # of the list of front-end, transformer, …
WEIGHTLESS = {  # what makes another encoder of the same weights, and of which part of an export
    "sample_rate": "compute_features",
    "frequency_padding": "front_end",
    "encoder_module": "transformer",
    "positional_encoding": "transformer",
}


def load_encoder(hparams, source):
    """Loads front-end, encoder and feature statistics; tells what is not loaded.

    Arguments
    ---------
    hparams : dict
        With model (front-end, transformer and heads), normalize and compute_features, as in
        ``hparams/parts/asr.yaml``, and what its encoder is made of.
    source : str or Path
        The folder, or hub name, of an exported model: hyperparams.yaml, model.ckpt and
        normalizer.ckpt.

    Raises
    ------
    UserError
        If a file is missing, or the encoder there is not of this size and kind, or of other
        features.
    """
    kind = type(hparams["compute_features"])
    heard = f"{kind.__module__}.{kind.__qualname__}"
    tree = _tree_of(source)
    if (theirs := _features_of(tree)) != heard:
        raise UserError(
            f"{OPTION} is {source}, whose encoder was trained on the features of {theirs}, but "
            f"here they are {heard}, with other values: train that model again with these"
        )
    settings = [
        f"--{key} {value}, but here {hparams[key]}"
        for key, value in _weightless(tree)
        if key in hparams and value != hparams[key]
    ]
    if settings:
        raise UserError(
            listed(f"{OPTION} is {source}, whose encoder was trained with other settings", settings)
            + "\ngive what it was trained with, since no weight tells the difference"
        )
    model, normalize = hparams["model"], hparams["normalize"]
    file = find_file(source, "model.ckpt", option=OPTION)
    theirs = load_weights(file)
    own = model.state_dict()
    wanted = [key for key in own if key.startswith(ENCODER)]
    unlike = [
        f"{key}: {tuple(theirs[key].shape) if key in theirs else 'missing'}, "
        f"but here {tuple(own[key].shape)}"
        for key in wanted
        if key not in theirs or theirs[key].shape != own[key].shape
    ]
    unlike += [
        f"{key}: {tuple(value.shape)}, but here missing"
        for key, value in theirs.items()
        if key.startswith(ENCODER) and key not in own
    ]
    if unlike:
        raise UserError(
            listed(f"{OPTION} is {source}, whose encoder is another", unlike)
            + "\ngive the encoder's options that it was trained with, see its hyperparams.yaml"
        )
    model.load_state_dict({key: theirs[key] for key in wanted}, strict=False)
    normalize._load(find_file(source, "normalizer.ckpt", option=OPTION), end_of_epoch=False)
    left = sorted({".".join(key.split(".")[:2]) for key in theirs if key not in wanted})
    logger.info(
        "%s: %d of %d weights are the trained encoder's, and so are its feature statistics; the "
        "others start anew (not taken: %s)",
        source,
        sum(own[key].numel() for key in wanted),
        sum(value.numel() for value in own.values()),
        ", ".join(left) or "none",
    )


class HeldEncoder:
    """An encoder without gradients, in eval mode: neither dropout nor moving statistics.

    Arguments
    ---------
    model : torch.nn.ModuleList
        As for `load_encoder`.
    """

    def __init__(self, model):
        parts = dict(model.named_modules())
        names = (prefix.removesuffix(".") for prefix in ENCODER)
        self.parts = torch.nn.ModuleList(parts[name] for name in names if name in parts)
        self.weights = [p for p in self.parts.parameters() if p.requires_grad]

    def hold(self):
        """Holds it; in training at each step, since epochs and validations end eval mode."""
        self.parts.eval()
        for weight in self.weights:
            weight.requires_grad_(False)

    def release(self):
        """Lets it learn."""
        self.parts.train()
        for weight in self.weights:
            weight.requires_grad_(True)


def _tree_of(source):
    """The top of an exported model's YAML, whose tags name classes: by key, a node."""
    file = find_file(source, "hyperparams.yaml", option=OPTION)
    return {key.value: node for key, node in yaml.compose(file.read_text(encoding="utf-8")).value}


def _features_of(tree):
    """The class of an exported model's features, by name."""
    if "compute_features" not in tree:
        return "no key compute_features"
    return tree["compute_features"].tag.removeprefix("!new:")


def _weightless(tree):
    """(key, value) of the settings `WEIGHTLESS` of an exported model."""
    for key, home in WEIGHTLESS.items():
        node = tree.get(home)
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        given = {
            name.value: yaml.safe_load(value.value) for name, value in pairs if name.value == key
        }
        if home == "front_end" and pairs:
            given.setdefault(key, "constant")  # older exports have no other
        yield from given.items()
