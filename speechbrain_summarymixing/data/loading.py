"""From utterances to batches: datasets and loaders."""

import os
import signal
import threading
from functools import partial

from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import DynamicBatchSampler

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple


def waveform_of(key, source, *, sample_rate, whole_samples, augment=None, name=None):
    """Reads and augments the audio of an utterance.

    Arguments
    ---------
    key : str
        What the augmentation is drawn by: the utterance's ID.
    source : str, Path or bytes
        Path or content of an audio file.
    sample_rate : int
        In Hz; audio of another rate is resampled.
    whole_samples : int
        Waveforms are zero-padded to a multiple of this: one frame of the encoder.
    augment : augment.DrawnByUtterance or None
        For training.
    name : str or None
        What errors call it; None: its path.

    Returns
    -------
    torch.Tensor
        (T,), float32.
    """
    waveform = read_audio(source, sample_rate, name=name)
    if augment is not None:
        waveform = augment(waveform, key)
    return pad_to_multiple(waveform, whole_samples)


def make_dataset(utterances, provide_targets, target_names, **reading):
    """Makes the dataset that reads and augments utterances, and tells what to learn of them.

    Arguments
    ---------
    utterances : list of Utterance
        From `corpora.manifest.read_manifest`.
    provide_targets : callable
        From an utterance's wrd to a tuple of targets, such as `spelled`.
    target_names : sequence of str
        Of these targets.
    **reading
        As for `waveform_of`.

    Returns
    -------
    DynamicItemDataset
        With id, duration (seconds), sig (T,), wrd and the targets.
    """

    def targets(wrd):
        yield from provide_targets(wrd)

    names = list(target_names)
    rows = {u.ID: {"duration": u.duration, "wav": u.wav, "wrd": u.wrd} for u in utterances}
    dataset = DynamicItemDataset(rows)
    dataset.add_dynamic_item(partial(waveform_of, **reading), takes=["id", "wav"], provides="sig")
    dataset.add_dynamic_item(targets, takes="wrd", provides=names)
    dataset.set_output_keys(["id", "duration", "sig", "wrd", *names])
    return dataset


def train_loader_options(dataset, *, batch_seconds, max_batch_size, num_buckets, seed, num_workers):
    """Options of a training loader: random batches of utterances of like length.

    Arguments
    ---------
    dataset : DynamicItemDataset
    batch_seconds : float
        Audio in one batch, at most, in seconds; a longer utterance is a batch alone.
    max_batch_size : int
        Utterances in one batch, at most.
    num_buckets : int
        Number of length classes.
    seed, num_workers : int

    Returns
    -------
    dict
    """
    sampler = DynamicBatchSampler(
        dataset,
        batch_seconds,
        num_buckets=num_buckets,
        length_func=lambda row: row["duration"],
        shuffle=True,
        batch_ordering="random",
        max_batch_ex=max_batch_size,
        seed=seed,
    )
    return {"batch_sampler": sampler, **worker_options(num_workers)}


def eval_loader_options(*, batch_size, num_workers):
    """Options of a loader for validation and test."""
    return {"batch_size": batch_size, **worker_options(num_workers)}


def worker_options(num_workers):
    """Workers leave Ctrl-C and SIGTERM to the main process, which saves before it stops."""
    options = {"num_workers": num_workers, "collate_fn": PaddedBatch}
    if num_workers > 0:
        options["worker_init_fn"] = _leave_signals_to_the_main_process
    return options


def _leave_signals_to_the_main_process(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on a Mac
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end_when_the_main_process_says_so():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass  # of SLURM, which sends it to all processes
    os._exit(0)
