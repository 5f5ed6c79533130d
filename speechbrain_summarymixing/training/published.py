"""Published checkpoints as weights of a system here."""

import tempfile

import torch

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import atomically
from speechbrain_summarymixing.inference.sources import load_weights
from speechbrain_summarymixing.lobes.published import load_published_model
from speechbrain_summarymixing.training.config import load_hyperparams


def convert(checkpoint, system, file, options=None):
    """Writes a published checkpoint's weights by the names of a system's ``model``.

    Arguments
    ---------
    checkpoint : str or Path
        Weights of all modules, as `load_published_model` takes them; nothing in it is run.
    system : str or Path
        A YAML file.
    file : str or Path
        To write, as the ``model.ckpt`` of a checkpoint.
    options : dict, optional
        Over those of the YAML file, as `config.route_overrides` takes them.

    Returns
    -------
    int
        Number of parameters.

    Raises
    ------
    UserError
        If the checkpoint cannot be read, or is of another form or size.
    """
    weights = load_weights(checkpoint)
    with tempfile.TemporaryDirectory() as folder:  # the checkpointer makes one
        hparams = load_hyperparams(system, {**(options or {}), "output_folder": folder})
    model = hparams["model"]
    try:
        load_published_model(model, weights)
    except ValueError as error:
        raise UserError(f"{checkpoint}: {error} (options such as --layer_norm False)") from error
    with atomically(file) as written:
        torch.save(model.state_dict(), written)
    return sum(parameter.numel() for parameter in model.parameters())
