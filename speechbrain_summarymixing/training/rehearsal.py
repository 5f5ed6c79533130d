"""A run's rehearsal, ``--check True``: whether it fits, and how long it will take."""

import shutil
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy
import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.processes import number_of_processes, peak_resident_bytes

logger = get_logger(__name__)

# of a run, what its rehearsal does not need, or must not write to
LEFT = shutil.ignore_patterns(
    *("save", "pretrained", "tensorboard", "wandb"),
    *("log.txt", "train_log.txt", "env.log", ".lock", "*.new"),
)


def copy_run(folder, copy):
    """Gives a rehearsal what it must know of a run that has begun, in a folder of its own.

    Arguments
    ---------
    folder : str or Path
        The run's output folder, which need not exist.
    copy : str or Path
        Made anew; its checkpoints are the run's own.
    """
    folder, copy = Path(folder), Path(copy)
    shutil.rmtree(copy, ignore_errors=True)
    if not folder.is_dir():
        return
    shutil.copytree(folder, copy, ignore=LEFT)
    if (folder / "save").is_dir():
        (copy / "save").symlink_to((folder / "save").absolute())


@contextmanager
def removed(copy):
    """Removes a rehearsal's folder when the block ends, and those around it that it made.

    Arguments
    ---------
    copy : str or Path
    """
    made = [folder for folder in Path(copy).absolute().parents if not folder.exists()]
    try:
        yield
    finally:
        shutil.rmtree(copy, ignore_errors=True)
        with suppress(OSError):  # something else is in there by now
            for folder in made:
                folder.rmdir()


def rehearse(brain, train, valid):
    """Takes a training and a validation step of the longest batches, and tells memory and hours.

    The weights that were stepped are those of ``brain`` alone: nothing is saved.

    Arguments
    ---------
    brain : ExperimentBrain
    train, valid : tuple
        Dataset and options of its loader, as `Task.train_loading` and `Task.eval_loading` return
        them.
    """
    brain.expect(train[0], valid[0], train[1])
    brain.on_fit_start()
    counter, accumulation = brain.hparams.epoch_counter, brain.grad_accumulation_factor
    epochs = max(0, brain.hparams.number_of_epochs - counter.current + (brain.step > 0))
    counter.current = max(1, counter.current)
    brain.on_stage_start(sb.Stage.TRAIN, counter.current)
    brain.modules.train()
    brain.zero_grad()

    def learn(batch):
        brain.step = accumulation  # so that it steps
        brain.fit_batch(batch)

    def evaluate(batch):
        with torch.no_grad():
            brain.evaluate_batch(batch, sb.Stage.VALID)

    training = _measure("training", brain, learn, *train)
    brain.on_stage_start(sb.Stage.VALID, counter.current)
    brain.modules.eval()
    validation = _measure("validation", brain, evaluate, *valid)
    if brain.measured:
        brain.validation_metric()
    # the processes share the batches of training; those of validation are shared out already
    seconds = training / number_of_processes() + validation
    logger.info("peak memory    %s", _peak(brain.device))
    logger.info(
        "time           about %.2f h for %d epochs, %.0f s to train and %.0f s to validate each",
        *(epochs * seconds / 3600, epochs, seconds - validation, validation),
    )
    logger.info("Checked: nothing was trained, and nothing written to the output folder")


def _measure(what, brain, run, dataset, options):
    """Runs the longest batches and tells them; returns the seconds of an epoch of all batches."""
    if "batch_sampler" not in options:  # shards, whose items are batches as they come
        return _seconds(brain, run, next(iter(dataset))) * options["looped_nominal_epoch"]
    most, longest, whole = (0, None), (0, None), 0.0
    lengths = numpy.asarray(dataset.lengths())
    for indices in options["batch_sampler"]:
        length = lengths[indices].max()
        padded = length * len(indices)
        most = max(most, (padded, indices))
        longest = max(longest, (length, indices))
        whole += padded
    if most[1] is None:  # of the others that validate
        return 0.0
    began = time.perf_counter()
    batch = options["collate_fn"]([dataset[index] for index in most[1]])
    reading = time.perf_counter() - began
    if longest[1] != most[1]:  # may need more memory
        run(options["collate_fn"]([dataset[index] for index in longest[1]]))
    seconds = _seconds(brain, run, batch)
    workers = options["num_workers"]
    taken = max(seconds, reading / workers) if workers else seconds + reading
    logger.info(
        "%-14s its longest batch of %d items: %.2f s, and %.2f s to read",
        *(what, len(most[1]), seconds, reading),
    )
    return taken * float(whole / most[0])


def _seconds(brain, run, batch):
    run(batch)  # whatever is done once
    wait = torch.cuda.synchronize if "cuda" in brain.device else int
    wait()
    began = time.perf_counter()
    run(batch)
    wait()
    return time.perf_counter() - began


def _peak(device):
    if "cuda" not in device:
        return f"{peak_resident_bytes() / 1e9:.2f} GB, resident, of this process"
    there = torch.cuda.get_device_properties(device).total_memory
    peak = torch.cuda.max_memory_allocated(device)
    return f"{peak / 1e9:.2f} GB of {there / 1e9:.0f} GB on {device}"
