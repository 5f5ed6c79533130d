"""The study of examples/transfer: its tasks, systems of one size, and a training of each task."""

import csv
import importlib.util
import json

import pytest
import torch
from tiny import ROOT

from speechbrain_summarymixing.analysis.compare_plan import parse_corpus, parse_system, plan_runs
from speechbrain_summarymixing.analysis.comparison_table import compare_runs, row_of
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training import experiment
from speechbrain_summarymixing.training.config import load_hyperparams

FOLDER = ROOT / "examples" / "transfer"
SYSTEMS = ("none", "published", "selective", "attention")
NEEDED = {"digits": "sklearn", "text": "bible", "numbers": "random"}
spec = importlib.util.spec_from_file_location("transfer_train", FOLDER / "train.py")
transfer = importlib.util.module_from_spec(spec)
spec.loader.exec_module(transfer)


def parse(words):
    """The number of an English name, by other means than the example's."""
    total = current = 0
    for word in words.replace("-", " ").replace(" and ", " ").split():
        if word in transfer.ONES:
            current += transfer.ONES.index(word)
        elif word in transfer.TENS:
            current += 10 * (transfer.TENS.index(word) + 2)
        elif word == "hundred":
            current *= 100
        else:
            total, current = 1000 * current, 0
    return total + current


def test_numbers_are_what_their_names_say_and_fit_a_line():
    lines = transfer.numbers()
    names, figures = zip(*(line.strip().split("=") for line in lines))
    assert [parse(name) for name in names] == [int(figure) for figure in figures]
    assert len(set(lines)) == len(lines) == 10_000
    assert "two thousand and ninety" in names and max(map(len, lines)) <= 128


@pytest.mark.parametrize("corpus", NEEDED)
def test_sets_of_a_corpus_are_apart_and_the_same_at_each_start(corpus):
    pytest.importorskip(NEEDED[corpus], reason=f"the corpus {corpus} comes with it")
    sets = transfer.Transfer.sets({"corpus": corpus})
    train, valid, test = ([row.wrd for rows in part.values() for row in rows] for part in sets)
    assert tuple(map(len, (train, valid, test))) == transfer.CORPORA[corpus][1]
    assert not set(test) & {*train, *valid}
    assert sets == transfer.Transfer.sets({"corpus": corpus})
    assert all(line.isascii() and len(line) <= 128 for line in (*train, *valid, *test))
    with pytest.raises(UserError, match="--corpus is mini, but must be one of digits"):
        transfer.Transfer.sets({"corpus": "mini"})


@pytest.mark.parametrize("line, learnt", [("AB=7", "..7"), ("one=1\n", "...1\n"), ("ab c", "b c")])
def test_what_stands_after_the_sign_is_learnt_or_else_all(line, learnt):
    item = transfer.Lines([transfer.Example("a", line)])[0]
    assert "".join(map(chr, item["codes"])) == line[:-1]
    told = "".join(chr(code) if code else "." for code in item["following"])
    assert told == learnt


def test_systems_are_of_one_size_and_swapped():
    runs = plan_runs(
        [parse_system(str(FOLDER / f"{name}.yaml")) for name in SYSTEMS],
        [parse_corpus("numbers:lr=0.1", own=True)],
        [1],
        baseline="attention",
        match_parameters=True,
    )
    sizes = {run.system: run.encoder_parameters for run in runs}
    assert sizes == pytest.approx(dict.fromkeys(SYSTEMS, sizes["attention"]), rel=0.005)
    assert all(run.settings["corpus"] == "numbers" for run in runs)
    with pytest.raises(UserError, match="the corpus is numbers, but must be one of"):
        parse_corpus("numbers:lr=0.1")


def mixer_names(name, folder):
    hparams = load_hyperparams(FOLDER / f"{name}.yaml", {"output_folder": str(folder)})
    attentions = [layer.self_attn for layer in hparams["encoder"]]
    return {type(getattr(attention, "mixer", attention)).__name__ for attention in attentions}


def test_a_system_has_the_mixer_that_it_is_named_for(tmp_path):
    assert {name: mixer_names(name, tmp_path) for name in SYSTEMS} == {
        "none": {"NoMixing"},
        "published": {"SummaryMixing"},
        "selective": {"SelectiveSummaryMixing"},
        "attention": {"MultiheadAttention"},
    }


@pytest.mark.parametrize(
    "corpus, system", [("digits", "selective"), ("text", "published"), ("numbers", "attention")]
)
def test_two_steps_of_training_give_what_compare_reads(corpus, system, tmp_path, monkeypatch):
    pytest.importorskip(NEEDED[corpus], reason=f"the corpus {corpus} comes with it")
    lines, _, *rest = transfer.CORPORA[corpus]
    monkeypatch.setitem(transfer.CORPORA, corpus, (lines, (16, 6, 9), *rest))
    settings = {"corpus": corpus, "number_of_epochs": 1, "batch_lines": 8, "d_model": 8}
    run = plan_runs(
        [parse_system(str(FOLDER / f"{system}.yaml"))],
        [parse_corpus(corpus, own=True)],
        [1],
        settings={key: str(value) for key, value in settings.items()},
        baseline=system,
    )[0]
    options = {**settings, "seed": 1, "output_folder": run.folder(tmp_path)}
    listed = [f"--{key}={value}" for key, value in options.items()]
    experiment.run([run.file, "--device=cpu", "--check=True", *listed], transfer.Transfer)
    assert not run.folder(tmp_path).exists()  # it was a rehearsal
    experiment.run([run.file, "--noprogressbar", "--device=cpu", *listed], transfer.Transfer)
    row = row_of(run, tmp_path)
    assert row["steps"] == 2 and 0 <= row["test_error"] <= 100
    (compared,) = compare_runs([run], tmp_path, system)
    assert compared["mean"] == pytest.approx(row["test_error"])
    with open(run.folder(tmp_path) / "errors_test.csv", newline="") as file:
        totals = [int(row["total"]) for row in csv.DictReader(file)]
    assert totals == [transfer.PIECE - 1 if corpus == "text" else 1] * 9
    results = json.loads((run.folder(tmp_path) / "results.json").read_text())
    assert results["test"]["test"]["lines"] == 9


@pytest.mark.parametrize("corpus", ["text", "digits"])
def test_text_sees_no_later_character_and_pixels_see_each_other(corpus, tmp_path):
    hparams = load_hyperparams(
        FOLDER / "published.yaml", {"output_folder": str(tmp_path), "corpus": corpus}
    )
    brain = transfer.Transfer(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts={"device": "cpu"},
        checkpointer=hparams["checkpointer"],
    )
    brain.modules.eval()

    def scores(*lines):
        rows = [transfer.Example(str(index), line) for index, line in enumerate(lines)]
        items = [transfer.Lines(rows)[index] for index in range(len(rows))]
        with torch.no_grad():
            return brain.compute_forward(transfer.loading.PaddedBatch(items), None)

    alone, together = scores("ABCDEF"), scores("ABCDEF", "ABCDEFGHIJ")
    torch.testing.assert_close(together[:1, :5], alone)  # whatever the padding
    same = torch.isclose(scores("ABCDXF")[0, :4], alone[0, :4], atol=1e-6).all()
    assert same == (corpus == "text")
