"""Encoders of one size: the width with which a system has a number of parameters."""

import tempfile

from speechbrain_summarymixing.analysis.systems import System, parse_settings
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.config import load_hyperparams, options_of

MATCH_WITHIN = 0.005  # of the number of parameters
TRIAL_WIDTHS = (64, 128)


def match(system, settings, parameters):
    """Finds the width with which an encoder has a number of parameters.

    Arguments
    ---------
    system : Named
        Its file names the width in ``size_option``; parameters must be linear in it.
    settings : dict
        Options over those of the file, YAML text.
    parameters : int
        The encoder's number of parameters to come to, within 0.5%.

    Returns
    -------
    dict
        The width's option and value, as text.

    Raises
    ------
    UserError
        If the file names no width, the system sets it too, or no width gives that number.
    """
    option = hyperparams(system.file, settings).get("size_option")
    if not option:
        raise UserError(
            f"--match-parameters: {system.file} has no key size_option, which names the width that "
            "makes its encoder larger: add it (see hparams/parts/asr.yaml)"
        )
    if option in system.settings:
        raise UserError(
            f"--match-parameters chooses {option} of {system.name}, which is set to "
            f"{system.settings[option]}: leave one of the two out"
        )

    def count(width):
        return encoder_parameters(system.file, {**settings, option: str(width)})

    low, high = (count(width) for width in TRIAL_WIDTHS)
    if low == high:
        raise UserError(
            f"--match-parameters: {option} does not change the encoder of {system.name}: name "
            f"another width, as in {system.name}={system.file}:size_option=encoder_d_ffn"
        )
    slope = (high - low) / (TRIAL_WIDTHS[1] - TRIAL_WIDTHS[0])
    step = 2 if option == "csgu_linear_units" else 1  # half of its units gate the other half
    width = step * round((TRIAL_WIDTHS[0] + (parameters - low) / slope) / step)
    found = count(width) if width > 0 else None
    if found is None or abs(found - parameters) > MATCH_WITHIN * parameters:
        least = count(step) if found is None else found
        raise UserError(
            f"--match-parameters: the encoder of {system.name} has {least} parameters with "
            f"{option}={max(width, step)}, but the baseline's has {parameters}: change another "
            "width of one of them"
        )
    return {option: str(width)}


def encoder_parameters(file, settings):
    """Returns the number of parameters of the encoder of a file with settings (YAML text).

    That is the module ``encoder`` of its, where it has one, or else its ``transformer``'s.
    """
    if "encoder" in options_of(file):
        return sum(p.numel() for p in hyperparams(file, settings)["encoder"].parameters())
    return System(file, settings=[f"{key}={value}" for key, value in settings.items()]).parameters


def hyperparams(file, settings):
    """Returns the hyperparameters of a file with settings (YAML text)."""
    # the checkpointer of a system makes its folders when it is built
    with tempfile.TemporaryDirectory() as folder:
        values = parse_settings([f"{key}={value}" for key, value in settings.items()])
        return load_hyperparams(file, {**values, "output_folder": folder})
