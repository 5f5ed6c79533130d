"""Runs that save checkpoints; run as a script, a process that is killed while it saves."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from speechbrain.utils.checkpoints import mark_as_loader, mark_as_saver, register_checkpoint_hooks

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.checkpoints import CrashSafeCheckpointer

WIDTH = 500  # of the model: 1 MB, and another one for its optimizer


@register_checkpoint_hooks
class Position:
    """A recoverable with a text file, as SpeechBrain's loaders and counters have."""

    def __init__(self):
        self.step = 0

    @mark_as_saver
    def save(self, path):
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(self.step))

    @mark_as_loader
    def load(self, path, end_of_epoch):
        self.step = int(Path(path).read_text(encoding="utf-8"))


class Run:
    """A model, an optimizer and positions, all of which hold the number of one step."""

    def __init__(self, folder, width=WIDTH, **options):
        self.model = torch.nn.Linear(width, width)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=1.0)
        self.before, self.after = Position(), Position()
        self.set(0)
        self.checkpointer = CrashSafeCheckpointer(
            folder,
            {
                "before": self.before,
                "model": self.model,
                "optimizer": self.optimizer,
                "after": self.after,
            },
            **options,
        )

    def set(self, step):
        self.before.step = self.after.step = step
        for parameter in self.model.parameters():
            parameter.data.fill_(step)
            self.optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, step)

    def step(self):
        """The step that everything is from."""
        tensors = list(self.model.parameters())
        tensors += [state["momentum_buffer"] for state in self.optimizer.state.values()]
        steps = {self.before.step, self.after.step}
        steps.update(end.item() for tensor in tensors for end in tensor.aminmax())
        assert len(steps) == 1, f"from several saves: {steps}"
        return int(steps.pop())

    def save(self, step, num_to_keep=1):
        """Saves as a Brain does: within epochs, and at the end of each, here of three steps."""
        self.set(step)
        if step % 3:
            self.checkpointer.save_and_keep_only(
                end_of_epoch=False,
                meta={"intra": True},
                ckpt_predicate=lambda checkpoint: "intra" in checkpoint.meta,
            )
        else:
            self.checkpointer.save_and_keep_only(
                meta={"WER": 100.0 - step}, min_keys=["WER"], num_to_keep=num_to_keep
            )


def recovered(folder):
    """The step that a new process goes on from; every checkpoint there is must load."""
    run = Run(folder)
    for checkpoint in run.checkpointer.list_checkpoints():
        run.checkpointer.load_checkpoint(checkpoint)
        run.step()
    run.set(0)
    run.checkpointer.recover_if_possible()
    return run.step()


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def is_clean(folder):
    checkpoints = CrashSafeCheckpointer(folder).list_checkpoints()
    return names(folder) == sorted(checkpoint.path.name for checkpoint in checkpoints)


# The victim: a process with torch imported, which forks one child a job.


def save_until_killed(folder, log, num_to_keep):
    run = Run(folder)
    run.checkpointer.recover_if_possible()
    step = run.step()
    while True:
        step += 1
        run.save(step, num_to_keep)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{step}\n")


def die_within_save(folder, kill_at, first):
    """Saves whole checkpoints, and dies at the n-th change of the disk by the next one."""
    run = Run(folder)
    for step in range(1, first + 1):
        run.save(step)
    changes = 0

    def change():
        nonlocal changes
        changes += 1
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        changing = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
        if event in changing or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            change()

    torch_save = torch.save

    def save(state, path):
        change()
        torch_save(state, path)
        if changes + 1 == kill_at:
            os.truncate(path, os.path.getsize(path) // 2)
        change()

    sys.addaudithook(audit)
    torch.save = save
    run.save(first + 1)


def save_over_file_size_limit(folder, megabytes):
    run = Run(folder)
    run.save(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = int(megabytes * 1e6)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    run.save(2)


def save_in_ddp(folder, rank, full):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2
    )
    run = Run(folder)
    for step in range(1, 8):
        run.save(step)
        if rank == 1:  # what the other process has saved is there, and whole
            assert recovered(folder) == step
        torch.distributed.barrier()
    if full:
        run.checkpointer.custom_save_hooks["model"] = save_on_full_disk
        run.save(8)
    torch.distributed.destroy_process_group()


def save_on_full_disk(module, _):
    torch.save(module.state_dict(), "/dev/full")


def serve():
    """Reads lines of jobs, and prints the process IDs of each line's, then how they ended."""
    torch.set_num_threads(1)
    os.fsync = lambda descriptor: None  # a kill of a process loses nothing that it has written
    with tempfile.TemporaryDirectory() as folder:
        Run(folder).save(3)  # what torch imports at first use, the children have then
    for line in sys.stdin:
        children = [start(globals()[name], arguments) for name, arguments in json.loads(line)]
        print(json.dumps([pid for pid, _ in children]), flush=True)
        ends = []
        for pid, errors in children:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            ends.append((code, errors.read().decode()))
        print(json.dumps(ends), flush=True)


def start(job, arguments):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            job(**arguments)
            os._exit(0)
        except UserError as error:
            os.write(writer, str(error).encode())
            os._exit(1)
        except BaseException as error:
            os.write(writer, repr(error).encode())
            os._exit(2)
    os.close(writer)
    return pid, os.fdopen(reader, "rb")


class Victim:
    """The other end of `serve`."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def start(self, *jobs):
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def ends(self):
        return json.loads(self.server.stdout.readline())

    def run(self, job, **arguments):
        self.start(
            (job, {key: str(v) if isinstance(v, Path) else v for key, v in arguments.items()})
        )
        return self.ends()[0]


if __name__ == "__main__":
    serve()
