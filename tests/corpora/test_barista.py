import json

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import barista
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError

HEADER = "path\tduration_s\tsemantics\n"
ORDER = {"intent": "orderDrink", "slots": {"size": "large", "coffeeDrink": " iced coffee"}}


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "barista"
    (root / "audio").mkdir(parents=True)
    lines = []
    for index in range(10):
        soundfile.write(root / "audio" / f"order{index}.flac", numpy.zeros(8000), 16000)
        lines.append(f"audio/order{index}.flac\t0.500\t{json.dumps(ORDER)}\n")
    (root / "manifest.tsv").write_text(HEADER + "".join(lines))
    return root


def prepare(corpus, **options):
    options = {"progress": False, **options}
    paths = barista.prepare(corpus, corpus.parent / "manifests", **options)
    return {split: read_manifest(path) for split, path in paths.items()}


def test_words_are_the_meaning_with_slots_in_their_order(corpus):
    rows = prepare(corpus)
    assert {u.wrd for r in rows.values() for u in r} == {
        '{"intent":"orderDrink","entities":'
        '[{"type":"size","filler":"large"},{"type":"coffeeDrink","filler":"iced coffee"}]}'
    }
    assert [len(r) for r in rows.values()] == [6, 2, 2]


def test_every_utterance_is_tested_once_and_validated_once(corpus):
    folds = [prepare(corpus, fold=fold) for fold in range(5)]
    ids = [{split: {u.ID for u in rows} for split, rows in fold.items()} for fold in folds]
    everything = {f"order{index}" for index in range(10)}
    for fold in ids:
        assert sum(map(len, fold.values())) == 10 and set().union(*fold.values()) == everything
    for split in ("valid", "test"):
        assert set().union(*(fold[split] for fold in ids)) == everything
    assert all(a["valid"] == b["test"] for a, b in zip(ids, ids[1:] + ids[:1]))
    assert prepare(corpus)["test"] == folds[0]["test"]
    assert prepare(corpus, seed=1)["test"] != folds[0]["test"]


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"fold": 5}, "fold is 5, but must be 0 to 4"),
        ({"fold": -1}, "fold is -1, but must be 0 to 4"),
        ({"fold": "x"}, "fold is 'x', but must be 0 to 4, a whole number"),
        ({"fold": 1.5}, "fold is 1.5, but must be 0 to 4, a whole number"),
        ({"fold": None}, "fold is None, but must be 0 to 4, a whole number"),
        ({"fold": True}, "fold is True, but must be 0 to 4, a whole number"),
        ({"folds": 2}, "folds is 2, but must be 3 to 10"),
        ({"folds": 11}, "folds is 11, but must be 3 to 10"),
        ({"splits": ["dev"]}, "there is no split dev: take train, valid, test"),
    ],
)
def test_wrong_settings(corpus, options, reason):
    with pytest.raises(UserError, match=reason):
        prepare(corpus, **options)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("path\tseconds\n", "no column duration_s, semantics"),
        (HEADER + "audio/order0.flac\t0.5\n", "line 2: no value for semantics: mend the line"),
        (HEADER + "a.flac\t0.5\t{\n", "line 2: semantics is '{', but must be JSON with an intent"),
        (HEADER + 'a.flac\t1\t{"intent": "x", "slots": {"y": 3}}\n', "line 2: semantics is"),
        (HEADER + f"a.flac\t1\t{'[' * 100000}\n", r"line 2: semantics is '\[\[.*must be JSON"),
        (HEADER + 'a.flac\t1\t{"intent": "", "slots": {}}\n', "line 2: has intent ''"),
        (
            HEADER + f"audio/order0.flac\t1\t{json.dumps(ORDER)}\nb.flac\t1\t{json.dumps(ORDER)}\n",
            r"1 of 2 recordings are missing:\n  .*b.flac",
        ),
    ],
)
def test_wrong_lines(corpus, content, reason):
    (corpus / "manifest.tsv").write_text(content)
    with pytest.raises(UserError, match=reason):
        prepare(corpus)


def test_another_folder(tmp_path):
    with pytest.raises(UserError, match="manifest.tsv: no such file: give the folder"):
        barista.prepare(tmp_path, tmp_path)


def test_real_speech(speech_data, tmp_path):
    paths = barista.prepare(speech_data / "barista_slu", tmp_path, progress=False)
    rows = {split: read_manifest(path) for split, path in paths.items()}
    assert {split: len(r) for split, r in rows.items()} == {"train": 84, "valid": 28, "test": 28}
    meanings = [parse(u.wrd, names=["intent"]) for r in rows.values() for u in r]
    assert all(kind != filler == filler.strip() for m in meanings for kind, filler in m.entities)
