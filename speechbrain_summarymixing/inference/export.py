"""Export of a trained model to a folder that SpeechBrain's interfaces load."""

import io
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import ruamel.yaml
import torch

from speechbrain_summarymixing.inference.language_model import language_model_yaml
from speechbrain_summarymixing.inference.provenance import write_config
from speechbrain_summarymixing.inference.sources import find_file
from speechbrain_summarymixing.inference.sources import load_strictly as load_strictly  # for YAML
from speechbrain_summarymixing.inference.streaming_asr import (
    CTC_SEARCH,
    STREAMING_ASR,
    USAGE,
    can_stream,
)
from speechbrain_summarymixing.lobes.mixers import mixer_name


@dataclass(frozen=True)
class Interface:
    """How a trained model is used, and what that needs of its training's hyperparameters.

    Arguments
    ---------
    title : str
        What the model is, for its card.
    kept : tuple of str
        Keys of the hyperparameters, in an order in which none refers to a later one.
    yaml : str
        What SpeechBrain's interface needs beside them.
    usage : str
        Lines of Python and of the shell that use the model, for its card.
    files : dict
        From files of the exported folder to files of the output folder that they copy.
    streaming_yaml : str or None
        In place of ``yaml``, for SpeechBrain's `StreamingASR`: of a model trained on chunks.
    """

    title: str
    kept: tuple
    yaml: str
    usage: str
    files: dict
    streaming_yaml: str | None = None


ENCODER = ("sample_rate", "compute_features", "normalize", "front_end", "transformer")

PRETRAINER = """
audio_normalizer: !new:speechbrain.dataio.preprocess.AudioNormalizer
    sample_rate: !ref <sample_rate>

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        model: !ref <model>
        normalizer: !ref <normalize>
"""

LOADED_STRICTLY = """    custom_hooks:
        model: !name:speechbrain_summarymixing.inference.export.load_strictly
"""

HEARS = """encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>
    front_end: !ref <front_end>
"""

ENCODES = (
    HEARS
    + """\
    transformer: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
        transformer: !ref <transformer>
"""
)

TRANSFORMER = f"""
transformer_beam_search: True

{HEARS}
modules:
    encoder: !ref <encoder>
    transformer: !ref <transformer>
    decoder: !ref <test_search>

tokenizer: !new:sentencepiece.SentencePieceProcessor
{PRETRAINER}        tokenizer: !ref <tokenizer>
"""

RECOGNITION = Interface(
    title="speech recogniser",
    kept=(
        *ENCODER,
        "ctc_lin",
        "seq_lin",
        "scorer",
        "test_search",
        "model",
    ),
    yaml=TRANSFORMER + LOADED_STRICTLY,
    usage="""    from speechbrain.inference.ASR import EncoderDecoderASR
    model = EncoderDecoderASR.from_hparams(source="path/to/this/folder")
    print(model.transcribe_file("speech.wav"))

or `summarymixing transcribe path/to/this/folder speech.wav`.""",
    files={"tokenizer.ckpt": "tokenizer.model"},
)

STREAMING = f"""{STREAMING_ASR}{PRETRAINER}        tokenizer: !ref <tokenizer>
{LOADED_STRICTLY}"""

CTC = replace(
    RECOGNITION,
    kept=(
        "blank_index",
        *ENCODER,
        "ctc_lin",
        "seq_lin",
        "model",
    ),
    yaml=f"""
{ENCODES}    ctc_lin: !ref <ctc_lin>
    log_softmax: !new:torch.nn.LogSoftmax
        dim: -1

modules:
    encoder: !ref <encoder>

decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: !ref <blank_index>

tokenizer: !new:sentencepiece.SentencePieceProcessor
{PRETRAINER}        tokenizer: !ref <tokenizer>
{LOADED_STRICTLY}""",
    usage=RECOGNITION.usage.replace("EncoderDecoderASR", "EncoderASR"),
    streaming_yaml=CTC_SEARCH + STREAMING,
)

TRANSDUCER = replace(
    RECOGNITION,
    kept=(
        *ENCODER,
        "ctc_lin",
        "head",
        "greedy_search",
        "test_search",
        "model",
    ),
    streaming_yaml=STREAMING,
)

# EndToEndSLU encodes by a recogniser that it loads: this one, from the same folder.
UNDERSTANDING = replace(
    RECOGNITION,
    title="speech understanding model",
    yaml=TRANSFORMER.replace(
        "    decoder: !ref <test_search>\n",
        "    decoder: !ref <test_search>\n"
        "    beam_searcher: !ref <test_search>\n"
        "    slu_enc: !new:torch.nn.Identity\n\n"
        "asr_model_source: !new:speechbrain_summarymixing.inference.sources.OwnFolder\n",
    )
    + LOADED_STRICTLY
    + "            own_folder: !ref <asr_model_source>\n",
    usage="""    from speechbrain.inference.SLU import EndToEndSLU
    model = EndToEndSLU.from_hparams(source="path/to/this/folder")
    print(model.decode_file("speech.wav"))

or `summarymixing understand path/to/this/folder speech.wav`.""",
)

CLASSIFICATION = Interface(
    title="classifier of speech",
    kept=(
        *ENCODER,
        "embedding_model",
        "class_lin",
        "log_softmax",
        "classifier",
        "model",
    ),
    yaml=f"""
# EncoderClassifier tells the lengths to what comes second alone
features: !new:speechbrain.nnet.containers.LengthsCapableSequential
    compute_features: !ref <compute_features>
    normalize: !ref <normalize>

modules:
    compute_features: !new:torch.nn.Identity
    mean_var_norm: !ref <features>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder
{PRETRAINER}        label_encoder: !ref <label_encoder>
{LOADED_STRICTLY}        label_encoder:
            !name:speechbrain_summarymixing.inference.sources.load_labels
""",
    usage="""    from speechbrain.inference.classifiers import EncoderClassifier
    model = EncoderClassifier.from_hparams(source="path/to/this/folder")
    print(model.classify_file("speech.wav"))

or `summarymixing classify path/to/this/folder speech.wav`.""",
    files={"label_encoder.ckpt": "label_encoder.txt"},
)

# for `--encoder_folder`; quantizer.ckpt has the codes that it learnt
ENCODING = Interface(
    title="pre-trained encoder of speech",
    kept=(*ENCODER, "code_lin", "model"),
    yaml=f"""
{ENCODES}
modules:
    encoder: !ref <encoder>
{PRETRAINER}{LOADED_STRICTLY}""",
    usage="""    from speechbrain.inference.encoders import WaveformEncoder
    model = WaveformEncoder.from_hparams(source="path/to/this/folder")
    frames = model.encode_batch(waveforms, relative_lengths)

or `--encoder_folder path/to/this/folder` of a training that begins with it.""",
    files={"quantizer.ckpt": "quantizer.ckpt"},
)

LM_HOOK = """    custom_hooks:
        lm: !name:speechbrain_summarymixing.inference.export.load_strictly
"""

CARD = """# {name}

Trained by speechbrain-summarymixing (SummaryMixing: arXiv 2307.07421) on {sample_rate} Hz speech.

{usage}

| | |
|---|---|
| trained on | {data} |
| parameters | {parameters:,} |
| training | {optimizer_steps} steps, {train_seconds:.0f} s on {device} ({threads} threads) |
{measured}

It knows the words and voices of its training data; on other speech expect more errors.
"""


def export(hparams, results, interface=RECOGNITION, found=None):
    """Writes what is needed to use a trained model, and nothing of its training.

    The folder ``pretrained`` in the output folder is made anew: hyperparams.yaml, model.ckpt,
    normalizer.ckpt, README.md and the files of the interface, streaming.yaml where the model was
    trained on chunks, and config.json, which tells commit, versions and the sha256 of each file.

    Arguments
    ---------
    hparams : namespace
        With the trained ``model`` and ``normalize``, and ``output_folder``.
    results : dict
        As `training.experiment.test` returns them; they go into the model card.
    interface : Interface
    found : dict or None
        What training found and the use of the model needs: more keys of hyperparams.yaml.
    """
    output_folder = Path(hparams.output_folder)
    folder = output_folder / "pretrained"
    new, old = output_folder / "pretrained.new", output_folder / "pretrained.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    # as saved when the run started: the files it came from may have changed since
    saved = (output_folder / "hyperparams.yaml").read_text(encoding="utf-8")
    if _streams(hparams, interface):
        streaming = replace(interface, yaml=interface.streaming_yaml)
        text = inference_yaml(saved, streaming, found)
        (new / "streaming.yaml").write_text(text, encoding="utf-8")
    lm_folder = getattr(hparams, "lm_folder", None)
    if lm_folder is None:
        text = inference_yaml(saved, interface, found)
    else:
        shutil.copy(find_file(lm_folder, "lm.ckpt", option="--lm_folder"), new / "lm.ckpt")
        text = inference_yaml(
            saved,
            interface,
            found,
            language_model_yaml(lm_folder, trust=hparams.trust),
            hparams.lm_weight,
            hparams.lm_temperature,
        )
    (new / "hyperparams.yaml").write_text(text, encoding="utf-8")
    state = {key: value.cpu() for key, value in hparams.model.state_dict().items()}
    torch.save(state, new / "model.ckpt")
    hparams.normalize._save(new / "normalizer.ckpt")
    for target, source in interface.files.items():
        shutil.copy(output_folder / source, new / target)
    write_config(new)
    (new / "README.md").write_text(model_card(hparams, results, interface), encoding="utf-8")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def inference_yaml(
    text, interface, found=None, language_model=None, lm_weight=0.0, lm_temperature=1.0
):
    """Cuts a training's YAML down to what an interface needs.

    Arguments
    ---------
    text : str
        The training's YAML with its references resolved, as SpeechBrain saves it.
    interface : Interface
    found : dict or None
        As for `export`.
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
    keys = interface.kept
    if language_model is not None:
        tree |= yaml.load(language_model)
        tree["scorer"].update(
            language_model=tree["lm_model"], lm_weight=lm_weight, lm_temperature=lm_temperature
        )
        keys = ("lm_model", *keys)
    kept = ruamel.yaml.comments.CommentedMap((key, tree[key]) for key in keys)
    kept.update(found or {})
    dumped = io.StringIO()
    yaml.dump(kept, dumped)
    lines = [line for line in dumped.getvalue().splitlines() if line.strip() and line[0] != "#"]
    text = "\n".join(lines) + "\n" + interface.yaml
    if language_model is not None:
        text = text.replace("    custom_hooks:\n", f"        lm: !ref <lm_model>\n{LM_HOOK}")
    return text


def _streams(hparams, interface):
    """Whether SpeechBrain's `StreamingASR` is to load it: trained on chunks, without attention."""
    trained = getattr(hparams, "chunk_frames", None) is not None
    return trained and interface.streaming_yaml is not None and can_stream(hparams)


def _flat(tree):
    """A mapping with the keys of the parts that it includes: mappings that make nothing."""
    flat = {}
    for value in tree.values():
        if isinstance(value, dict) and value.tag.value is None:
            flat |= _flat(value)
    return {**flat, **tree}


def chunks_in_words(scores):
    """Returns what ``chunk_ms`` and ``left_ms`` of a test with chunks say."""
    left = scores["left_ms"]
    return f"chunks of {scores['chunk_ms']} ms, " + (
        "all of the past" if left is None else f"{left} ms before them"
    )


def model_card(hparams, results, interface):
    """Returns the text of the exported folder's README.md."""
    mixer = mixer_name(hparams.token_mixer)
    measured = "\n".join(
        f"| {key} on {name} | {scores[key]:.2f}% (95% interval {low:.2f} to {high:.2f}, "
        f"{scores['utterances']} utterances) |"
        for name, scores in results["test"].items()
        for key in scores
        for low, high in [scores.get(f"{key}_95", (None, None))]
        if low is not None
    )
    measured += "".join(
        f"\n| {key} on {name}, {chunks_in_words(scores)} | {scores[key]:.2f}% |"
        for name, whole in results["test"].items()
        for scores in whole.get("chunks", ())
        for key in scores
        if f"{key}_95" in scores
    )
    return CARD.format(
        name=f"{mixer} {interface.title}",
        sample_rate=hparams.sample_rate,
        usage=interface.usage + (USAGE if _streams(hparams, interface) else ""),
        data=hparams.shards or hparams.train_csv or f"the {hparams.corpus} corpus",
        measured=measured,
        **{k: v for k, v in results.items() if k != "test"},
    )
