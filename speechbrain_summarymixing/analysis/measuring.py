"""What every measurement here needs: a clock, the machine's name, and memory."""

import os
import time
from pathlib import Path

import torch

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.processes import peak_resident_bytes, resident_bytes


def machine(device="cpu"):
    """Returns a line that says where a figure was measured."""
    if torch.device(device).type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return (
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, CPU, torch {torch.__version__}"
    )


def seconds_of(run, device="cpu"):
    """Returns the seconds that ``run()`` takes, with all that it starts on the device."""
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else int
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - began


def wall_and_cpu_seconds_of(run, device="cpu"):
    """Returns `seconds_of` and the CPU time of this process, which other work does not lengthen."""
    before = time.process_time()
    return seconds_of(run, device), time.process_time() - before


def peak_growth_mb(run, device="cpu"):
    """Returns the peak memory of ``run()`` in MB (10^6 bytes).

    On CUDA it is the peak of what torch has allocated, with all that was there before. On the CPU
    it is the growth of the process's peak resident set over what was there before.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    _forget_peak()
    before = peak_resident_bytes()
    run()
    return (peak_resident_bytes() - before) / 1e6


def resident_mb(device="cpu"):
    """Returns the process's resident memory, or on CUDA what torch has allocated, in MB."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6
    return resident_bytes() / 1e6


def is_out_of_memory(error):
    """Whether an exception says that memory ran out, on the CPU or a GPU."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def check_device(device):
    """Raises a `UserError` if this machine cannot run torch on a device.

    Arguments
    ---------
    device : str
        Such as "cpu" or "cuda".
    """
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"--device is {device!r}, but must be cpu or cuda") from error
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--device is {device!r}, but must be cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device is {device!r}, but torch sees no CUDA device here: use --device cpu"
        )


def _forget_peak():
    """Lets the peak of the resident set start from its present size, where Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak so far stays the floor
