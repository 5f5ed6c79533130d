"""A run that is killed at any instant goes on as if it had not been."""

import json
import os
import random
import subprocess
import sys
import textwrap

import pytest
import torch

# One warm process forks a child for each attempt; the child trains and may kill itself.
DRIVER = textwrap.dedent(
    """
    import json, os, signal, sys
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    torch.set_num_threads(1)
    import speechbrain.utils.logger
    speechbrain.utils.logger.get_environment_description = lambda: ""  # asks pip, for seconds
    from speechbrain_summarymixing.tasks import recognition
    from speechbrain_summarymixing.training import checkpoints, experiment

    command, log, kills = json.loads(sys.argv[1])

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def attempt(kill):
        after_steps, inside_save = kill or (None, None)
        steps = writes = 0
        fit_batch, features, save = recognition.ASR.fit_batch, recognition.ASR.features, torch.save
        heard = []

        def noted(self, batch, stage):
            found = features(self, batch, stage)
            heard.append(float(found[0].sum()))
            return found

        def logged(self, batch):
            nonlocal steps
            loss = fit_batch(self, batch)
            with open(log, "a") as file:
                row = [self.hparams.epoch_counter.current, self.step, self.optimizer_step]
                file.write(json.dumps([*row, list(batch.id), heard[-1], float(loss)]) + "\\n")
            steps += 1
            if inside_save is None and steps == after_steps:
                die()
            return loss

        def deadly(*arguments, **options):
            nonlocal writes
            writes += 1
            if inside_save is not None and writes == inside_save:
                with open(arguments[1], "wb") as file:
                    file.write(b"half a file")
                die()
            return save(*arguments, **options)

        recognition.ASR.fit_batch, recognition.ASR.features, torch.save = logged, noted, deadly
        experiment.run(command, recognition.ASR)

    for kill in [*kills, None]:
        child = os.fork()
        if child == 0:
            try:
                attempt(kill)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        with open(log, "a") as file:
            file.write(json.dumps(status) + "\\n")
    """
)


def attempts(command, folder, kills, **options):
    """Runs a training through ``kills`` to its end: the logged steps and exits of each attempt."""
    log = folder / "log.jsonl"
    arguments = command(
        folder / "out", ckpt_interval_steps=2, number_of_epochs=3, batch_seconds=2.5, **options
    )
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps([arguments, str(log), kills])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    runs, steps = [], []
    for line in log.read_text().splitlines():
        row = json.loads(line)
        if isinstance(row, list):
            steps.append(row)
        else:
            runs.append((steps, row))
            steps = []
    assert runs[-1][1] == 0, process.stderr[-2000:]
    return [steps for steps, _ in runs], [status for _, status in runs]


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_anywhere_the_run_equals_the_uninterrupted_one(command, tmp_path, accumulation):
    options = {
        "grad_accumulation_factor": accumulation,
        **{"chunk_frames": "[2, 8]", "left_chunks": "[0, 3]"},
    }
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    [whole], _ = attempts(command, tmp_path / "whole", [], **options)
    random.seed(accumulation)
    after_steps = [(random.randint(1, 9), None) for _ in range(5)]
    inside_saves = [(None, random.randint(1, 6)) for _ in range(5)]
    kills = random.sample(after_steps + inside_saves, 10)
    runs, exits = attempts(command, tmp_path / "killed", kills, **options)
    assert sum(status == 9 for status in exits) >= 5

    position = {tuple(row[:2]): index for index, row in enumerate(whole)}
    reached = 0
    for steps in runs:
        begin = position[tuple(steps[0][:2])] if steps else reached
        # no step is left out, at most what one checkpoint interval holds is done again, and each
        # hears the same augmented speech and has the same loss, of the same dropout and chunks
        assert reached - 2 * accumulation <= begin <= reached
        assert steps == whole[begin : begin + len(steps)]
        reached = begin + len(steps)
    assert reached == len(whole)

    def result(name):
        return json.loads((tmp_path / name / "out" / "results.json").read_text())

    assert result("whole")["optimizer_steps"] == result("killed")["optimizer_steps"]
    ends = [tmp_path / name / "out/pretrained/model.ckpt" for name in ("whole", "killed")]
    weights, others = (torch.load(end, weights_only=True) for end in ends)
    assert all(weights[key].equal(value) for key, value in others.items())
