"""A trained language model: its folder, and its part of a recogniser's."""

import io
from pathlib import Path

import ruamel.yaml
from hyperpyyaml import load_hyperpyyaml, resolve_references

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.sources import find_file, load_strictly

OPTION = "--lm_folder"


def language_model_yaml(source):
    """Returns the text of a YAML file whose only key, ``lm_model``, makes a language model.

    Arguments
    ---------
    source : str or Path
        A folder or a hub name, whose hyperparams.yaml has the key.

    Raises
    ------
    UserError
        If the file is missing or has no such key.
    """
    path = find_file(source, "hyperparams.yaml", option=OPTION)
    with open(path, encoding="utf-8") as file:
        tree = ruamel.yaml.YAML().load(resolve_references(file))
    if "lm_model" not in tree:
        raise UserError(f"{OPTION} is {source}: its hyperparams.yaml has no key lm_model")
    text = io.StringIO()
    ruamel.yaml.YAML().dump({"lm_model": tree["lm_model"]}, text)
    return text.getvalue()


def load_language_model(source):
    """Loads a trained language model.

    Arguments
    ---------
    source : str or Path
        As in `language_model_yaml`; its weights are lm.ckpt.

    Returns
    -------
    torch.nn.Module
        From tokens (N, U) to scores (N, U, V), in eval mode.

    Raises
    ------
    UserError
        If a file is missing, or its weights cannot be read or are not this model's.
    """
    model = load_hyperpyyaml(language_model_yaml(source))["lm_model"]
    try:
        load_strictly(model, find_file(source, "lm.ckpt", option=OPTION))
    except UserError as error:
        raise UserError(f"{OPTION} is {source}: {error}") from error
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
