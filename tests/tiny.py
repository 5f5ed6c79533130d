"""A recogniser small enough to train in seconds, and something for it to hear."""

import csv
from pathlib import Path

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora.semantics import Semantics
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.train import TASKS
from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import options_of, value_of

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "sumformer-mini"
SAID = {name: (EXAMPLE / f"{name}.txt").read_text().strip() for name in ("bus", "code", "reminder")}
FILES = [str(EXAMPLE / f"{name}.flac") for name in SAID]

WORDS = "ALARM BED CALL DOWN EIGHT FIVE HAPPY LIGHT MUSIC NINE OFF PLAY SET STOP UP YES".split()

SMALL = {
    "d_model": 16,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "d_ffn": 16,
    "csgu_linear_units": 16,
    "nhead": 2,
    "kernel_size": 3,
    "n_mels": 20,
    "front_end_channels": "[4, 4]",
    "front_end_output": 20,
    "vocab_size": 30,
    "num_workers": 0,
    "batch_seconds": 4,
    "num_buckets": 2,
    "test_beam_size": 2,
    "number_of_epochs": 2,
    "averaged_checkpoints": 2,
}
TRANSDUCER = {"num_decoder_layers": 0, "joint_width": 16}


def task_of(yaml):
    """What a system of this project learns."""
    return TASKS[value_of(ROOT / yaml, "task") or ASR.name]


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["ID", "duration", "wav", "spk_id", "wrd"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def noises(tmp_path_factory):
    """A folder of train.csv, valid.csv and test.csv, whose utterances are noise with words."""
    folder = tmp_path_factory.mktemp("noises")
    random = numpy.random.default_rng(0)
    for split, count in (("train", 24), ("valid", 5), ("test", 6)):
        rows = []
        for index in range(count):
            wav = folder / f"{split}-{index}.flac"
            seconds = float(random.uniform(0.3, 1.5))
            samples = random.normal(0, 0.1, int(16000 * seconds))
            syllables = numpy.sin(numpy.arange(len(samples)) / 16000 * 4 * numpy.pi) ** 2
            soundfile.write(
                wav, samples * (0.3 + 0.7 * syllables), 16000
            )  # what is steady is no speech
            words = " ".join(random.choice(WORDS, size=random.integers(1, 4)))
            rows.append(
                {
                    "ID": wav.stem,
                    "duration": soundfile.info(wav).duration,
                    "wav": wav,
                    "spk_id": f"{split}{index % 3}",
                    "wrd": words,
                }
            )
        write_csv(folder / f"{split}.csv", rows)
    return folder


@pytest.fixture(scope="session")
def changed_csv(noises):
    """A function that writes the training CSV, whose rows went through a change, to a path."""

    def write(path, change):
        with open(noises / "train.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        change(rows)
        write_csv(path, rows)
        return path

    return write


@pytest.fixture
def corrupt(tmp_path):
    """A function that writes a file as long as an utterance, which only reading finds to be bad."""

    def write(row):
        path = tmp_path / "corrupt.wav"
        samples = numpy.full(round(16000 * float(row["duration"])), numpy.nan)
        soundfile.write(path, samples, 16000, subtype="FLOAT")
        return str(path)

    return write


@pytest.fixture(scope="session")
def meanings(noises, tmp_path_factory):
    """As `noises`, with semantics in place of words."""
    folder = tmp_path_factory.mktemp("meanings")
    for split in ("train", "valid", "test"):
        with open(noises / f"{split}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for row in rows:
            first, *others = row["wrd"].split()
            labels = {"scenario": first.lower(), "action": "do" if others else "ask"}
            entities = tuple(("thing" if len(o) > 4 else "part", o.lower()) for o in others)
            row["wrd"] = Semantics(labels, entities).text()
        write_csv(folder / f"{split}.csv", rows)
    return folder


@pytest.fixture(scope="session")
def command(noises):
    """A function that returns the arguments of ``run`` for a small recogniser of the noises."""

    def arguments(output_folder, yaml="hparams/sumformer.yaml", **options):
        csvs = {f"{split}_csv": noises / f"{split}.csv" for split in ("train", "valid", "test")}
        small = {**SMALL, **TRANSDUCER} if task_of(yaml) is Transducer else SMALL
        own = options_of(ROOT / yaml)  # a classifier has no decoder
        small = {key: value for key, value in small.items() if key in own}
        options = {**small, **csvs, "output_folder": output_folder, **options}
        listed = [str(ROOT / yaml), "--noprogressbar", "--device=cpu"]
        for key, value in options.items():
            listed += [f"--{key}"] if value is True else [f"--{key}={value}"]
        return listed

    return arguments


@pytest.fixture
def train(command, tmp_path):
    """Runs a small training in a folder of its own and returns the folder."""

    def run(**options):
        experiment.run(command(tmp_path / "out", **options), ASR)
        return tmp_path / "out"

    return run
