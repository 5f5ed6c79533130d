"""Systems by name: found, trained by their task, and written as one file."""

import hashlib

import pytest
from tiny import ROOT

from speechbrain_summarymixing import cli, systems
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks import train
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training import flatten as flattening
from speechbrain_summarymixing.training.config import load_hyperparams
from speechbrain_summarymixing.training.flatten import flatten
from speechbrain_summarymixing.training.identity import settings

SMALL = ("sumformer", "sumformer_transducer", "AN4/ASR/sumformer", "Barista/direct/sumformer")
SMALL += ("Google-speech-commands/sumformer", "sumformer_bestrq")
LARGE = sorted(systems.names().keys() - set(SMALL))


def test_names_are_folders_and_files_without_hparams():
    names = systems.names()
    assert names["sumformer"] == ROOT / "hparams/sumformer.yaml"
    assert names["AN4/ASR/sumformer"] == ROOT / "recipes/AN4/ASR/hparams/sumformer.yaml"
    assert not [name for name in names if "parts" in name or "results" in name]


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sumformer").write_text("task: recognition\n")
    assert systems.find("sumformer").read_text() == "task: recognition\n"


def test_an_unknown_system_is_told_with_close_names():
    with pytest.raises(UserError, match="sumfomer: is neither .* such as sumformer"):
        systems.find("sumfomer")


def test_each_system_is_trained_by_its_task(monkeypatch):
    trained = {}
    monkeypatch.setattr(
        experiment, "run", lambda argv, task: trained.update({argv[0]: (task.name, argv[1:])})
    )
    monkeypatch.setattr(
        experiment, "run_tokenizer", lambda argv: trained.update({argv[0]: ("tokenizer", argv[1:])})
    )
    tasks = {"SLURP": "understanding", "Barista": "understanding"}
    tasks |= {"Google-speech-commands": "classification", "Tokenizer": "tokenizer"}
    tasks |= {"self-supervised-learning": "pretraining"}
    tasks |= {"LM": "language model", "AN4": "recognition"}
    names = systems.names()
    for folder, task in tasks.items():
        name = next(name for name in names if folder in name.split("/"))
        cli.main(["train", name, "--lr", "0.1"])
        assert trained.pop(str(names[name])) == (task, ["--lr", "0.1"]), name


@pytest.mark.parametrize("text", ["seed: 1\n", "task: singing\n"])
def test_a_file_without_a_known_task_is_refused(text, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(SystemExit, match=r"own\.yaml: has no task.* write .*task: recognition"):
        train.train([str(tmp_path / "own.yaml")])


def test_train_without_a_system_tells_where_the_names_are(capsys):
    assert cli.main(["train"]) == 1
    assert "train --list" in capsys.readouterr().err
    assert cli.main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "sumformer\tSumformer: a Branchformer" in "\n".join(lines)


def check_flat(name, folder, *once):
    """One file without includes makes the same model with the same settings, those of once 1."""
    plain = folder / "plain.yaml"
    plain.write_text(flatten(systems.find(name)))
    assert "!include" not in plain.read_text()
    options = {key: 1 for key in once if f"\n{key}: " in plain.read_text()}
    options["output_folder"] = str(folder / "out")
    assert plain.read_text().startswith(systems.find(name).read_text().splitlines()[0])
    made = []
    for file in (systems.find(name), plain):
        hparams = load_hyperparams(file, options)
        digest = hashlib.sha256()
        for key, weight in hparams["model"].named_parameters() if "model" in hparams else ():
            digest.update(f"{key} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().numpy().tobytes())
        chosen = {k: v for k, v in settings(hparams).items() if k != "__set_seed"}
        made.append((chosen, digest.hexdigest(), hparams.keys() - {"__set_seed"}))
    assert made[0] == made[1]


@pytest.mark.parametrize("name", SMALL)
def test_a_flat_file_makes_the_same_system(name, tmp_path):
    check_flat(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_every_flat_file_makes_the_same_system(name, tmp_path, monkeypatch):
    # a layer of each kind, and not built once more to tell what is wrong: hundreds of MB of weights
    monkeypatch.setattr(flattening, "load_hyperparams", lambda path, options: None)
    check_flat(name, tmp_path, "num_encoder_layers", "num_decoder_layers", "num_layers")


def test_a_key_with_two_values_cannot_be_flat(tmp_path):
    (tmp_path / "part.yaml").write_text("# A part.\nwidth: 3\nlayer: !ref <width> * 2\n")
    system = tmp_path / "system.yaml"
    system.write_text("output_folder: x\nwidth: 4\npart: !include:part.yaml\n    depth: 1\n")
    with pytest.raises(UserError, match="width is 'width: 4' here and 'width: 3' in a part"):
        flatten(system)
    system.write_text(
        "output_folder: x\nwidth: 4\n\npart: !include:part.yaml\n    width: !ref <width>\n"
    )
    assert flatten(system) == "output_folder: x\nwidth: 4\nlayer: !ref <width> * 2\n"


def test_what_a_part_alone_does_not_use_stands_once_in_a_flat_file(tmp_path):
    (tmp_path / "part.yaml").write_text("# A part.\nwidth: 3\nlayer: !ref <width> * 2\n")
    system = tmp_path / "system.yaml"
    include = "output_folder: x\npart: !include:part.yaml\n"
    system.write_text(include + "layer: !ref <part[width]> * 5\n")
    assert flatten(system) == "output_folder: x\nwidth: 3\nlayer: !ref <width> * 5\n"
    system.write_text(include + "layer: 5\nmore: !ref <part[layer]>\n")
    with pytest.raises(UserError, match="layer is 'layer: .*' here and 'layer: .*' in a part"):
        flatten(system)


def test_mappings_given_at_two_levels_are_merged_in_a_flat_file(tmp_path):
    (tmp_path / "inner.yaml").write_text("# Inner.\nwidth: 1\ndepth: 1\nkind: x\n")
    middle = "# Middle.\nin: !include:inner.yaml\n    width: 2\n    kind: z\n"
    (tmp_path / "middle.yaml").write_text(middle)
    outer = "# Outer.\nmid: !include:middle.yaml\n    in:\n        depth: 3\n        kind: y\n"
    (tmp_path / "outer.yaml").write_text(outer)
    system = tmp_path / "system.yaml"
    system.write_text(
        "output_folder: x\nout: !include:outer.yaml\n"
        "    mid:\n        in:  # here\n            kind: w\n"
    )
    flat = tmp_path / "flat.yaml"
    flat.write_text(flatten(system))
    expected = {"width": 2, "depth": 3, "kind": "w"}
    for file in (system, flat):
        assert load_hyperparams(file).items() >= expected.items()
