"""From utterances to batches: datasets and loaders."""

import os
import signal
import threading

import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.sampler import DynamicBatchSampler
from torch.utils.data import Dataset

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple

MOST_WORKERS = 8
BATCHES_AHEAD = 4  # that each worker has ready


def waveform_of(
    key,
    source,
    *,
    sample_rate,
    whole_samples,
    augment=None,
    name=None,
    **part,
):
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
    **part
        Of the file: start, stop and channel, as for `read_audio`.

    Returns
    -------
    torch.Tensor
        (T,), float32.
    """
    waveform = read_audio(source, sample_rate, name=name, **part)
    if augment is not None:
        waveform = augment(waveform, key)
    return pad_to_multiple(waveform, whole_samples)


class Utterances(Dataset):
    """Utterances, read, augmented and with what to learn of them; workers may be spawned with it.

    An item is a dict of id, duration (seconds), sig (T,), wrd and the targets.

    Arguments
    ---------
    utterances : list of Utterance
        From `corpora.manifest.read_manifest`.
    targets_of : callable
        From an utterance's wrd to a tuple of targets, such as `tokens.spelled`.
    target_names : sequence of str
        Of these targets.
    **reading
        As for `waveform_of`.
    """

    def __init__(self, utterances, targets_of, target_names, **reading):
        self.utterances = list({utterance.ID: utterance for utterance in utterances}.values())
        self.targets_of, self.target_names = targets_of, tuple(target_names)
        self.reading = reading

    def __len__(self):
        """The number of utterances."""
        return len(self.utterances)

    def lengths(self):
        """Seconds of each utterance, a list."""
        return [utterance.duration for utterance in self.utterances]

    def __getitem__(self, index):
        """An utterance, as told above."""
        utterance = self.utterances[index]
        targets = zip(self.target_names, self.targets_of(utterance.wrd), strict=True)
        return {
            "id": utterance.ID,
            "duration": utterance.duration,
            "sig": waveform_of(utterance.ID, utterance.wav, **utterance.part, **self.reading),
            "wrd": utterance.wrd,
            **dict(targets),
        }


def train_loader_options(dataset, *, batch_seconds, max_batch_size, num_buckets, seed, **workers):
    """Options of a training loader: random batches of utterances of like length.

    Arguments
    ---------
    dataset : Utterances
    batch_seconds : float
        Audio in one batch, at most, in seconds; a longer utterance is a batch alone.
    max_batch_size : int
        Utterances in one batch, at most.
    num_buckets : int
        Number of length classes.
    seed : int
    **workers
        As for `worker_options`.

    Returns
    -------
    dict
    """
    sampler = DynamicBatchSampler(
        dataset,
        batch_seconds,
        num_buckets=num_buckets,
        lengths_list=dataset.lengths(),
        shuffle=True,
        batch_ordering="random",
        max_batch_ex=max_batch_size,
        seed=seed,
    )
    return {"batch_sampler": sampler, **worker_options(**workers)}


def eval_loader_options(dataset, *, batch_size, rank=0, processes=1, **workers):
    """Options of a loader for validation and test: each process takes every N-th batch.

    Arguments
    ---------
    dataset : torch.utils.data.Dataset
    batch_size : int
    rank, processes : int
        This process's number, and how many share the work.
    **workers
        As for `worker_options`.

    Returns
    -------
    dict
    """
    indices = list(range(len(dataset)))
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    return {"batch_sampler": batches[rank::processes], **worker_options(**workers)}


def worker_options(num_workers, device="cpu"):
    """Options of any loader: workers that live on, and where there is a GPU pinned memory.

    Workers leave Ctrl-C and SIGTERM to the main process, which saves before it stops.

    Arguments
    ---------
    num_workers : int or None
        As for `number_of_workers`.
    device : str
        That batches go to.

    Returns
    -------
    dict
    """
    count = number_of_workers(num_workers, device)
    options = {"num_workers": count, "collate_fn": PaddedBatch}
    if torch.device(device).type == "cuda":
        options["pin_memory"] = True
    if count > 0:
        # else it draws of training's random numbers, once in a process
        options["generator"] = torch.Generator()
        options["worker_init_fn"] = _leave_signals_to_the_main_process
        options["persistent_workers"] = True
        options["prefetch_factor"] = BATCHES_AHEAD
    return options


def number_of_workers(asked, device):
    """Returns how many processes read for one that trains.

    Arguments
    ---------
    asked : int or None
        None: none on a CPU, which they would share with the training; for a GPU as many as it has
        CPU cores to itself, but 8 at most.
    device : str

    Returns
    -------
    int

    Raises
    ------
    UserError
        If it is no such number.
    """
    if asked is None:
        if torch.device(device).type != "cuda":
            return 0
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 0:
        raise UserError(
            f"--num_workers is {asked!r}, but must be 0 or more, or null: as many as fit"
        )
    return asked


def _leave_signals_to_the_main_process(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on a Mac
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_main_process_says_so, daemon=True).start()


def _end_when_the_main_process_says_so():
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass  # of SLURM, which sends it to all processes
    os._exit(0)
