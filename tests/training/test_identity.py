"""One output folder, one run."""

import json
from pathlib import Path

import pytest

from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.identity import (
    check_output_folder,
    check_utterances,
    settings,
)

SETTINGS = {"lr": 0.001, "dims": (4, 4), "data": Path("corpus"), "epochs": 3, "nan": float("nan")}


def check(folder, settings, free=("epochs",), **options):
    hint = "delete it to start anew"
    check_output_folder(folder, settings, free=free, overwrite_hint=hint, **options)


def test_the_same_settings_pass_again(tmp_path):
    folder = tmp_path / "new" / "run"
    check(folder, SETTINGS)
    stored = (folder / "settings.json").read_text()
    check(folder, {**SETTINGS, "dims": [4, 4], "data": "corpus"})
    assert (folder / "settings.json").read_text() == stored
    assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_other_settings_are_listed_with_both_values(tmp_path):
    check(tmp_path, SETTINGS)
    changed = {key: value for key, value in SETTINGS.items() if key != "data"}
    with pytest.raises(UserError) as caught:
        check(tmp_path, {**changed, "lr": 0.1, "new": "ü" * 200})
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "lr: 0.001 there, 0.1 now" in message
    assert 'data: "corpus" there, not set now' in message
    assert "new: not set there" in message and "…" in message
    assert "dims" not in message and "nan" not in message
    assert "another --output_folder, or delete it to start anew" in message
    assert json.loads((tmp_path / "settings.json").read_text())["lr"] == 0.001


def test_free_settings_may_differ_and_the_latest_are_stored(tmp_path):
    check(tmp_path, SETTINGS)
    check(tmp_path, {**SETTINGS, "epochs": 5})
    assert json.loads((tmp_path / "settings.json").read_text())["epochs"] == 5
    with pytest.raises(UserError, match="epochs: 5 there, 3 now"):
        check(tmp_path, SETTINGS, free=())


def test_a_run_that_has_saved_nothing_takes_other_settings(tmp_path):
    check(tmp_path, SETTINGS)
    check(tmp_path, {**SETTINGS, "lr": 0.1}, begun=False)
    with pytest.raises(UserError, match="lr: 0.1 there, 0.001 now"):
        check(tmp_path, SETTINGS)


def test_a_run_from_before_an_option_with_a_default_goes_on(tmp_path):
    check(tmp_path, SETTINGS)
    new = {**SETTINGS, "gain": 0.2}
    with pytest.raises(UserError, match="gain: not set there, 0.2 now"):
        check(tmp_path, new)
    check(tmp_path, new, new_with_default={"gain", "lr"})
    with pytest.raises(UserError, match="lr: 0.001 there, 0.1 now"):
        check(tmp_path, {**new, "lr": 0.1}, new_with_default={"gain", "lr"})


def utterances(*words, duration=1.0, wav="a.wav"):
    return [Utterance(f"u{i}", duration, wav, "s", wrd) for i, wrd in enumerate(words)]


def test_the_same_utterances_pass_wherever_they_lie(tmp_path):
    valid = {"valid": utterances("NO")}
    check_utterances(tmp_path, {"a": utterances("YES", "OFF")}, valid, begun=False)
    moved = utterances("YES", "OFF", wav="/elsewhere/a.wav")
    check_utterances(tmp_path, {"b": moved[1:], "c": moved[:1]}, valid, begun=True)


@pytest.mark.parametrize(
    "train, valid, what",
    [
        (utterances("YES"), utterances("NO"), "to train on .2 there, 1 now"),
        (utterances("YES", "ON"), utterances("NO"), "to train on .2 there, 2 now"),
        (utterances("YES", "OFF", duration=2.0), utterances("NO"), "to train on"),
        (utterances("YES", "OFF"), utterances("NO", "NO"), "to validate on .1 there, 2 now"),
    ],
)
def test_other_utterances_are_refused_once_weights_depend_on_them(tmp_path, train, valid, what):
    given = {"train": utterances("YES", "OFF")}, {"valid": utterances("NO")}
    check_utterances(tmp_path, *given, begun=False)
    with pytest.raises(UserError, match=what):
        check_utterances(tmp_path, {"train": train}, {"valid": valid}, begun=True)
    check_utterances(tmp_path, *given, begun=True)  # the refused ones were not noted


@pytest.mark.parametrize("content", ["", "[1]", '{"train": {}}'])
def test_utterances_that_cannot_be_read_are_no_reason_to_go_on(tmp_path, content):
    given = {"train": utterances("YES")}, {"valid": utterances("NO")}
    check_utterances(tmp_path, *given, begun=True)  # a run from before they were noted
    (tmp_path / "utterances.json").write_text(content)
    with pytest.raises(UserError, match="utterances.json: does not tell a run's utterances"):
        check_utterances(tmp_path, *given, begun=True)


@pytest.mark.parametrize(
    "key, name", [("tokenizer_folder", "tokenizer.ckpt"), ("encoder_folder", "model.ckpt")]
)
def test_what_weights_began_from_is_compared_by_content(tmp_path, key, name):
    folder, moved, other = (tmp_path / part for part in ("a", "b", "c"))
    for place, content in ((folder, b"one"), (other, b"two")):
        place.mkdir()
        (place / name).write_bytes(content)

    def begin(run, place):
        check(tmp_path / run, settings({key: str(place)}))

    begin("run", folder)
    folder.rename(moved)
    begin("run", moved)
    with pytest.raises(UserError, match=key):
        begin("run", other)
    (moved / name).write_bytes(b"two")
    with pytest.raises(UserError, match=key):
        begin("run", moved)
    check(tmp_path / "of before", {key: str(moved)})
    with pytest.raises(UserError, match=key):
        begin("of before", other)
    begin("of before", moved)
    begin("of before", other)  # which holds the same by now
    (moved / name).unlink()
    begin("run", moved)  # the run has its own
    assert settings({key: None}) == {}


def test_text_is_the_same_wherever_it_lies(tmp_path):
    check(tmp_path, {"lm_text": "a/x.txt.gz,b/y.txt"})
    check(tmp_path, {"lm_text": "/c/x.txt.gz, y.txt"})
    with pytest.raises(UserError, match="lm_text"):
        check(tmp_path, {"lm_text": "a/x.txt.gz"})


def test_shards_are_the_same_wherever_they_lie(tmp_path):
    check(tmp_path, {"shards": "a/shard-{0..3}.tar,b/x.tar"})
    check(tmp_path, {"shards": "/elsewhere/shard-{0..3}.tar, /c/x.tar"})
    with pytest.raises(UserError, match="shards"):
        check(tmp_path, {"shards": "a/shard-{0..2}.tar,b/x.tar"})


@pytest.mark.parametrize("content", ["", "[1]", '{"lr"'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError, match="settings.json: these are not the settings of a run"):
        check(tmp_path, SETTINGS)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    file = tmp_path / "run"
    file.touch()
    with pytest.raises(UserError, match="run: cannot be used as the output folder"):
        check(file, SETTINGS)


def test_settings_are_plain_values(tmp_path):
    with pytest.raises(TypeError, match="plain values"):
        check(tmp_path, {"activation": print})
    assert list(tmp_path.iterdir()) == []
