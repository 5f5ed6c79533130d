"""Classes of utterances: training, measures and use."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pages import run_python
from speechbrain.inference.classifiers import EncoderClassifier

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora.manifest import read_manifest, write_manifest
from speechbrain_summarymixing.data.augment import RandomShift, WhiteNoise
from speechbrain_summarymixing.tasks.classification import Classification
from speechbrain_summarymixing.training import experiment

YAML = "recipes/Google-speech-commands/hparams/sumformer.yaml"
SYSTEMS = sorted(Path(__file__).parents[2].glob("recipes/Google-speech-commands/hparams/*.yaml"))


@pytest.fixture(scope="module")
def classes(noises, tmp_path_factory):
    """As `noises`, whose class is whether they last longer than 0.9 s."""
    folder = tmp_path_factory.mktemp("classes")
    for split in ("train", "valid", "test"):
        rows = read_manifest(noises / f"{split}.csv")
        named = [replace(r, wrd="long" if r.duration > 0.9 else "short") for r in rows]
        write_manifest(folder / f"{split}.csv", named)
    return folder


@pytest.fixture(scope="module")
def arguments(command, classes):
    def arguments(folder, yaml=YAML, **options):
        csvs = {f"{split}_csv": classes / f"{split}.csv" for split in ("train", "valid", "test")}
        return command(folder, yaml=yaml, **{"classes": 2, **csvs, **options})

    return arguments


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "out"
    experiment.run(arguments(folder), Classification)
    return folder


def test_analyse_finds_the_error_of_the_test(trained, classes, tmp_path):
    options = ["--output", str(tmp_path), "--device=cpu", "--no-progress"]
    test = str(classes / "test.csv")
    assert cli.main(["analyse", str(trained / "pretrained"), test, *options]) == 0
    right = json.loads((trained / "results.json").read_text())["test"]["test"]["accuracy"]
    assert (
        f"WER {100 - right:.2f}% of {len(read_manifest(test))} words"
        in (tmp_path / "README.md").read_text()
    )
    with open(tmp_path / "replaced.csv", newline="") as file:
        changes = list(csv.DictReader(file))
    assert any(float(row["output"]) > 0.01 for row in changes)


def test_the_classes_of_the_weights_are_kept(arguments, classes, tmp_path):
    csvs = {f"{split}_csv": tmp_path / f"{split}.csv" for split in ("train", "valid", "test")}

    def write(long):
        for path in csvs.values():
            rows = read_manifest(classes / path.name)
            write_manifest(path, [replace(r, wrd=r.wrd.replace("long", long)) for r in rows])

    def run(*options):
        command = arguments(tmp_path / "out", number_of_epochs=1, **csvs)
        experiment.run([*command, *options], Classification)
        return (tmp_path / "out/results.json").read_text()

    with pytest.raises(SystemExit, match="nothing to test: train first"):
        write("long")
        run("--test_only")
    results = run()
    write("very")
    with pytest.raises(SystemExit, match="trained with the classes long, short, not short, very"):
        run()
    with pytest.raises(SystemExit, match="utterances of classes that training does not have"):
        run("--test_only")
    write("long")
    csvs["train_csv"].unlink()
    assert run("--test_only") == results


def test_debug_and_check_leave_a_run_alone_and_debug_classifies_two_clips(
    arguments, trained, tmp_path
):
    shutil.copytree(trained, tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    experiment.run(arguments(tmp_path / "out", debug=True), Classification)
    experiment.run(arguments(tmp_path / "out", check="True"), Classification)
    assert [path.read_bytes() for path in files] == before
    results = json.loads((tmp_path / "out-debug/results.json").read_text())
    assert results["test"]["test"]["utterances"] == 2


def test_there_are_systems():
    assert len(SYSTEMS) >= 4


def test_what_is_found_is_measured_and_written_down(trained):
    with open(trained / "predictions_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = json.loads((trained / "results.json").read_text())["test"]["test"]
    right = [row["class"] == row["found"] for row in rows]
    assert scores["utterances"] == len(rows) == 6
    assert scores["accuracy"] == pytest.approx(100 * sum(right) / 6)
    errors = (trained / "errors_test.csv").read_text().splitlines()
    assert errors == ["ID,errors,total"] + [
        f"{r['ID']},{int(r['class'] != r['found'])},1" for r in rows
    ]
    low, high = scores["accuracy_95"]
    assert low <= scores["accuracy"] <= high
    assert set(scores["accuracy_by_class"]) == {row["class"] for row in rows}
    assert "accuracy on test" in (trained / "pretrained/README.md").read_text()


def test_speechbrain_and_the_command_find_the_same(trained, classes, capsys):
    with open(trained / "predictions_test.csv", newline="") as file:
        expected = {row["ID"]: row for row in csv.DictReader(file)}
    rows = read_manifest(classes / "test.csv")
    model = EncoderClassifier.from_hparams(source=str(trained / "pretrained"))
    for row in rows:
        probabilities, score, _, labels = model.classify_batch(model.load_audio(row.wav))
        assert labels == [expected[row.ID]["found"]]
        torch.testing.assert_close(probabilities.exp().sum(), torch.tensor(1.0))
        assert float(score.exp()) == pytest.approx(float(expected[row.ID]["probability"]), abs=1e-3)
    capsys.readouterr()
    files = [row.wav for row in rows]
    folder = str(trained / "pretrained")
    assert cli.main(["classify", "--json", "--device=cpu", folder, *files, "none.wav"]) == 1
    answers = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [a.get("label") for a in answers] == [expected[r.ID]["found"] for r in rows] + [None]
    assert cli.main(["classify", "--device=cpu", folder, files[0]]) == 0
    label, probability = capsys.readouterr().out.strip().split("\t")
    assert label == answers[0]["label"] and 0.5 <= float(probability) <= 1


@pytest.mark.parametrize(
    "yaml",
    [
        pytest.param(path, marks=[pytest.mark.slow] if "published" in path.stem else [])
        for path in SYSTEMS
    ],
    ids=lambda path: path.stem,
)
def test_every_system_learns_what_is_long(yaml, arguments, tmp_path):
    # relative positions alone, of attention and of neighbours, learn the length of noises late
    relative = "published" not in yaml.stem
    quick = {"number_of_epochs": 4 if relative else 24, "batch_seconds": 10, "lr": 0.02}
    plain = {"speeds": "[100]", "shift_seconds": 0, "dropout": 0, "warmup_steps": 4}
    experiment.run(arguments(tmp_path, yaml=yaml, **quick, **plain), Classification)
    history = list(csv.DictReader((tmp_path / "history.csv").read_text().splitlines()))
    losses = [float(row["train_loss"]) for row in history]
    assert losses[-1] < losses[0]
    if not relative:
        assert losses[-1] < 0.5 * losses[0]
        assert float(history[-1]["valid_error"]) <= 20  # of 5; the most frequent class misses 40


def test_the_corpus_from_its_folder(tmp_path, speech_data):
    folder = speech_data / "speech_commands"
    arguments = [
        str(SYSTEMS[0].parents[3] / YAML), "--noprogressbar", "--device=cpu", "--words=yes,no",
        "--classes=2", f"--data_folder={folder}", f"--output_folder={tmp_path}", "--d_model=16",
        "--num_encoder_layers=1", "--d_ffn=16", "--csgu_linear_units=16", "--number_of_epochs=1",
        "--optimizer_step_limit=2",
    ]  # fmt: skip
    experiment.run(arguments, Classification)
    scores = json.loads((tmp_path / "results.json").read_text())["test"]["test"]
    assert set(scores["accuracy_by_class"]) == {"no", "yes"} and scores["utterances"] == 40
    clip = next((folder / "no").glob("*.wav"))
    assert cli.main(["classify", str(tmp_path / "pretrained"), str(clip)]) == 0


def test_classes_that_do_not_fit(arguments, classes, tmp_path):
    with pytest.raises(SystemExit, match="--classes is 35, but .* has 2, long, short: give"):
        experiment.run(arguments(tmp_path / "out", classes=35), Classification)
    rows = read_manifest(classes / "test.csv")
    rows[2] = replace(rows[2], wrd="quiet")
    write_manifest(tmp_path / "test.csv", rows)
    other = arguments(tmp_path / "out", test_csv=tmp_path / "test.csv")
    with pytest.raises(SystemExit, match="does not have(.|\n)*test-2: quiet(.|\n)*long, short"):
        experiment.run(other, Classification)
    with pytest.raises(SystemExit, match="--shards is for recognisers"):
        experiment.run(
            arguments(tmp_path / "out", shards="x.tar", train_csv="null"), Classification
        )


def test_a_shift_moves_samples_and_keeps_the_length():
    torch.manual_seed(0)
    waveform = torch.arange(1.0, 101.0).unsqueeze(0)
    shift, places = RandomShift(0.02, sample_rate=1000), set()
    for _ in range(200):
        moved = shift(waveform)
        assert moved.shape == waveform.shape
        place = int((waveform[0] - moved[0])[moved[0] > 0].unique())  # all samples moved alike
        assert (moved > 0).sum() == 100 - abs(place)
        places.add(place)
    assert min(places) == -20 and max(places) == 20
    assert RandomShift(1.0, sample_rate=1000)(waveform).shape == waveform.shape


def test_noise_has_the_power_that_was_asked_for():
    torch.manual_seed(0)
    speech = torch.sin(torch.arange(16000.0) * 0.1).unsqueeze(0)
    noise = WhiteNoise(20.0, 20.0)(speech)
    # SpeechBrain scales the speech down for the noise
    gain = float((noise * speech).sum() / speech.square().sum())
    ratio = (gain * speech).square().mean() / (noise - gain * speech).square().mean()
    assert float(10 * ratio.log10()) == pytest.approx(20, abs=0.5)


def test_the_python_of_the_recipe(trained, classes):
    clip = read_manifest(classes / "test.csv")[0].wav
    names = run_python(
        "recipes/Google-speech-commands/README.md",
        replaced=[("results/sumformer/1234/pretrained", trained / "pretrained"), ("yes.wav", clip)],
    )
    assert names["label"][0] in ("long", "short")
