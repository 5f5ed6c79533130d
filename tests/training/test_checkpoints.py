"""Checkpoints against kills, full disks and damage."""

import errno
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from checkpoint_victim import WIDTH, Run, Victim, is_clean, names, recovered, save_on_full_disk
from hyperpyyaml import load_hyperpyyaml

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.checkpoints import CrashSafeCheckpointer


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
