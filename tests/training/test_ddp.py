"""Training by torchrun: the processes make one run, and write it once."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training import curves, experiment

# Trains as train.py does and notes what each process does; may kill itself at a batch.
DRIVER = textwrap.dedent(
    """
    import json, os, signal, sys
    import torch
    torch.set_num_threads(1)
    import speechbrain.utils.logger
    speechbrain.utils.logger.get_environment_description = lambda: ""  # asks pip, for seconds
    from speechbrain_summarymixing.tasks import recognition
    from speechbrain_summarymixing.training import experiment

    notes, options, command = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    rank = int(os.environ.get("RANK", 0))
    output = next(o.partition("=")[2] for o in command if o.startswith("--output_folder="))
    written = []

    def audit(event, arguments):
        if event in ("open", "os.rename", "os.remove") and output in str(arguments[0]):
            if event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR):
                written.append(str(arguments[0]))

    sys.addaudithook(audit)
    start, fit, fit_batch = experiment.start, experiment.fit, recognition.ASR.fit_batch

    def plain_start(*arguments):
        hparams, run_opts = start(*arguments)
        if options.get("plain"):
            normalize, bands = hparams["normalize"], hparams["n_mels"]
            normalize.update_until_epoch = 0
            normalize.count = 1
            normalize.glob_mean, normalize.glob_std = torch.zeros(bands), torch.full((bands,), 10.0)
            hparams.update(wav_augment=None, feature_augment=None, sorting="as it is")
        return hparams, run_opts

    def noted_fit(brain, hparams, *sets):
        fit(brain, hparams, *sets)
        torch.save(
            {
                "weights": hparams["model"].state_dict(),
                "normalize": hparams["normalize"]._statistics_dict(),
                "scheduled_steps": brain.lr_schedule.total_steps,
                "steps": brain.optimizer_step,
                "seed": torch.initial_seed(),
            },
            f"{notes}-{rank}.pt",
        )

    def noted_fit_batch(brain, batch):
        place = [rank, brain.hparams.epoch_counter.current, brain.step]
        if place == options.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        loss = fit_batch(brain, batch)
        with open(f"{notes}-{rank}.jsonl", "a") as file:
            file.write(json.dumps([*place[1:], float(loss), list(batch.id)]) + "\\n")
        return loss

    experiment.start, experiment.fit = plain_start, noted_fit
    recognition.ASR.fit_batch = noted_fit_batch
    if options.get("plain"):
        experiment.test = recognition.ASR.export = lambda *_: None
    try:
        experiment.run(command, recognition.ASR)
    finally:
        with open(f"{notes}-{rank}.written", "w") as file:
            json.dump(written, file)
    """
)


class Run:
    """A command that has started, and what its processes note."""

    def __init__(self, notes, process):
        self.notes, self.process = notes, process

    def status(self):
        """Waits for the end; returns the exit status."""
        _, self.error = self.process.communicate(timeout=300)
        return self.process.returncode

    def steps(self, rank):
        """Rows of epoch, batch, loss and IDs."""
        text = self.notes.with_name(f"{self.notes.name}-{rank}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def end(self, rank):
        return torch.load(f"{self.notes}-{rank}.pt")

    def written(self, rank):
        return json.loads(self.notes.with_name(f"{self.notes.name}-{rank}.written").read_text())


@pytest.fixture
def launch(command, tmp_path):
    """Starts a small training in a folder of ``tmp_path`` on some processes."""
    started = []

    def start(name, processes=2, folder="out", note=None, **options):
        driver, notes = tmp_path / "driver.py", tmp_path / name
        driver.write_text(DRIVER)
        arguments = command(tmp_path / folder, distributed_backend="gloo", **options)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        process = subprocess.Popen(
            [
                sys.executable,
                *(launcher if processes > 1 else []),
                *(driver, notes, json.dumps(note or {}), json.dumps(arguments)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        started.append(process)
        return Run(notes, process)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate()


def test_two_processes_do_what_one_does_that_accumulates(launch, tmp_path):
    # validation in three batches, which the processes share
    options = {"number_of_epochs": 4, "dropout": 0, "warmup_steps": 4, "valid_batch_size": 2}
    note = {"plain": True}
    two = launch("two", folder="two", note=note, **options)
    one = launch("one", 1, folder="one", note=note, grad_accumulation_factor=2, **options)
    assert two.status() == 0, two.error[-3000:]
    assert one.status() == 0, one.error[-3000:]
    whole = one.steps(0)
    assert len(whole) == 48  # 24 steps
    for rank in (0, 1):
        own, theirs = two.steps(rank), whole[rank::2]
        assert [row[3] for row in own] == [row[3] for row in theirs]
        assert [row[2] for row in own] == pytest.approx([row[2] for row in theirs], abs=1e-4)
    assert whole[-1][2] < 0.9 * whole[0][2]  # it has learnt something
    for row, other in zip(*(curves.read(tmp_path / name) for name in ("one", "two")), strict=True):
        assert float(other["valid_loss"]) == pytest.approx(float(row["valid_loss"]), rel=1e-4)
        assert other["valid_WER"] == row["valid_WER"]
    ends = [one.end(0), two.end(0), two.end(1)]
    assert [end["steps"] for end in ends] == [24, 24, 24]
    assert [end["scheduled_steps"] for end in ends] == [24, 24, 24]
    for key, value in ends[0]["weights"].items():
        for end in ends[1:]:
            torch.testing.assert_close(end["weights"][key], value, atol=1e-4, rtol=0, msg=key)


@pytest.mark.slow
def test_an_encoder_that_is_held_learns_on_all_processes_when_it_is_released(
    launch, command, tmp_path
):
    options = {"number_of_epochs": 1, "dropout": 0, "warmup_steps": 1, "valid_batch_size": 2}
    experiment.run(command(tmp_path / "asr", **options), ASR)
    options.update(number_of_epochs=3, freeze_encoder_steps=4)
    options["encoder_folder"] = tmp_path / "asr/pretrained"
    trained = torch.load(tmp_path / "asr/pretrained/model.ckpt", weights_only=True)
    note = {"plain": True}
    two = launch("two", folder="two", note=note, **options)
    one = launch("one", 1, folder="one", note=note, grad_accumulation_factor=2, **options)
    assert two.status() == 0, two.error[-3000:]
    assert one.status() == 0, one.error[-3000:]
    ends = [one.end(0), two.end(0), two.end(1)]
    for key, value in ends[0]["weights"].items():
        assert not value.equal(trained[key])
        for end in ends[1:]:
            torch.testing.assert_close(end["weights"][key], value, atol=1e-4, rtol=0, msg=key)


@pytest.mark.slow
def test_uneven_batches_and_a_killed_process(launch, command, tmp_path):
    # 5 batches, of which one is repeated
    options = {"max_batch_size": 5, "batch_seconds": 100, "num_buckets": 6}
    options.update(number_of_epochs=3, ckpt_interval_steps=1, warmup_steps=2)
    killed = launch("killed", note={"kill": [1, 2, 2]}, **options)
    assert killed.status() != 0
    resumed = launch("resumed", **options)
    assert resumed.status() == 0, resumed.error[-3000:]

    for rank in (0, 1):
        places = [row[:2] for row in killed.steps(rank) + resumed.steps(rank)]
        assert places == [[epoch, step] for epoch in (1, 2, 3) for step in (1, 2, 3)]
    for epoch in (1, 2, 3):
        heard = [
            key
            for run in (killed, resumed)
            for rank in (0, 1)
            for row in run.steps(rank)
            if row[0] == epoch
            for key in row[3]
        ]
        assert len(set(heard)) == 24 and 24 < len(heard) <= 29

    ends = [resumed.end(rank) for rank in (0, 1)]
    assert [end["steps"] for end in ends] == [end["scheduled_steps"] for end in ends] == [9, 9]
    assert ends[0]["seed"] != ends[1]["seed"]  # so dropout differs
    for name in ("glob_mean", "glob_std"):
        assert ends[0]["normalize"][name].equal(ends[1]["normalize"][name])
    for key, value in ends[0]["weights"].items():
        assert value.equal(ends[1]["weights"][key]), key

    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    assert results["optimizer_steps"] == 9 and results["processes"] == 2
    assert results["parameters"] == sum(value.numel() for key, value in ends[0]["weights"].items())
    history = curves.read(out)
    assert [row["steps"] for row in history] == ["3", "6", "9"]
    assert float(history[-1]["lr"]) == pytest.approx(0, abs=1e-9)
    assert len((out / "train_log.txt").read_text().splitlines()) == 3
    assert (out / "pretrained" / "model.ckpt").is_file()
    assert resumed.written(0) and resumed.written(1) == []

    with pytest.raises(SystemExit, match="processes: 2 there, not set now"):
        experiment.run(command(out, **options), ASR)


@pytest.mark.slow
@pytest.mark.parametrize("yaml", ["hparams/sumformer.yaml", "hparams/contextnet.yaml"])
def test_processes_test_together_what_one_tests_alone(launch, command, tmp_path, yaml):
    """Validation and test have three batches: the processes have other numbers of them.

    ContextNet has batch normalisation, whose statistics each process has for itself in training.
    """
    options = {"valid_batch_size": 2, "test_batch_size": 2, "number_of_epochs": 1, "yaml": yaml}
    if "contextnet" in yaml:
        options["front_end_channels"] = "[]"
    two = launch("two", **options)
    assert two.status() == 0, two.error[-3000:]
    out, alone = tmp_path / "out", tmp_path / "alone"
    shutil.copytree(out, alone)
    settings = json.loads((alone / "settings.json").read_text())
    assert settings.pop("processes") == 2
    (alone / "settings.json").write_text(json.dumps(settings))
    experiment.run([*command(alone, **options), "--test_only"], ASR)
    for name in ("wer_test.txt", "errors_test.csv"):
        assert (alone / name).read_text() == (out / name).read_text()
    scores = [json.loads((folder / "results.json").read_text())["test"] for folder in (out, alone)]
    assert scores[0] == scores[1] and scores[0]["test"]["utterances"] == 6


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(launch, tmp_path):
    """As SLURM and Kubernetes send it, to the launcher."""
    options = {"number_of_epochs": 30, "ckpt_interval_minutes": 15}
    stopped = launch("stopped", **options)
    notes = tmp_path / "stopped-0.jsonl"
    while not (notes.exists() and len(notes.read_text().splitlines()) > 2):
        assert stopped.process.poll() is None
        time.sleep(0.05)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.status() != 0
    assert "The same command goes on from there" in stopped.error
    assert stopped.error.count("after optimiser step") == 1
    done = len(stopped.steps(0))
    assert len(stopped.steps(1)) == done
    resumed = launch("resumed", optimizer_step_limit=done + 2, **options)
    assert resumed.status() == 0, resumed.error[-3000:]
    assert [len(resumed.steps(rank)) for rank in (0, 1)] == [2, 2]


def spoilt(noises, path, change):
    """A copy of train.csv whose rows went through ``change``."""
    with open(noises / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.slow
def test_an_error_is_told_once_and_ends_all(launch, noises, tmp_path):
    def lose(rows):
        rows[3]["wav"] = str(tmp_path / "gone.flac")

    def corrupt(rows):
        bad = tmp_path / "corrupt.flac"
        with open(rows[7]["wav"], "rb") as file:
            bad.write_bytes(file.read()[:200])
        rows[7]["wav"] = str(bad)

    def start(change, **options):
        path = spoilt(noises, tmp_path / f"{change.__name__}.csv", change)
        return launch(change.__name__, folder=change.__name__, train_csv=path, **options)

    lost = start(lose)
    # batch normalisation too takes its place among the processes
    corrupted = start(corrupt, yaml="hparams/contextnet.yaml", front_end_channels="[]")
    assert lost.status() != 0  # of all processes
    assert lost.error.count("error: the manifests cannot be used") == 1
    assert lost.error.count("gone.flac") == 1
    assert "[rank1]" not in lost.error
    assert not list(tmp_path.glob("lose-*.jsonl"))  # no step was taken
    assert corrupted.status() != 0  # of one
    assert corrupted.error.count("corrupt.flac") == 1
