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


def load_encoder(model, normalize, compute_features, source):
    """Loads front-end, encoder and feature statistics; tells what is not loaded.

    Arguments
    ---------
    model : torch.nn.ModuleList
        Front-end, transformer and heads, as in ``hparams/parts/asr.yaml``.
    normalize : Normalization
    compute_features : torch.nn.Module
    source : str or Path
        The folder, or hub name, of an exported model: hyperparams.yaml, model.ckpt and
        normalizer.ckpt.

    Raises
    ------
    UserError
        If a file is missing, or the encoder there is not of this size and kind, or of other
        features.
    """
    heard = f"{type(compute_features).__module__}.{type(compute_features).__qualname__}"
    if (theirs := _features_of(source)) != heard:
        raise UserError(
            f"{OPTION} is {source}, whose encoder was trained on the features of {theirs}, but "
            f"here they are {heard}, with other values: train that model again with these"
        )
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


def _features_of(source):
    """The class of an exported model's features, by name."""
    file = find_file(source, "hyperparams.yaml", option=OPTION)
    for key, value in yaml.compose(file.read_text(encoding="utf-8")).value:
        if key.value == "compute_features":
            return value.tag.removeprefix("!new:")
    return "no key compute_features"
