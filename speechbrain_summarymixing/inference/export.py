"""Export of a trained recogniser to a folder that SpeechBrain's interfaces load."""

import io
import os
import shutil
from pathlib import Path

import ruamel.yaml
import torch

from speechbrain_summarymixing.inference.language_model import language_model_yaml
from speechbrain_summarymixing.inference.sources import find_file
from speechbrain_summarymixing.inference.sources import load_strictly as load_strictly  # for YAML

# What recognition needs of a training's hyperparameters, with what these refer to.
KEPT = (
    "sample_rate",
    "compute_features",
    "normalize",
    "front_end",
    "transformer",
    "ctc_lin",
    "seq_lin",
    "scorer",
    "test_search",
    "model",
)

INTERFACE = """
transformer_beam_search: True

encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    front_end: !ref <front_end>

modules:
    encoder: !ref <encoder>
    transformer: !ref <transformer>
    decoder: !ref <test_search>

audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: !ref <sample_rate>

tokenizer: !new:sentencepiece.SentencePieceProcessor

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        normalizer: !ref <normalize>
        tokenizer: !ref <tokenizer>
    custom_hooks:
        model: !name:speechbrain_summarymixing.inference.export.load_strictly
"""

LM_HOOK = """    custom_hooks:
        lm: !name:speechbrain_summarymixing.inference.export.load_strictly
"""

CARD = """# {name}

Trained by speechbrain-summarymixing (SummaryMixing: arXiv 2307.07421) on {sample_rate} Hz speech.

    from speechbrain.inference.ASR import EncoderDecoderASR
    model = EncoderDecoderASR.from_hparams(source="path/to/this/folder")
    print(model.transcribe_file("speech.wav"))

or `summarymixing transcribe path/to/this/folder speech.wav`.

| | |
|---|---|
| trained on | {data} |
| parameters | {parameters:,} |
| training | {optimizer_steps} steps, {train_seconds:.0f} s on {device} ({threads} threads) |
{wers}

It knows the words and voices of its training data; on other speech expect more errors.
"""


def export(hparams, results):
    """Writes what is needed to use a trained model, and nothing of its training.

    The folder ``pretrained`` in the output folder is made anew: hyperparams.yaml, model.ckpt,
    normalizer.ckpt, tokenizer.ckpt and README.md.

    Arguments
    ---------
    hparams : namespace
        With the trained ``model`` and ``normalize``, and ``output_folder``.
    results : dict
        As `training.experiment.test` returns them; they go into the model card.
    """
    output_folder = Path(hparams.output_folder)
    folder = output_folder / "pretrained"
    new, old = output_folder / "pretrained.new", output_folder / "pretrained.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    # as saved when the run started: the files it came from may have changed since
    saved = (output_folder / "hyperparams.yaml").read_text(encoding="utf-8")
    language_model = None
    if hparams.lm_folder is not None:
        language_model = language_model_yaml(hparams.lm_folder)
        shutil.copy(find_file(hparams.lm_folder, "lm.ckpt", option="--lm_folder"), new / "lm.ckpt")
    text = inference_yaml(saved, language_model, hparams.lm_weight, hparams.lm_temperature)
    (new / "hyperparams.yaml").write_text(text, encoding="utf-8")
    state = {key: value.cpu() for key, value in hparams.model.state_dict().items()}
    torch.save(state, new / "model.ckpt")
    hparams.normalize._save(new / "normalizer.ckpt")
    shutil.copy(output_folder / "tokenizer.model", new / "tokenizer.ckpt")
    (new / "README.md").write_text(model_card(hparams, results), encoding="utf-8")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def inference_yaml(text, language_model=None, lm_weight=0.0, lm_temperature=1.0):
    """Cuts a training's YAML down to what recognition needs.

    Arguments
    ---------
    text : str
        The training's YAML with its references resolved, as SpeechBrain saves it.
    language_model : str or None
        YAML with the key ``lm_model``, which then joins in the search.
    lm_weight, lm_temperature : float
        Of the language model.

    Returns
    -------
    str
    """
    yaml = ruamel.yaml.YAML()
    tree = _flat(yaml.load(text))
    keys = KEPT
    if language_model is not None:
        tree |= yaml.load(language_model)
        tree["scorer"].update(
            language_model=tree["lm_model"], lm_weight=lm_weight, lm_temperature=lm_temperature
        )
        keys = ("lm_model", *KEPT)
    kept = ruamel.yaml.comments.CommentedMap((key, tree[key]) for key in keys)
    dumped = io.StringIO()
    yaml.dump(kept, dumped)
    lines = [line for line in dumped.getvalue().splitlines() if line.strip() and line[0] != "#"]
    text = "\n".join(lines) + "\n" + INTERFACE
    if language_model is not None:
        text = text.replace("    custom_hooks:\n", f"        lm: !ref <lm_model>\n{LM_HOOK}")
    return text


def _flat(tree):
    """A mapping with the keys of the part that it includes, at whatever depth that has them."""
    if "test_search" in tree:
        return tree
    parts = (_flat(value) for value in tree.values() if isinstance(value, dict))
    part = next(filter(None, parts), None)
    return part and {**part, **tree}


def model_card(hparams, results):
    """Returns the text of the exported folder's README.md."""
    mixer = getattr(hparams.token_mixer, "func", hparams.token_mixer).__name__
    wers = "\n".join(
        f"| WER on {name} | {r['WER']:.2f}% (95% interval {r['WER_95'][0]:.2f} to "
        f"{r['WER_95'][1]:.2f}, {r['utterances']} utterances) |"
        for name, r in results["test"].items()
    )
    return CARD.format(
        name=f"{mixer} speech recogniser",
        sample_rate=hparams.sample_rate,
        data=hparams.shards or hparams.train_csv or f"the {hparams.corpus} corpus",
        wers=wers,
        **{k: v for k, v in results.items() if k != "test"},
    )
