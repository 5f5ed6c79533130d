"""The life of an experiment, step by step; `run` is the whole of it."""

import errno
import json
import logging
import signal
import sys
import warnings
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import if_main_process, infer_device
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.corpora.shards import urls_of
from speechbrain_summarymixing.data import shards, tokens
from speechbrain_summarymixing.data.sets import has_begun, limits, manifests
from speechbrain_summarymixing.errors import UserError, reason_of, user_message
from speechbrain_summarymixing.files import locked, write_atomically, write_table
from speechbrain_summarymixing.processes import (
    check_device,
    first_to_tell,
    join_processes,
    number_of_processes,
    on_main,
)
from speechbrain_summarymixing.training import curves, plan, rehearsal
from speechbrain_summarymixing.training.brain import Interrupted
from speechbrain_summarymixing.training.config import (
    load_hyperparams,
    options_of,
    route_overrides,
    value_of,
)
from speechbrain_summarymixing.training.identity import (
    FREE_SETTINGS,
    SETTINGS_FILE,
    check_output_folder,
    check_utterances,
    settings,
)
from speechbrain_summarymixing.training.loggers import train_loggers
from speechbrain_summarymixing.training.options import parse_options

logger = get_logger(__name__)

ERRORS = ("ID", "errors", "total")  # columns of errors_<set>.csv


def run(argv, task):
    """Trains, tests and exports a model, as a YAML file and options say.

    Arguments
    ---------
    argv : list of str
        A hyperparameter file, then ``--key value`` for its keys and SpeechBrain's run options.
    task : type
        An `ExperimentBrain` of `tasks`: what the model learns.

    ``--test_only`` needs no training set: tokens or classes are those of the output folder.
    """
    with errors_reported(), ExitStack() as until_the_end:
        hparams, run_opts = start(argv, until_the_end, task)
        until_the_end.enter_context(_loss_of_folder_told(hparams["output_folder"]))
        if hparams.get("shards") is not None and not task.reads_shards:
            raise UserError("--shards is for recognisers: give --train_csv or a --corpus")
        training, check = not run_opts["test_only"], hparams["check"]
        train, valid, tests = task.sets(hparams, training=training)
        targets = task.prepare(hparams, train, {**valid, **tests})
        if training:
            check_utterances(hparams["output_folder"], train, valid, begun=has_begun(hparams))
        brain = task(
            modules=hparams["modules"],
            opt_class=hparams["optimizer"],
            hparams=hparams,
            run_opts=run_opts,
            checkpointer=hparams["checkpointer"],
        )
        brain.targets = targets
        brain.train_loggers = train_loggers(hparams) if training and not check else ()
        brain.system = run_opts["param_file"]
        if training:
            fit(brain, hparams, train, valid)
        if check:
            return
        if brain.debug:  # SpeechBrain looks at so many batches of each set alone
            tests = {name: rows[: brain.debug_batches] for name, rows in tests.items()}
        results = test(brain, hparams, tests)
        if if_main_process():
            brain.export(results)


def run_tokenizer(argv):
    """Trains a tokenizer on the transcripts of a corpus's training part; argv as in `run`."""
    with errors_reported():
        path, _, overrides = parse_options(argv)
        hparams = load_hyperparams(path, overrides)
        if hparams["shards"] is not None:
            texts, _ = shards.scan(urls_of(hparams["shards"]), **limits(hparams))
        else:
            train, _, _ = manifests(hparams)
            texts = [utterance.wrd for rows in train.values() for utterance in rows]
        file = Path(hparams["output_folder"]) / "tokenizer.ckpt"
        tokens.train_tokenizer(
            texts, file, vocab_size=hparams["vocab_size"], token_type=hparams["token_type"]
        )
        logger.info("%d tokens of %d transcripts: %s", hparams["vocab_size"], len(texts), file)
        print(f"--tokenizer_folder {file.parent}")


@contextmanager
def errors_reported():
    """Tells a `UserError`, or a full disk, once, without a traceback, and exits with status 1.

    After Ctrl-C or SIGTERM the status is the shell's for it, 130 or 143.
    """
    try:
        yield
    except Interrupted as stop:
        if first_to_tell(str(stop)):
            print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        if first_to_tell("stopped"):
            print("stopped at once: the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
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


@contextmanager
def _loss_of_folder_told(folder):
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch's writer has no kind of its own
        if (Path(folder) / SETTINGS_FILE).exists():
            raise
        raise UserError(
            f"{folder}: was deleted or moved while this run worked in it ({reason_of(error)}): "
            "move it back, or run the same command again to start anew"
        ) from error


def start(argv, until_the_end=None, task=None):
    """Reads the command line and makes the output folder.

    Arguments
    ---------
    argv : list of str
        As in `run`.
    until_the_end : contextlib.ExitStack or None
        Given, no other process can start in this output folder before it is closed.
    task : type or None
        Given, the file must be one of its.

    Returns
    -------
    tuple
        Hyperparameters (dict) and SpeechBrain's run options.

    Raises
    ------
    UserError
        If an option is unknown, or the output folder holds a run with other settings or is in use,
        or the file is of another task.
    """
    path, run_opts, overrides = parse_options(argv)
    if task is not None and (given := value_of(path, "task", overrides)) not in (None, task.name):
        raise UserError(
            f"{path}: is a system for the task {given}, not for {task.name}, which this train.py "
            "trains: give it to the one of its recipe, or to summarymixing train"
        )
    if run_opts["debug"]:  # nothing of a real run is touched
        overrides["output_folder"] = value_of(path, "output_folder", overrides) + "-debug"
    run_folder = None
    if overrides.get("check") is True:
        run_folder = value_of(path, "output_folder", overrides)
        overrides["output_folder"] = f"{run_folder}{plan.CHECK}"
    routed = route_overrides(path, overrides)
    _check_run_options(run_opts)
    if run_opts["device"] == "cuda":  # of several processes each would take the first GPU
        run_opts = replace(run_opts, device=infer_device())
    join_processes(run_opts)
    if run_folder is not None:
        on_main(rehearsal.copy_run, run_folder, overrides["output_folder"])
        if until_the_end is not None and if_main_process():
            until_the_end.enter_context(rehearsal.removed(overrides["output_folder"]))
    hparams = load_hyperparams(path, overrides)
    if run_opts["ckpt_interval_steps"] > 0:
        hparams["ckpt_interval_minutes"] = 0  # SpeechBrain takes one of the two
    folder = Path(hparams["output_folder"])
    chosen = settings(hparams)
    chosen["grad_accumulation_factor"] = run_opts["grad_accumulation_factor"]
    if "max_grad_norm" in run_opts.overridden_args:  # which SpeechBrain takes for its own
        chosen["max_grad_norm"] = hparams["max_grad_norm"] = run_opts["max_grad_norm"]
    if number_of_processes() > 1:
        chosen["processes"] = number_of_processes()
    if until_the_end is not None and if_main_process():
        _lock(folder, until_the_end)
    check_output_folder(
        folder,
        chosen,
        free=FREE_SETTINGS,
        new_with_default=options_of(path) - overrides.keys(),
        begun=has_begun(hparams),
        overwrite_hint="delete it to start anew",
        name=run_folder,
    )
    sb.create_experiment_directory(folder, hyperparams_to_save=path, overrides=routed)
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # SpeechBrain's decoder passes a bool and a float mask
    warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
    return hparams, run_opts


def _lock(folder, until_the_end):
    def refusal(who):
        return (
            f"{folder}: {who} works in this output folder: wait until it has ended, or take "
            "another --output_folder"
        )

    try:
        until_the_end.enter_context(locked(folder / ".lock", refusal))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be used as the output folder ({error.strerror}): take another "
            "--output_folder"
        ) from error


def _check_run_options(run_opts):
    device = run_opts["device"] or infer_device()
    check_device(device)
    for option in ("precision", "eval_precision"):
        if run_opts[option] == "fp16" and device == "cpu":
            raise UserError(
                f"--{option} is fp16, which SpeechBrain has on GPUs alone: take --{option} bf16"
            )
    if run_opts["grad_accumulation_factor"] < 1:
        raise UserError(
            f"--grad_accumulation_factor is {run_opts['grad_accumulation_factor']}, but must be 1 "
            "or more"
        )


def fit(brain, hparams, train, valid):
    """Trains, or goes on training, on the sets ``train``, and validates on ``valid``.

    With hparams["check"] it only tries what this would be.
    """
    dataset, options = brain.train_loading(train)
    valid_set, valid_options = brain.eval_loading("valid", valid)
    if hparams["check"]:
        rehearsal.rehearse(brain, (dataset, options), (valid_set, valid_options))
        return
    brain.fit(
        hparams["epoch_counter"],
        dataset,
        valid_set,
        train_loader_kwargs=options,
        valid_loader_kwargs=valid_options,
    )


def test(brain, hparams, tests):
    """Measures the test sets; writes their details and ``results.json``.

    Arguments
    ---------
    brain : ExperimentBrain
    hparams : dict
    tests : dict
        From a set's name to its list of utterances.

    Returns
    -------
    dict
        What ``results.json`` holds: what the task measures on each set; number of parameters;
        seconds of training.
    """
    folder = Path(hparams["output_folder"])
    results = {"test": {}}
    brain.before_tests()
    for name, rows in tests.items():
        dataset, options = brain.eval_loading("test", {name: rows})
        evaluate = partial(brain.evaluate, dataset, test_loader_kwargs=options)
        evaluate()
        scores = results["test"][name] = brain.scores(rows)
        if if_main_process():
            brain.write_details(name, rows)
            write_table(folder / f"errors_{name}.csv", ERRORS, brain.errors(rows))
            measured = [key for key in scores if f"{key}_95" in scores]
            told = ", ".join(f"{key} {scores[key]:.2f}{brain.unit}" for key in measured)
            logger.info("%s: %s", name, told)
        scores.update(brain.scores_anew(evaluate, rows))
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
