"""A trained language model: its folder, and its part of a recogniser's."""

import io
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.inference.sources import check_files, find_file, load_strictly
from speechbrain_summarymixing.inference.trust import check_names, check_references

OPTION = "--lm_folder"


def language_model_yaml(source, *, trust=False):
    """Returns the text of a YAML file whose only key, ``lm_model``, makes a language model.

    Arguments
    ---------
    source : str or Path
        A folder or a hub name, whose hyperparams.yaml has the key.
    trust : bool
        Lets it run whatever it names, as for `transcribe.load_model`.

    Raises
    ------
    UserError
        If the file is missing, has no such key, or the key would run code.
    """
    path = find_file(source, "hyperparams.yaml", option=OPTION)
    try:
        if not trust:
            check_references(path.read_text(encoding="utf-8"), path)
        with open(path, encoding="utf-8") as file:
            tree = ruamel.yaml.YAML().load(resolve_references(file))
    except UserError:
        raise
    except Exception as error:  # hyperpyyaml has many kinds
        raise UserError(
            f"{OPTION} is {source}, whose hyperparams.yaml cannot be loaded ({reason_of(error)}): "
            "copy it again"
        ) from error
    if "lm_model" not in (tree or ()):
        raise UserError(f"{OPTION} is {source}: its hyperparams.yaml has no key lm_model")
    made = io.StringIO()
    ruamel.yaml.YAML().dump({"lm_model": tree["lm_model"]}, made)
    if not trust:
        check_names(made.getvalue(), path)
    return made.getvalue()


def load_language_model(source, *, trust=False):
    """Loads a trained language model.

    Arguments
    ---------
    source : str or Path
        As in `language_model_yaml`; its weights are lm.ckpt.
    trust : bool
        As in `language_model_yaml`.

    Returns
    -------
    torch.nn.Module
        From tokens (N, U) to scores (N, U, V), in eval mode.

    Raises
    ------
    UserError
        If a file is missing, or its weights cannot be read or are not this model's.
    """
    text = language_model_yaml(source, trust=trust)
    weights = find_file(source, "lm.ckpt", option=OPTION)
    try:
        check_files(source, {weights.name: weights}, option=OPTION)
        model = load_hyperpyyaml(text)["lm_model"]
        load_strictly(model, weights)
    except UserError as error:
        raise UserError(f"{OPTION} is {source}: {error}") from error
    except Exception as error:  # of YAML, and of what it builds
        raise UserError(
            f"{OPTION} is {source}, whose lm_model cannot be made ({reason_of(error)}): copy its "
            "files again, or export the model anew"
        ) from error
    return model.eval()


def check_tokenizer(source, tokenizer):
    """Makes sure that a language model has the tokens of a recogniser.

    Arguments
    ---------
    source : str or Path
        The language model's, as in `language_model_yaml`.
    tokenizer : str or Path
        The recogniser's sentencepiece model.

    Raises
    ------
    UserError
        If it has not, or a file is missing.
    """
    theirs = find_file(source, "tokenizer.ckpt", option=OPTION)
    if theirs.read_bytes() != Path(tokenizer).read_bytes():
        raise UserError(
            f"{OPTION} is {source}, whose tokens ({theirs}) are not this model's ({tokenizer}): "
            "train both with the same --tokenizer_folder"
        )
