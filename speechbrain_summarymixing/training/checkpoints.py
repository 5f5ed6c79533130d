"""Checkpoints that survive a kill at any instant, and a full disk."""

import errno
import logging
import math
import os
import shutil
import time

import torch
import yaml
from speechbrain.utils.checkpoints import (
    Checkpoint,
    Checkpointer,
    average_checkpoints,
    ckpt_recency,
)
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.logger import get_logger

from speechbrain_summarymixing.errors import UserError, reason_of

# Folders that begin so are no checkpoints to SpeechBrain, which looks for "CKPT...".
SAVING = ".saving-"
DELETING = ".deleting-"

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# torch.save writes in C++, and its error carries no errno.
TORCH_WRITE_ERRORS = ("PytorchStreamWriter failed", "inline_container", "file write failed")

logger = get_logger(__name__)


class CrashSafeCheckpointer(Checkpointer):
    """SpeechBrain's checkpointer, with checkpoints that are either whole or absent.

    A checkpoint is written into a hidden folder and renamed when it is whole, and renamed away
    before it is deleted. What a killed process leaves is removed at the next save, not earlier:
    another process may be evaluating beside the training. Under DDP the main process alone
    saves and deletes, the savers included, and a failure is raised on every process.

    Arguments
    ---------
    checkpoints_dir, recoverables, custom_load_hooks, custom_save_hooks, allow_partial_load
        As for ``speechbrain.utils.checkpoints.Checkpointer``.
    """

    def add_recoverables(self, recoverables):
        """Registers objects to save and load.

        Arguments
        ---------
        recoverables : mapping
            From names to objects.
        """
        super().add_recoverables(recoverables)
        for name in recoverables:  # else a missing file is told as KeyError
            self.optional_recoverables.setdefault(name, False)

    def save_checkpoint(self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO):
        """Saves a checkpoint whole, or not at all.

        Arguments
        ---------
        meta : dict or None
            Plain numbers and strings to find the checkpoint by.
        end_of_epoch : bool
        name : str or None
            A checkpoint that has this name already is replaced; None: the time is the name.
        verbosity : int
            Level of the log message.

        Returns
        -------
        speechbrain.utils.checkpoints.Checkpoint
            None on processes other than the main one.

        Raises
        ------
        UserError
            If there is no room on the disk; earlier checkpoints are left as they were.
        """
        saved, failure = self._save_on_main(dict(meta or {}), end_of_epoch, name, verbosity)
        if failure is not None:
            raise UserError(failure)
        return saved if if_main_process() else None

    def save_and_keep_only(self, *args, importance_keys=(), **kwargs):
        """Saves a checkpoint, then deletes the least important ones.

        Arguments
        ---------
        *args, importance_keys, **kwargs
            As for ``speechbrain.utils.checkpoints.Checkpointer.save_and_keep_only``.

        Raises
        ------
        UserError
            If there is no room on the disk; earlier checkpoints are left as they were.
        """
        # SpeechBrain appends to the list, which as a default argument grows at every save.
        super().save_and_keep_only(*args, importance_keys=list(importance_keys), **kwargs)

    @main_process_only
    def delete_checkpoints(
        self,
        *,
        num_to_keep=1,
        min_keys=None,
        max_keys=None,
        importance_keys=(ckpt_recency,),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        """Deletes the least important checkpoints.

        Arguments
        ---------
        num_to_keep, min_keys, max_keys, importance_keys, ckpt_predicate, verbosity
            As for ``speechbrain.utils.checkpoints.Checkpointer.delete_checkpoints``.

        Raises
        ------
        ValueError
            If num_to_keep is negative.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep is {num_to_keep}: it must be 0 or more")
        orders = [
            *({"min_key": key} for key in min_keys or ()),
            *({"max_key": key} for key in max_keys or ()),
            *({"importance_key": key} for key in importance_keys),
        ]
        found, kept = {}, set()
        for order in orders:
            ranked = self.find_checkpoints(**order, ckpt_predicate=ckpt_predicate)
            found.update({checkpoint.path: checkpoint for checkpoint in ranked})
            kept.update(checkpoint.path for checkpoint in ranked[:num_to_keep])
        for checkpoint in sorted(found.values(), key=ckpt_recency):
            if checkpoint.path not in kept:
                _remove(checkpoint.path)
                logger.log(verbosity, f"Deleted checkpoint in {checkpoint.path}")

    def load_checkpoint(self, checkpoint):
        """Loads a checkpoint.

        Arguments
        ---------
        checkpoint : speechbrain.utils.checkpoints.Checkpoint

        Raises
        ------
        UserError
            If it does not load: nothing is ever trained or tested from half-loaded weights.
        """
        try:
            super().load_checkpoint(checkpoint)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(
                f"{_unloadable(checkpoint.path, error)} If the model or its settings were changed "
                "since, take another --output_folder."
            ) from error

    def average(self, checkpoints, name):
        """Returns the mean of a recoverable's weights over checkpoints.

        Arguments
        ---------
        checkpoints : list of speechbrain.utils.checkpoints.Checkpoint
        name : str
            Of the recoverable.

        Raises
        ------
        UserError
            If one of them does not load.
        """

        def load(file, map_location):
            try:
                return torch.load(file, map_location=map_location, weights_only=True)
            except MemoryError:
                raise
            except Exception as error:
                raise UserError(_unloadable(file.parent, error)) from error

        return average_checkpoints(checkpoints, name, parameter_loader=load)

    @main_process_only
    def _save_on_main(self, meta, end_of_epoch, name, verbosity):
        """Returns the checkpoint and None, or None and what went wrong: for all processes."""
        yaml.safe_dump(meta)  # what cannot be read back would make every checkpoint unlistable
        try:
            self._sweep()
            meta = {"unixtime": self._later_than_all(), **meta}
            staged = super().save_checkpoint(meta, end_of_epoch, name, verbosity=logging.NOTSET)
            saved = self._publish(staged)
        except BaseException as error:
            self._sweep()
            if isinstance(error, UserError):
                return None, str(error)
            if _means_full_disk(error):
                return None, self._full_disk_message(error)
            raise
        kind = "end-of-epoch" if end_of_epoch else "intra-epoch"
        logger.log(verbosity, f"Saved an {kind} checkpoint in {saved.path}")
        return saved, None

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(SAVING + path.name)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(SAVING + path.name)

    def _publish(self, staged):
        for folder, _, files in os.walk(staged.path):
            for file in files:
                _flush(os.path.join(folder, file))
            _flush(folder)
        path = staged.path.with_name(staged.path.name.removeprefix(SAVING))
        replaced = path.with_name(f"{path.name}+replaced")  # still found, if we are killed here
        if path.exists():
            _remove(replaced)
            os.rename(path, replaced)
        os.rename(staged.path, path)
        _flush(self.checkpoints_dir)
        _remove(replaced)
        files = {name: path / file.name for name, file in staged.paramfiles.items()}
        return Checkpoint(path, staged.meta, files)

    def _sweep(self):
        for prefix in (SAVING, DELETING):
            for leftover in self.checkpoints_dir.glob(f"{prefix}CKPT*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _later_than_all(self):
        """Time of a save: with a clock set back, the newest would be taken for the oldest."""
        times = [checkpoint.meta["unixtime"] for checkpoint in self.list_checkpoints()]
        return max([time.time(), *(math.nextafter(t, math.inf) for t in times)])

    def _full_disk_message(self, error):
        free = shutil.disk_usage(self.checkpoints_dir).free / 1e9
        newest = self.find_checkpoint()
        resume = f"goes on from {newest.path.name}" if newest else "starts at the beginning"
        return (
            f"{self.checkpoints_dir}: no room for a checkpoint ({reason_of(error)}; {free:.2f} GB "
            "are free on this disk). The checkpoints before it are whole. Free some space, or "
            "raise your quota or file size limit, and run the same command again: it "
            f"{resume}."
        )

    @staticmethod
    def _construct_checkpoint_objects(checkpoint_dirs):
        checkpoints = []
        for path in checkpoint_dirs:
            try:
                (checkpoint,) = Checkpointer._construct_checkpoint_objects([path])
                if not {"unixtime", "end-of-epoch"} <= set(checkpoint.meta or ()):
                    raise ValueError("CKPT.yaml is not whole")
            except Exception as error:
                if path.exists():
                    raise UserError(_unloadable(path, error)) from error
            else:  # one that has just gone was deleted by a training beside this process
                checkpoints.append(checkpoint)
        return checkpoints


def _remove(path):
    if path.exists():
        doomed = path.with_name(DELETING + path.name)
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _means_full_disk(error):
    if isinstance(error, OSError):
        return error.errno in FULL_DISK
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in TORCH_WRITE_ERRORS
    )


def _unloadable(path, error):
    others = sorted(p.name for p in path.parent.glob("CKPT*") if p != path)
    resume = f"goes on from another ({', '.join(others)})" if others else "starts anew"
    return (
        f"{path}: this checkpoint cannot be loaded ({reason_of(error)}). If its files are damaged, "
        f"delete this folder and run the same command again: it {resume}."
    )
