"""Speech to semantics: training, measures, use, and trained encoders to begin with."""

import csv
import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from pages import run_python
from speechbrain.inference.SLU import EndToEndSLU

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora import slurp, slurp_voices
from speechbrain_summarymixing.corpora.manifest import Utterance, read_manifest, write_manifest
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import transcribe
from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.tasks.semantics_metrics import (
    prediction_line,
    score,
    summarize,
    write_predictions,
)
from speechbrain_summarymixing.tasks.transfer import load_encoder
from speechbrain_summarymixing.tasks.understanding import Understanding
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import load_hyperparams

ROOT = Path(__file__).parents[2]
YAML = "recipes/SLURP/direct/hparams/sumformer.yaml"
BY_HEART = {
    "lr": 0.005,
    "warmup_steps": 10,
    "d_model": 32,
    "batch_seconds": 6,
    "dropout": 0,
    "speeds": "[100]",
    "time_drops": 0,
    "frequency_drops": 0,
    "ctc_weight": 0,
    "max_decode_ratio": 8,
    "number_of_epochs": 8,
}
ORDER = '{"intent":"order","entities":[{"type":"drink","filler":"iced tea"}]}'
pool = runpy.run_path(ROOT / "recipes/Barista/direct/pool.py")["pool"]


@pytest.fixture(scope="module")
def train(command, meanings):
    def train(folder, **options):
        csvs = {f"{split}_csv": meanings / f"{split}.csv" for split in ("train", "valid", "test")}
        options = {"vocab_size": 60, **csvs, **options}
        experiment.run(command(folder, yaml=YAML, **options), Understanding)
        return folder

    return train


@pytest.fixture(scope="module")
def by_heart(train, meanings, tmp_path_factory):
    """The folder of a run that has learnt its test utterances by heart."""
    folder = tmp_path_factory.mktemp("by heart")
    rows = read_manifest(meanings / "test.csv")
    write_manifest(
        folder / "train.csv",
        [replace(row, ID=f"{row.ID}-{again}") for row in rows for again in range(20)],
    )
    csvs = {"train_csv": folder / "train.csv", "valid_csv": meanings / "test.csv"}
    train(folder / "out", **csvs, **BY_HEART)
    return folder / "out"


def test_what_is_learnt_is_measured_and_written_down(by_heart, meanings):
    scores = json.loads((by_heart / "results.json").read_text())["test"]["test"]
    rows = read_manifest(meanings / "test.csv")
    lines = (by_heart / "predictions_test.jsonl").read_text().splitlines()
    said = {line["file"]: line for line in map(json.loads, lines)}
    assert set(said) == {f"{row.ID}.flac" for row in rows} and scores["utterances"] == len(rows)
    right = sum(
        said[f"{row.ID}.flac"]["scenario"] == parse(row.wrd).labels["scenario"] for row in rows
    )
    assert scores["scenario_accuracy"] == pytest.approx(100 * right / len(rows))
    assert right >= 4 and scores["SLU_F1"] > 30
    errors = list(csv.DictReader((by_heart / "errors_test.csv").read_text().splitlines()))
    assert [row["ID"] for row in errors] == [row.ID for row in rows]
    assert {row["total"] for row in errors} == {"1"}
    assert sum(int(row["errors"]) for row in errors) == len(rows) - right
    scenarios = [parse(row.wrd).labels["scenario"] for row in rows]
    assert set(scores["scenario_accuracy_by_class"]) == set(scenarios)
    most = max(map(scenarios.count, scenarios))
    assert scores["scenario_majority"] == pytest.approx(100 * most / len(rows))
    low, high = scores["scenario_accuracy_95"]
    assert low <= scores["scenario_accuracy"] <= high
    assert "scenario_accuracy on test" in (by_heart / "pretrained/README.md").read_text()
    history = list(csv.DictReader((by_heart / "history.csv").read_text().splitlines()))
    assert 0 <= float(history[-1]["valid_TER"]) < 100


def test_speechbrain_understands_by_the_export_wherever_it_lies(
    by_heart, meanings, tmp_path, monkeypatch
):
    shutil.copytree(by_heart / "pretrained", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)  # SpeechBrain links the files that it reads into it
    model = EndToEndSLU.from_hparams(source="moved", savedir="links")
    lines = (by_heart / "predictions_test.jsonl").read_text().splitlines()
    expected = {line["file"]: line for line in map(json.loads, lines)}
    for row in read_manifest(meanings / "test.csv"):
        file = f"{row.ID}.flac"
        try:
            meaning = parse(model.decode_file(row.wav))
        except ValueError:
            meaning = None
        assert prediction_line(file, meaning) == expected[file]


def test_the_command_understands_files(by_heart, meanings, tmp_path, capsys):
    files = [row.wav for row in read_manifest(meanings / "test.csv")]
    model = str(by_heart / "pretrained")
    status = cli.main(["understand", "--json", "--device=cpu", model, *files, "missing.wav"])
    captured = capsys.readouterr()
    answers = [json.loads(line) for line in captured.out.splitlines()]
    assert [answer["file"] for answer in answers] == [*files, "missing.wav"]
    assert status == 1 and "missing.wav: no such file" in captured.err
    assert all(("semantics" in answer) != ("error" in answer) for answer in answers)
    assert any(answer.get("semantics", {}).get("scenario") for answer in answers)
    old = tmp_path / "old"  # without the labels' names
    shutil.copytree(model, old)
    yaml = (old / "hyperparams.yaml").read_text()
    assert yaml.count("label_names:\n- scenario\n- action\n") == 1
    (old / "hyperparams.yaml").write_text(yaml.replace("label_names:\n- scenario\n- action\n", ""))
    cli.main(["understand", "--json", "--device=cpu", str(old), *files])
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert again == answers[:-1]
    assert cli.main(["transcribe", model, files[0]]) == 1
    assert "summarymixing understand uses it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names, understood",
    [
        ({"label_names": ["scenario", "action"]}, [True, False]),
        ({"label_names": ["foo"]}, [False, True]),
        ({}, [True, True]),
    ],
)
def test_other_labels_than_in_training_are_no_meaning(names, understood, monkeypatch):
    texts = ['{"scenario":"a","action":"b","entities":[]}', '{"foo":"a","entities":[]}']
    said = [{"file": "x.wav", "seconds": 1.0, "answers": [(0.0, text)]} for text in texts]
    monkeypatch.setattr(transcribe, "in_batches", lambda *_, **__: said)
    model = SimpleNamespace(hparams=SimpleNamespace(**names))
    meanings = list(transcribe.understand(model, ["x.wav"] * 2))
    assert [meaning.error is None for meaning in meanings] == understood
    assert [meaning.semantics is not None for meaning in meanings] == understood
    assert all("has the labels [" in m.error for m in meanings if m.error)


def test_a_file_of_many_commands_is_refused_and_spoils_no_other(by_heart, meanings, tmp_path):
    rows = read_manifest(meanings / "test.csv")[:2]
    recording, files = tmp_path / "a day.wav", [row.wav for row in rows]
    samples = np.concatenate([soundfile.read(file)[0] for file in files])
    soundfile.write(recording, np.resize(samples, 31 * 16000), 16000)
    model = transcribe.load_model(by_heart / "pretrained", "cpu", command="understand")
    alone = list(transcribe.understand(model, files))
    first, long, second = transcribe.understand(model, [files[0], recording, files[1]])
    assert [first, second] == alone
    assert long.semantics is None
    assert long.error == (
        f"{recording}: holds 31.0 s, and a command is 30 s at most: cut it into its commands"
    )


def test_debug_understands_two_utterances_in_a_folder_of_its_own(train, tmp_path):
    train(tmp_path / "out", debug=True)
    results = json.loads((tmp_path / "out-debug/results.json").read_text())
    assert results["test"]["test"]["utterances"] == 2
    assert not (tmp_path / "out").exists()


def test_testing_again_needs_no_training_set(by_heart, train):
    files = [by_heart / name for name in ("results.json", "predictions_test.jsonl")]
    files.append(by_heart / "pretrained/hyperparams.yaml")
    before = [file.read_text() for file in files]
    train_csv = by_heart.parent / "train.csv"
    train_csv.rename(by_heart.parent / "away.csv")
    files[0].unlink()
    train(by_heart, train_csv=train_csv, test_only=True, **BY_HEART)
    assert [file.read_text() for file in files] == before


def test_an_output_that_is_no_semantics_is_counted_and_is_an_error(
    train, meanings, tmp_path, capsys
):
    out = train(tmp_path / "out", number_of_epochs=1, optimizer_step_limit=1, lr=1e-6)
    scores = json.loads((out / "results.json").read_text())["test"]["test"]
    assert scores["invalid"] == scores["utterances"] == 6
    assert scores["scenario_accuracy"] == scores["SLU_F1"] == scores["exact"] == 0
    lines = (out / "predictions_test.jsonl").read_text().splitlines()
    assert [json.loads(line)["scenario"] for line in lines] == [""] * 6
    assert (
        cli.main(
            ["understand", str(out / "pretrained"), read_manifest(meanings / "test.csv")[0].wav]
        )
        == 1
    )
    assert "the model's output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrd, reason",
    [
        ("TURN IT OFF", "is no JSON"),
        ('{"intent":"x","entities":[]}', r"has the labels \['intent'\]"),
    ],
)
def test_training_text_without_semantics_is_named(train, meanings, tmp_path, wrd, reason):
    rows = read_manifest(meanings / "train.csv")
    rows[3] = replace(rows[3], wrd=wrd)
    write_manifest(tmp_path / "train.csv", rows)
    with pytest.raises(SystemExit, match=f"1 of 35 utterances(.|\n)*train-3: wrd .*{reason}"):
        train(tmp_path / "out", train_csv=tmp_path / "train.csv")


@pytest.mark.slow
def test_a_trained_recognisers_encoder_is_where_training_begins(train, command, tmp_path):
    same = {"front_end_channels": "[4, 4]", "csgu_linear_units": 16}
    experiment.run(command(tmp_path / "asr", number_of_epochs=1), ASR)
    asr = tmp_path / "asr/pretrained"
    options = {"number_of_epochs": 1, "optimizer_step_limit": 1, "lr": 1e-9, **same}
    out = train(tmp_path / "out", encoder_folder=asr, **options)
    theirs, ours = (torch.load(f / "model.ckpt") for f in (asr, out / "pretrained"))
    for key, value in theirs.items():
        if key.startswith(("0.", "1.encoder.", "1.custom_src_module.")):
            torch.testing.assert_close(ours[key], value, atol=1e-6, rtol=0)
    assert not ours["1.decoder.layers.0.norm1.norm.weight"].equal(torch.zeros(16))
    statistics = [torch.load(f / "normalizer.ckpt") for f in (asr, out / "pretrained")]
    assert statistics[0]["glob_mean"].equal(statistics[1]["glob_mean"])
    asr.rename(tmp_path / "moved")  # to go on takes nothing of it
    train(out, encoder_folder=asr, **{**options, "number_of_epochs": 2, "optimizer_step_limit": 3})
    assert "epoch: 2, steps: 3" in (out / "train_log.txt").read_text()
    kept = torch.load(out / "pretrained" / "normalizer.ckpt")
    assert kept["glob_mean"].equal(statistics[0]["glob_mean"])
    (tmp_path / "moved").rename(asr)
    log = (out / "log.txt").read_text()
    assert "the trained encoder's" in log and "1.decoder" in log
    with pytest.raises(SystemExit, match=r"whose encoder is another(.|\n)*1\.encoder\.layers"):
        train(tmp_path / "wide", encoder_folder=asr, **{**options, "d_model": 32})
    with pytest.raises(SystemExit, match="--encoder_folder is .*no such folder"):
        train(tmp_path / "none", encoder_folder=tmp_path / "nowhere", **options)
    text = (asr / "hyperparams.yaml").read_text()
    assert text.count("frontend.KaldiFbank") == 1
    (asr / "hyperparams.yaml").write_text(text.replace("KaldiFbank", "WholeFrameFbank"))
    with pytest.raises(SystemExit, match=r"the features of .*WholeFrameFbank, but here .*Kaldi"):
        train(tmp_path / "unlike", encoder_folder=asr, **options)


SHAPE = ("d_model", "num_encoder_layers", "d_ffn", "csgu_linear_units", "kernel_size", "n_mels")
SHAPE += ("front_end_channels", "front_end_output", "mixer_heads", "layer_norm")
SHAPE += ("neighbours", "summaries")


@pytest.mark.parametrize(
    "system, options",
    [
        ("sumformer", {}),
        ("sumformer_published", {}),
        ("sumformer_published", {"layer_norm": False, "mixer_heads": 4}),
        ("branchformer_attention", {}),
        ("conformer_summarymixing", {}),
        ("conformer_summarymixing_published", {}),
        ("conformer_attention", {}),
    ],
)
def test_slurps_systems_take_librispeechs_encoders(system, options, tmp_path):
    options = {"d_model": 16, "d_ffn": 16, "csgu_linear_units": 16, "vocab_size": 30, **options}
    options |= {"output_folder": str(tmp_path)}
    libri_speech, own = ROOT / "recipes/LibriSpeech/ASR/transformer/hparams", (ROOT / YAML).parent
    theirs = load_hyperparams(libri_speech / f"{system}.yaml", options)
    theirs["normalize"]._save(tmp_path / "normalizer.ckpt")
    torch.save(theirs["model"].state_dict(), tmp_path / "model.ckpt")
    features = type(theirs["compute_features"])
    text = f"compute_features: !new:{features.__module__}.{features.__qualname__}\n"
    (tmp_path / "hyperparams.yaml").write_text(text)
    options |= {key: theirs[key] for key in SHAPE if key in theirs}
    ours = load_hyperparams(own / f"{system}.yaml", {**options, "seed": 1})
    load_encoder(ours, tmp_path)
    encoders = [hparams["transformer"].encoder.state_dict() for hparams in (theirs, ours)]
    assert encoders[0].keys() == encoders[1].keys()
    assert all(value.equal(encoders[1][key]) for key, value in encoders[0].items())


def test_slurp_spoken_by_the_mini_corpus_voices_end_to_end(command, speech_data, tmp_path):
    pytest.importorskip("espeakng_loader", reason="the voices need the extra [mini]")
    texts = tmp_path / "published" / slurp.TEXTS
    texts.mkdir(parents=True)
    for split in ("devel", "test"):
        lines = (speech_data / "slurp" / slurp.TEXTS / f"{split}.jsonl").read_text().splitlines()
        (texts / f"{split}.jsonl").write_text("\n".join(lines[:6]) + "\n")
    slurp_voices.build(tmp_path / "published", tmp_path / "spoken", recordings=1, progress=False)
    options = {"data_folder": tmp_path / "spoken", "test_splits": "test,test_voices"}
    results = run_two_steps(command, tmp_path / "out", YAML, vocab_size=90, **options)
    assert {name: scores["utterances"] for name, scores in results["test"].items()} == {
        "test": 6,
        "test_voices": 6,
    }


def test_coffee_orders_end_to_end(command, speech_data, tmp_path):
    yaml = "recipes/Barista/direct/hparams/sumformer.yaml"
    options = {"data_folder": speech_data / "barista_slu", "fold": 4, "batch_seconds": 60}
    results = run_two_steps(command, tmp_path / "out", yaml, vocab_size=70, **options)
    assert results["test"]["test"]["utterances"] == 28
    assert "intent_accuracy" in results["test"]["test"]
    pooled = pool([tmp_path / "out"])
    assert pooled.items() <= results["test"]["test"].items()
    more = results["test"]["test"].keys() - pooled.keys()
    assert more == {"intent_accuracy_by_class", "intent_majority"}
    assert results["test"]["test"]["intent_majority"] == 100


def test_coffee_orders_differ_by_the_mixer_alone_and_take_every_option(tmp_path):
    recipe = ROOT / "recipes/Barista/direct/hparams"
    options = {"output_folder": str(tmp_path), "fold": 2, "ctc_weight": 0.2, "speeds": [100]}
    options |= {"num_encoder_layers": 1, "encoder_module": "conformer", "vocab_size": 50}
    systems = [
        load_hyperparams(recipe / f"{name}.yaml", options)
        for name in ("sumformer", "branchformer_attention")
    ]
    sumformer, attention = map(experiment.settings, systems)
    assert options.items() <= sumformer.items()
    assert (sumformer["corpus"], sumformer["d_ffn"], sumformer["ctc_weight_decode"]) == (
        "barista", 384, 0.0,
    )  # fmt: skip
    different = {key for key in sumformer if sumformer[key] != attention.get(key)}
    assert different == {"neighbours", "summaries", "token_mixer"}
    # what they share stands in one file
    assert all("vocab_size" not in path.read_text() for path in recipe.glob("*.yaml"))


def test_folds_are_measured_together(tmp_path):
    right, wrong = parse(ORDER), parse(ORDER.replace("tea", "milk"))
    counts = []
    for fold, meanings in enumerate([(right, wrong), (None,)]):
        folder = tmp_path / str(fold)
        files = [f"{fold}-{n}.flac" for n in range(len(meanings))]
        rows = [Utterance(Path(file).stem, 1.0, f"audio/{file}", "", ORDER) for file in files]
        (folder / "manifests").mkdir(parents=True)
        write_manifest(folder / "manifests/test.csv", rows)
        write_predictions(folder / "predictions_test.jsonl", zip(files, meanings))
        counts += [score(right, meaning) for meaning in meanings]
    pooled = pool([tmp_path / "0", tmp_path / "1"])
    assert pooled == summarize(counts)
    assert (pooled["exact"], pooled["invalid"]) == (pytest.approx(100 / 3), 1)
    write_predictions(tmp_path / "1/predictions_test.jsonl", [("other.flac", right)])
    (tmp_path / "2").mkdir()
    for folders, message in (
        ([tmp_path / "1"], "predictions_test.jsonl has other utterances than"),
        ([], "no folder"),
        ([tmp_path / "0", tmp_path / "0"], "0-0 was tested in .*0 and in"),
        ([tmp_path / "2"], "predictions_test.jsonl is missing"),
        ([tmp_path / "0/manifests/test.csv"], "test.csv is no folder: give the output folders"),
    ):
        with pytest.raises(UserError, match=message):
            pool(folders)


def run_two_steps(command, folder, yaml, **options):
    csvs = {f"{split}_csv": "null" for split in ("train", "valid", "test")}
    options = {"number_of_epochs": 1, "optimizer_step_limit": 2, **csvs, **options}
    options |= {"max_decode_ratio": 0.2}
    experiment.run(command(folder, yaml=yaml, **options), Understanding)
    assert (folder / "pretrained/model.ckpt").is_file()
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize(
    "page, model, clip",
    [
        ("recipes/SLURP/direct/README.md", "results/sumformer/1234/pretrained", "speech.wav"),
        ("recipes/Barista/direct/README.md", "results/sumformer/fold0/pretrained", "order.wav"),
    ],
)
def test_the_python_of_the_recipes(by_heart, meanings, capsys, page, model, clip):
    wav = read_manifest(meanings / "test.csv")[0].wav
    run_python(page, replaced=[(model, by_heart / "pretrained"), (clip, wav)])
    assert capsys.readouterr().out.startswith("{")
