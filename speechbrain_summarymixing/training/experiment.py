"""The life of a speech recognition experiment, step by step; `run` is the whole of it."""

import errno
import json
import logging
import sys
import warnings
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import sentencepiece
import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import TensorboardLogger

from speechbrain_summarymixing.corpora import an4, common_voice, librispeech, mini
from speechbrain_summarymixing.corpora.manifest import check_manifests, read_manifest
from speechbrain_summarymixing.errors import UserError, user_message
from speechbrain_summarymixing.files import write_atomically
from speechbrain_summarymixing.inference.export import export
from speechbrain_summarymixing.inference.language_model import check_tokenizer, load_language_model
from speechbrain_summarymixing.training import curves, data, metrics, shards
from speechbrain_summarymixing.training.asr import ASR
from speechbrain_summarymixing.training.config import load_hyperparams, route_overrides
from speechbrain_summarymixing.training.processes import (
    first_to_tell,
    join_processes,
    number_of_processes,
    on_main,
)
from speechbrain_summarymixing.training.run_guard import check_output_folder

logger = get_logger(__name__)

# From a corpus to its preparation and the splits it trains, validates and tests on.
CORPORA = {
    "mini": (mini.prepare, ["train"], ["dev"], ["test"]),
    "an4": (an4.prepare, ["train"], ["valid"], ["test"]),
    "librispeech": (
        librispeech.prepare,
        ["train-clean-100", "train-clean-360", "train-other-500"],
        ["dev-clean"],
        ["test-clean", "test-other"],
    ),
    "commonvoice": (common_voice.prepare, ["train"], ["dev"], ["test"]),
}
# Options of a corpus's preparation, from the hyperparameters.
CORPUS_OPTIONS = {
    "mini": {"train": "mini_train_utterances"},
    "commonvoice": {"language": "language"},
}

SCANNED = "shards.json"  # in the output folder: what was found in the shards

# What may differ when a run goes on: how long it trains, how it decodes, how fast it reads.
FREE_SETTINGS = {
    "number_of_epochs",
    "num_workers",
    "ckpt_interval_minutes",
    "nonfinite_patience",
    "valid_batch_size",
    "test_batch_size",
    "test_beam_size",
    "ctc_weight_decode",
    "temperature",
    "max_decode_ratio",
    "lm_folder",
    "lm_weight",
    "lm_temperature",
    "activation_checkpointing",
    "averaged_checkpoints",
    "test_csv",
    "test_splits",
    "tensorboard",
}


def run(argv):
    """Trains, tests and exports a recogniser, as a YAML file and options say.

    Arguments
    ---------
    argv : list of str
        A hyperparameter file, then ``--key value`` for its keys and SpeechBrain's run options.
    """
    with errors_reported():
        hparams, run_opts = start(argv)
        train, valid, tests = manifests(hparams)
        tokenizer = spelling(hparams, train, {**valid, **tests})
        if hparams["lm_folder"] is not None:  # now, not after days of training
            check_tokenizer(
                hparams["lm_folder"], Path(hparams["output_folder"]) / "tokenizer.model"
            )
        brain = ASR(
            modules=hparams["modules"],
            opt_class=hparams["optimizer"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        brain.tokenizer = tokenizer
        brain.train_loggers = train_loggers(hparams)
        fit(brain, hparams, train, valid)
        results = test(brain, hparams, tests)
        if if_main_process():
            export(brain.hparams, results)


def run_tokenizer(argv):
    """Trains a tokenizer on the transcripts of a corpus's training part; argv as in `run`."""
    with errors_reported():
        path, _, overrides = sb.parse_arguments(argv)
        hparams = load_hyperparams(path, overrides)
        if hparams["shards"] is not None:
            texts, _ = shards.scan(shards.urls_of(hparams["shards"]), **limits(hparams))
        else:
            train, _, _ = manifests(hparams)
            texts = [utterance.wrd for rows in train.values() for utterance in rows]
        file = Path(hparams["output_folder"]) / "tokenizer.ckpt"
        data.train_tokenizer(
            texts, file, vocab_size=hparams["vocab_size"], token_type=hparams["token_type"]
        )
        logger.info("%d tokens of %d transcripts: %s", hparams["vocab_size"], len(texts), file)
        print(f"--tokenizer_folder {file.parent}")


@contextmanager
def errors_reported():
    """Tells a `UserError`, or a full disk, once, without a traceback, and exits with status 1."""
    try:
        yield
    except UserError as error:
        _exit(f"error: {user_message(error)}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _exit(
            f"error: no space left to write {error.filename or 'the output folder'}: free some "
            "and run the same command again; it goes on from the newest checkpoint"
        )


def _exit(message):
    sys.exit(message if first_to_tell(message) else 1)


def start(argv):
    """Reads the command line and makes the output folder.

    Arguments
    ---------
    argv : list of str
        As in `run`.

    Returns
    -------
    tuple
        Hyperparameters (dict) and SpeechBrain's run options.

    Raises
    ------
    UserError
        If an option is unknown, or the output folder holds a run with other settings.
    """
    path, run_opts, overrides = sb.parse_arguments(argv)
    routed = route_overrides(path, overrides)
    if run_opts["precision"] == "fp16" and run_opts["device"] == "cpu":
        raise UserError(
            "--precision is fp16, which SpeechBrain has on GPUs alone: take --precision bf16"
        )
    join_processes(run_opts)
    hparams = load_hyperparams(path, overrides)
    if run_opts["ckpt_interval_steps"] > 0:
        hparams["ckpt_interval_minutes"] = 0  # SpeechBrain takes one of the two
    folder = Path(hparams["output_folder"])
    chosen = settings(hparams)
    chosen["grad_accumulation_factor"] = run_opts["grad_accumulation_factor"]
    if number_of_processes() > 1:
        chosen["processes"] = number_of_processes()
    check_output_folder(
        folder,
        chosen,
        free=FREE_SETTINGS,
        begun=any(hparams["checkpointer"].checkpoints_dir.glob("CKPT*")),
        overwrite_hint="delete it to start anew",
    )
    sb.create_experiment_directory(folder, hyperparams_to_save=path, overrides=routed)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # SpeechBrain's decoder passes a bool and a float mask
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    return hparams, run_opts


def settings(hparams):
    """The plain values among hyperparameters, and the mixer, by which two runs are compared."""
    chosen = {k: v for k, v in hparams.items() if isinstance(v, (str, int, float, list, tuple))}
    if (mixer := hparams.get("token_mixer")) is not None:
        options = ", ".join(f"{k}={v}" for k, v in getattr(mixer, "keywords", {}).items())
        chosen["token_mixer"] = f"{getattr(mixer, 'func', mixer).__qualname__}({options})"
    return {k: v for k, v in chosen.items() if _is_plain(v)}


def _is_plain(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (str, int, float))


def manifests(hparams):
    """Prepares the corpus, or reads the CSV files, that the hyperparameters name.

    Arguments
    ---------
    hparams : dict

    Returns
    -------
    tuple of dict
        Training, validation and test sets: from a set's name to its list of utterances.

    Raises
    ------
    UserError
        If the corpus is unknown, or only some of the three CSV files are given.
    """
    on_shards = hparams["shards"] is not None  # then there is no training set
    parts = ("train", "valid", "test")
    csvs = [hparams[f"{part}_csv"] for part in parts]
    if on_shards and csvs[0]:
        raise UserError(f"--shards and --train_csv {csvs[0]} are both given: give one of them")
    root = hparams["data_folder"]
    if any(csvs):
        if not all(csvs[on_shards:]):
            raise UserError(
                f"--train_csv, --valid_csv and --test_csv are {', '.join(map(str, csvs))}: "
                "give all three (with --shards the latter two), or none and a --corpus"
            )
        return tuple(
            {Path(csv).stem: read_manifest(csv, data_root=root) for csv in names(value)}
            for value in csvs
        )
    corpus = hparams["corpus"]
    if corpus not in CORPORA:
        raise UserError(
            f"--corpus is {corpus}, but must be one of {', '.join(CORPORA)}: "
            "for another corpus give --train_csv, --valid_csv and --test_csv"
        )
    prepare, *defaults = CORPORA[corpus]
    splits = [names(hparams[f"{part}_splits"]) or default for part, default in zip(parts, defaults)]
    if on_shards:
        splits[0] = []
    options = {name: hparams[key] for name, key in CORPUS_OPTIONS.get(corpus, {}).items()}
    every = list(dict.fromkeys(name for part in splits for name in part))
    paths = on_main(prepare, root, hparams["manifest_folder"], splits=every, **options)
    return tuple({name: read_manifest(paths[name]) for name in part} for part in splits)


def names(value):
    """Returns a list of names from a list or from text such as "dev-clean,dev-other"."""
    if value is None:
        return []
    parts = value if isinstance(value, (list, tuple)) else str(value).split(",")
    return [str(part).strip() for part in parts if str(part).strip()]


def spelling(hparams, train, others):
    """Checks all manifests in one report, and trains the tokenizer or takes a trained one.

    Arguments
    ---------
    hparams : dict
    train, others : dict
        From a set's name to its list of utterances.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        If utterances cannot be used, or vocab_size does not fit the text or the tokenizer.
    """
    if hparams["shards"] is not None:
        return shard_spelling(hparams, others)
    texts = [utterance.wrd for rows in train.values() for utterance in rows]
    path = Path(hparams["output_folder"]) / "tokenizer.model"
    tokenizer = None
    if hparams["tokenizer_folder"] is not None:
        tokenizer = data.take_tokenizer(
            hparams["tokenizer_folder"], path, vocab_size=hparams["vocab_size"]
        )
    warnings = on_main(
        check_manifests,
        {**train, **others},
        **limits(hparams),
        spell=data.unspellable(texts, tokenizer),
        training_splits=tuple(train),
    )
    for warning in warnings:
        logger.warning(warning)
    if tokenizer is not None:
        return tokenizer
    options = {"vocab_size": hparams["vocab_size"], "token_type": hparams["token_type"]}
    on_main(data.train_tokenizer, texts, path, **options)
    return data.train_tokenizer(texts, path, **options)


def shard_spelling(hparams, others):
    """As `spelling`, where training is on shards, which are read for it once in a run's life.

    Arguments
    ---------
    hparams : dict
    others : dict
        From each set that is not on shards to its list of utterances.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        As `spelling`.
    """
    folder = Path(hparams["output_folder"])
    path, size = folder / "tokenizer.model", hparams["vocab_size"]
    urls = shards.urls_of(hparams["shards"])

    def train():
        if scanned_amount(hparams) is None or not path.is_file():
            texts, amount = shards.scan(urls, **limits(hparams))
            data.train_tokenizer(texts, path, vocab_size=size, token_type=hparams["token_type"])
            found = {"settings": scan_settings(hparams), "amount": asdict(amount)}
            write_atomically(folder / SCANNED, json.dumps(found) + "\n")

    if hparams["tokenizer_folder"] is not None:
        tokenizer = data.take_tokenizer(hparams["tokenizer_folder"], path, vocab_size=size)
    else:
        on_main(train)
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    on_main(
        check_manifests,
        others,
        **limits(hparams),
        spell=data.unspellable([], tokenizer),
        training_splits=(),
    )
    return tokenizer


def scan_settings(hparams):
    """What the scan of shards, and the tokenizer trained on it, depend on."""
    return {key: str(hparams[key]) for key in ("shards", "vocab_size", "token_type")}


def scanned_amount(hparams):
    """Returns the `shards.Amount` that a scan has found and left in the output folder, or None."""
    file = Path(hparams["output_folder"]) / SCANNED
    if not file.is_file():
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    fits = found["settings"] == scan_settings(hparams)
    return shards.Amount(**found["amount"]) if fits else None


def limits(hparams):
    """Shortest and longest sensible duration, in seconds."""
    return {key: hparams[key] for key in ("min_seconds", "max_seconds")}


def train_loggers(hparams):
    """Returns SpeechBrain's text logger and, where hparams["tensorboard"], TensorBoard's.

    Raises
    ------
    UserError
        If TensorBoard is asked for and not installed.
    """
    if not hparams["tensorboard"]:
        return [hparams["train_logger"]]
    try:
        tensorboard = TensorboardLogger(save_dir=f"{hparams['output_folder']}/tensorboard")
    except ImportError as error:
        raise UserError(
            "--tensorboard True needs TensorBoard, which is not installed: "
            'pip install "speechbrain-summarymixing[tensorboard]"'
        ) from error
    return [hparams["train_logger"], tensorboard]


def fit(brain, hparams, train, valid):
    """Trains, or goes on training, on the sets ``train``, and validates on ``valid``."""
    if hparams["shards"] is not None:
        dataset, options = shard_loading(brain, hparams)
    else:
        dataset = make_dataset(brain, hparams, train, augment=hparams["wav_augment"])
        options = data.train_loader_options(
            dataset,
            **batch_limits(hparams),
            num_buckets=hparams["num_buckets"],
            seed=hparams["seed"],
            num_workers=hparams["num_workers"],
        )
    brain.fit(
        hparams["epoch_counter"],
        dataset,
        make_dataset(brain, hparams, valid),
        train_loader_kwargs=options,
        valid_loader_kwargs=eval_options(hparams, "valid"),
    )


def batch_limits(hparams):
    """Audio in one batch, in seconds, and utterances, at most."""
    return {key: hparams[key] for key in ("batch_seconds", "max_batch_size")}


def shard_loading(brain, hparams):
    """Makes the training dataset of shards, which the brain comes to know, and loader options.

    Raises
    ------
    UserError
        If the length of an epoch is not known, or there are too few shards.
    """
    urls, processes = shards.urls_of(hparams["shards"]), number_of_processes()
    steps = hparams["shard_epoch_steps"]
    if steps is None:
        amount = scanned_amount(hparams) or shards.amount_beside(urls)
        if amount is None:
            raise UserError(
                f"no shards.json lies beside {urls[0]}, so the length of an epoch is not known: "
                "give --shard_epoch_steps"
            )
        steps = shards.epoch_steps(amount, **batch_limits(hparams), processes=processes)
    elif steps < 1:
        raise UserError(f"--shard_epoch_steps is {steps}, but must be 1 or more")
    options = shards.train_loader_options(
        urls, steps=steps, num_workers=hparams["num_workers"], processes=processes
    )
    spell = data.unspellable([], brain.tokenizer)
    brain.shard_reader = shards.ShardReader(
        urls,
        brain.tokenizer,
        **batch_limits(hparams),
        num_buckets=hparams["num_buckets"],
        seed=hparams["seed"],
        check=partial(shards.unfit, **limits(hparams), spell=spell),
        rank=brain.rank if processes > 1 else 0,
        processes=processes,
        **reading(hparams),
        augment=hparams["wav_augment"],
    )
    return brain.shard_reader.dataset(), options


def reading(hparams):
    """How audio is read, for training and evaluation alike."""
    return {
        "sample_rate": hparams["sample_rate"],
        "whole_samples": hparams["compute_features"].samples,
    }


def make_dataset(brain, hparams, sets, augment=None):
    """Makes one dataset of some sets of utterances, the shortest first."""
    utterances = [utterance for rows in sets.values() for utterance in rows]
    return data.make_dataset(
        sorted(utterances, key=lambda u: u.duration),
        brain.tokenizer,
        **reading(hparams),
        augment=augment,
    )


def eval_options(hparams, part):
    """Loader options for "valid" or "test"."""
    return data.eval_loader_options(
        batch_size=hparams[f"{part}_batch_size"], num_workers=hparams["num_workers"]
    )


def test(brain, hparams, tests):
    """Decodes the test sets; writes ``wer_<set>.txt`` and ``results.json``.

    Arguments
    ---------
    brain : ASR
    hparams : dict
    tests : dict
        From a set's name to its list of utterances.

    Returns
    -------
    dict
        What ``results.json`` holds: WER in percent of each set, its 95% bootstrap interval and
        by utterance length; number of parameters; seconds of training.
    """
    folder = Path(hparams["output_folder"])
    results = {"test": {}}
    if hparams["lm_folder"] is not None:
        hparams["scorer"].add_language_model(
            load_language_model(hparams["lm_folder"]),
            hparams["lm_weight"],
            hparams["lm_temperature"],
        )
    for name, rows in tests.items():
        brain.evaluate(
            make_dataset(brain, hparams, {name: rows}),
            test_loader_kwargs=eval_options(hparams, "test"),
        )
        scores = brain.wer_stats.scores
        results["test"][name] = {
            "WER": metrics.word_error_rate(scores),
            "WER_95": metrics.bootstrap_interval(scores),
            "WER_by_seconds": metrics.word_error_rate_by_length(
                scores, {row.ID: row.duration for row in rows}
            ),
            "utterances": len(scores),
        }
        if if_main_process():
            with open(folder / f"wer_{name}.txt", "w", encoding="utf-8") as file:
                brain.wer_stats.write_stats(file)
            logger.info("%s: WER %.2f%%", name, results["test"][name]["WER"])
    results["parameters"] = sum(p.numel() for p in hparams["model"].parameters())
    results["processes"] = number_of_processes()
    results["threads"] = torch.get_num_threads()
    results["device"] = brain.device
    if if_main_process():
        last = curves.read(folder)[-1]  # the tested checkpoints may be of earlier epochs
        results["train_seconds"] = float(last["train_seconds"])
        results["optimizer_steps"] = int(last["steps"])
        write_atomically(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results
