"""Runs that are stopped, or lose what they stand on."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from speechbrain_summarymixing.tasks import recognition
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import experiment


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_leaves_the_workers_to_the_main_one(command, tmp_path, number):
    """As SLURM and a terminal send it; a worker that outlived it would keep the run from ending."""
    code = textwrap.dedent("""
        import pathlib, sys, time
        from speechbrain_summarymixing.tasks.recognition import ASR
        from speechbrain_summarymixing.training import experiment

        fit_batch = ASR.fit_batch
        def waiting(self, batch):
            if self.optimizer_step == 1:
                pathlib.Path(sys.argv[1]).touch()
                while not self._stop_requested:
                    time.sleep(0.01)
            return fit_batch(self, batch)
        ASR.fit_batch = waiting
        experiment.run(sys.argv[2:], ASR)
    """)
    there = tmp_path / "there"
    process = subprocess.Popen(
        [sys.executable, "-c", code, there, *command(tmp_path / "out", num_workers=2)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        while not there.exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in told and "error" not in told
    assert "stopped in epoch 1 after optimiser step 2, saved in" in told
    assert list((tmp_path / "out/save").glob("CKPT*"))


def test_ctrl_c_at_once_is_no_error(train, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(recognition.ASR, "on_fit_start", interrupted)
    with pytest.raises(SystemExit) as stop:
        train()
    assert stop.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_an_output_folder_that_goes_while_a_run_works_in_it_is_told(train, tmp_path, monkeypatch):
    original = recognition.ASR.validation_metric

    def gone(self):
        shutil.rmtree(tmp_path / "out")
        return original(self)

    monkeypatch.setattr(recognition.ASR, "validation_metric", gone)
    with pytest.raises(SystemExit, match="out: was deleted or moved while this run worked in it"):
        train()


def test_a_checkpoint_that_is_cut_short_is_named_and_advises_nothing_unsafe(
    train, command, tmp_path
):
    out = train()
    (file,) = (out / "save/CKPT+epoch-0001").glob("model.ckpt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(
        SystemExit, match="CKPT.epoch-0001: this checkpoint cannot be loaded"
    ) as error:
        experiment.run([*command(out), "--test_only"], ASR)
    assert "delete this folder" in str(error.value) and "weights_only" not in str(error.value)
