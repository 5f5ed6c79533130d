"""Devices, and training on several processes: what one does, or finds out, for all.

``torchrun`` starts the processes; each takes other batches, and gradients are averaged.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from speechbrain.utils.distributed import (
    ddp_all_reduce,
    ddp_init_group,
    is_distributed_initialized,
    run_on_main,
)
from torch.nn.parallel import DistributedDataParallel

from speechbrain_summarymixing.errors import UserError, reason_of


def join_processes(run_opts):
    """Joins the processes that ``torchrun`` has started, if it has started this one.

    Arguments
    ---------
    run_opts : mapping
        SpeechBrain's run options, with distributed_backend.

    Raises
    ------
    UserError
        If the backend is unknown or cannot work here.
    """
    try:
        ddp_init_group(run_opts)
    except ValueError as error:
        raise UserError(
            f"--distributed_backend is {run_opts['distributed_backend']}, which does not work here "
            f"({str(error).splitlines()[-1]}): nccl needs a GPU for each process; without, give "
            "--distributed_backend=gloo --device=cpu"
        ) from error


def check_device(device):
    """Makes sure that a device, such as "cuda:1", is one and is there.

    Raises
    ------
    UserError
        If it is not.
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(
            f"--device is {device}, which torch does not know: give cpu, cuda or cuda:1, or leave "
            "it out, which takes a GPU where there is one"
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device is {device}, but torch finds no GPU: leave it out, which takes a GPU where "
            "there is one, or install a torch and a driver for it"
        )
    index = torch.device(device).index
    if kind == "cuda" and index is not None and index >= torch.cuda.device_count():
        raise UserError(
            f"--device is {device}, but torch finds {torch.cuda.device_count()} GPUs: give one "
            f"below cuda:{torch.cuda.device_count()}"
        )
    if kind not in ("cuda", "cpu"):
        try:
            torch.empty(1, device=device).cpu()
        except (AssertionError, RuntimeError) as error:
            raise UserError(
                f"--device is {device}, which torch cannot use here ({reason_of(error)}): give "
                "cpu, or leave it out"
            ) from error


def number_of_processes():
    """Returns how many processes train together."""
    return torch.distributed.get_world_size() if is_distributed_initialized() else 1


def on_main(function, *args, **kwargs):
    """Calls a function on the main process; each process returns its result or raises its error.

    Arguments
    ---------
    function : callable
    *args, **kwargs
        Its arguments.

    Raises
    ------
    UserError, OSError
        As the function; any other exception leaves torchrun to end the other processes.
    """

    def attempt():
        try:
            return function(*args, **kwargs), None
        except (UserError, OSError) as error:
            return None, error

    result, error = run_on_main(attempt)
    if error is not None:
        raise error
    return result


def highest(number, device):
    """The highest of the processes' whole numbers; each must ask at the same time."""
    if not is_distributed_initialized():
        return number
    return int(ddp_all_reduce(torch.tensor(number, device=device), torch.distributed.ReduceOp.MAX))


def gathered(value):
    """Returns the values of all processes, by their number; each must ask at the same time."""
    if not is_distributed_initialized():
        return [value]
    values = [None] * number_of_processes()
    torch.distributed.all_gather_object(values, value)
    return values


def taken_off_ddp(modules):
    """Puts what DDP wraps in its place, with the main process's buffers, on all processes.

    Arguments
    ---------
    modules : torch.nn.ModuleDict
        Changed.

    Returns
    -------
    dict
        The wrappers, to be put back with ``modules.update``.
    """
    wrappers = {k: v for k, v in modules.items() if isinstance(v, DistributedDataParallel)}
    for name, wrapper in wrappers.items():
        for key, buffer in wrapper.module.named_buffers():
            if key not in wrapper.parameters_to_ignore:
                torch.distributed.broadcast(buffer, 0)
        modules[name] = wrapper.module
    return wrappers


def first_to_tell(message):
    """Whether no other process of this run has asked to tell the same message before."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    try:
        store = torch.distributed.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        return store.add(f"told/{attempt}/{message}", 1) == 1
    except RuntimeError:  # without the launcher's store it is told more than once
        return True


def peak_resident_bytes():
    """Returns the most memory that this process has held at once, in bytes."""
    return _resident("VmHWM")


def resident_bytes():
    """Returns the memory that this process holds, in bytes; without /proc, as the peak."""
    return _resident("VmRSS")


def _resident(key):
    # Linux hands a process the ru_maxrss of the one that started it, which would hide any growth
    # below that; what /proc tells is its own
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource  # which Windows lacks

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
