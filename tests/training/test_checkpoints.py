"""Checkpoints against kills, full disks and damage; run as a script, this file is the victim."""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
import yaml
from hyperpyyaml import load_hyperpyyaml
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


@pytest.fixture(scope="module")
def victim():
    victim = Victim()
    yield victim
    victim.server.stdin.close()
    victim.server.wait(timeout=30)


@pytest.mark.parametrize("num_to_keep", [1, 2])
def test_a_kill_at_any_instant_costs_no_completed_save(victim, tmp_path, num_to_keep):
    folder, log = tmp_path / "save", tmp_path / "completed"
    log.touch()
    draw = random.Random(num_to_keep)
    last = 0
    for _ in range(15):
        job = {"folder": str(folder), "log": str(log), "num_to_keep": num_to_keep}
        before = log.stat().st_size
        (pid,) = victim.start(("save_until_killed", job))
        in_first_save = draw.random() < 0.2
        while not in_first_save and log.stat().st_size == before:
            time.sleep(0.002)
        time.sleep(draw.uniform(0.0, 0.08))
        os.kill(pid, signal.SIGKILL)
        assert victim.ends() == [[-signal.SIGKILL, ""]]

        completed = int(([0] + log.read_text().split())[-1])
        step = recovered(folder)
        # A kill between a save and its line in the log leaves a checkpoint that is one ahead.
        known = max(completed, last)
        assert known <= step <= known + 1
        last = step
    assert last >= 15, "too few saves for the kills to mean anything"
    Run(folder).save(last + 1, num_to_keep)
    assert is_clean(folder)


@pytest.mark.parametrize("first", [1, 2], ids=["within an epoch", "at its end"])
def test_a_kill_at_each_change_of_the_disk(victim, tmp_path, first):
    for kill_at in range(1, 100):
        folder = tmp_path / str(kill_at)
        code, error = victim.run("die_within_save", folder=folder, kill_at=kill_at, first=first)
        step = recovered(folder)
        if code == 0:
            assert step == first + 1
            break
        assert (code, error) == (-signal.SIGKILL, "")
        assert step in (first, first + 1)
        run = Run(folder)
        run.checkpointer.recover_if_possible()
        run.save(3)
        assert is_clean(folder)
        assert recovered(folder) == 3
    assert kill_at > 12, "a save has more changes than that"


def test_ddp_saves_on_one_process_and_fails_on_all(victim, tmp_path):
    for full in (False, True):
        folder = str(tmp_path / f"save-{full}")
        victim.start(
            *(("save_in_ddp", {"folder": folder, "rank": r, "full": full}) for r in (0, 1))
        )
        ends = victim.ends()
        if full:
            assert [code for code, _ in ends] == [1, 1]
            assert all("no room for a checkpoint" in error for _, error in ends)
        else:
            assert ends == [[0, ""], [0, ""]]
        assert recovered(folder) == 7
        assert is_clean(folder)


def test_a_file_size_limit_is_told(victim, tmp_path):
    folder = tmp_path / "save"
    code, error = victim.run("save_over_file_size_limit", folder=folder, megabytes=0.5)
    assert code == 1
    assert "no room" in error and "file size limit" in error
    assert recovered(folder) == 1
    assert len(names(folder)) == 1


class FailingSave:
    """torch.save that writes a part, then fails."""

    def __init__(self, error):
        self.error = error

    def __call__(self, module, path):
        Path(path).write_bytes(b"half")
        raise self.error


@pytest.mark.parametrize(
    "hook",
    [
        *(FailingSave(OSError(n, os.strerror(n))) for n in (errno.ENOSPC, errno.EDQUOT)),
        FailingSave(OSError(errno.EFBIG, os.strerror(errno.EFBIG))),
        FailingSave(RuntimeError("PytorchStreamWriter failed writing file data/0: file write")),
        pytest.param(
            save_on_full_disk,
            marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full"),
        ),
    ],
    ids=["full", "quota", "too big", "torch", "really full"],
)
def test_a_full_disk_is_told_and_costs_nothing(tmp_path, hook):
    run = Run(tmp_path)
    run.save(3)
    (kept,) = names(tmp_path)
    run.checkpointer.custom_save_hooks["model"] = hook
    with pytest.raises(UserError) as caught:
        run.save(6)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "GB are free" in message
    assert f"it goes on from {kept}" in message
    assert names(tmp_path) == [kept]
    assert recovered(tmp_path) == 3
    run.checkpointer.custom_save_hooks.clear()
    run.save(6)
    assert recovered(tmp_path) == 6


def test_a_full_disk_at_the_first_save(tmp_path):
    run = Run(tmp_path, custom_save_hooks={"after": FailingSave(OSError(errno.ENOSPC, "full"))})
    with pytest.raises(UserError, match="it starts at the beginning"):
        run.save(3)
    assert names(tmp_path) == []


def test_another_error_in_a_save_passes_and_leaves_no_part(tmp_path):
    run = Run(tmp_path, custom_save_hooks={"after": FailingSave(RuntimeError("a bug"))})
    with pytest.raises(RuntimeError, match="a bug"):
        run.save(3)
    assert names(tmp_path) == []


def truncate(folder):
    file = folder / "model.ckpt"
    os.truncate(file, file.stat().st_size // 2)


def empty_text(folder):
    (folder / "after.ckpt").write_text("")


def empty_meta(folder):
    (folder / "CKPT.yaml").write_text("")


def remove_file(folder):
    (folder / "optimizer.ckpt").unlink()


@pytest.mark.parametrize(
    "damage, reason",
    [
        (truncate, "central directory"),
        (empty_text, "invalid literal"),
        (empty_meta, "CKPT.yaml"),
        (remove_file, "missing a load path for optimizer"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path, damage, reason):
    run = Run(tmp_path)
    run.set(1)
    good = run.checkpointer.save_checkpoint()
    run.set(2)
    bad = run.checkpointer.save_checkpoint()
    damage(bad.path)
    with pytest.raises(UserError) as caught:
        recovered(tmp_path)
    message = str(caught.value)
    assert str(bad.path) in message
    assert reason in message
    assert "delete this folder" in message
    assert good.path.name in message
    for file in bad.path.iterdir():
        file.unlink()
    bad.path.rmdir()
    assert recovered(tmp_path) == 1


def test_a_checkpoint_of_another_model_is_an_error(tmp_path):
    Run(tmp_path).save(3)
    with pytest.raises(UserError, match="size mismatch.*another --output_folder"):
        Run(tmp_path, width=WIDTH + 1).checkpointer.recover_if_possible()


def test_all_files_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda n: events.append(os.readlink(f"/proc/self/fd/{n}")))
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), rename(*paths)))
    Run(tmp_path).save(3)
    at = events.index("rename")
    files = ["CKPT.yaml", "after.ckpt", "before.ckpt", "model.ckpt", "optimizer.ckpt"]
    assert sorted(map(os.path.basename, events[:at]))[1:] == files  # the first is their folder
    assert events[at + 1] == str(tmp_path)


def test_a_name_given_twice_replaces_the_checkpoint(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.set(step)
        saved = run.checkpointer.save_checkpoint(name="last")
        assert saved.path == tmp_path / "CKPT+last"
        assert saved.paramfiles["model"].is_file()
        assert names(tmp_path) == ["CKPT+last"]
        assert recovered(tmp_path) == step


def test_a_clock_set_back_does_not_make_the_newest_the_oldest(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.save(3)
    past = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: past)
    for step in (6, 9):
        run.save(step)
        assert recovered(tmp_path) == step


def test_the_best_and_the_newest_are_kept(tmp_path):
    run = Run(tmp_path)
    errors = {1: 9.0, 2: 5.0, 3: 7.0, 4: 8.0}
    for step, error in errors.items():
        run.set(step)
        run.checkpointer.save_and_keep_only(meta={"WER": error}, min_keys=["WER"])
    assert [c.meta["WER"] for c in run.checkpointer.find_checkpoints()] == [8.0, 5.0]
    with pytest.raises(ValueError, match="num_to_keep is -1"):
        run.checkpointer.delete_checkpoints(num_to_keep=-1)


def test_the_work_of_a_save_does_not_grow(tmp_path, monkeypatch):
    run = Run(tmp_path, width=2)
    listings = []
    listing = CrashSafeCheckpointer.list_checkpoints
    monkeypatch.setattr(
        CrashSafeCheckpointer,
        "list_checkpoints",
        lambda self: listings.append(1) or listing(self),
    )
    counts = []
    for step in (1, 2, 4, 5, 7):
        listings.clear()
        run.save(step)
        counts.append(len(listings))
    assert len(set(counts)) == 1


def test_meta_that_could_not_be_read_back_is_refused(tmp_path):
    run = Run(tmp_path)
    run.save(3)
    with pytest.raises(yaml.representer.RepresenterError):
        run.checkpointer.save_checkpoint(meta={"loss": torch.tensor(1.0)})
    assert recovered(tmp_path) == 3


def test_it_loads_from_yaml(tmp_path):
    hparams = load_hyperpyyaml(
        f"""
        counter: !new:speechbrain.utils.epoch_loop.EpochCounter
            limit: 3
        checkpointer: !new:speechbrain_summarymixing.training.checkpoints.CrashSafeCheckpointer
            checkpoints_dir: {tmp_path}
            recoverables:
                counter: !ref <counter>
        """
    )
    next(hparams["counter"])
    hparams["checkpointer"].save_and_keep_only()
    hparams["counter"].current = 0
    hparams["checkpointer"].recover_if_possible()
    assert hparams["counter"].current == 1


if __name__ == "__main__":
    serve()
