"""What a run trains, validates and tests on, and what is told of it before."""

import csv
import json
import shutil

import numpy
import pytest
import soundfile

from speechbrain_summarymixing import audio
from speechbrain_summarymixing.corpora import checks
from speechbrain_summarymixing.data.tokens import train_tokenizer
from speechbrain_summarymixing.training import curves


def manifest(folder, split="test"):
    with open(folder / f"{split}.csv", newline="") as file:
        return {row["ID"]: row for row in csv.DictReader(file)}


def test_audio_of_csv_files_is_opened_once(train, changed_csv, tmp_path, monkeypatch):
    path = changed_csv(tmp_path / "train.csv", lambda rows: None)
    opened = []
    original = checks.headers
    monkeypatch.setattr(
        checks, "headers", lambda paths, **kw: opened.extend(paths) or original(paths, **kw)
    )
    train(train_csv=path, number_of_epochs=1)
    assert len(opened) == 24 + 5 + 6
    train(train_csv=path)
    assert len(opened) == 35
    changed_csv(path, lambda rows: rows[0].update(duration=9))
    with pytest.raises(SystemExit, match="train-0: 9 s, but the audio has"):
        train(train_csv=path)


def segments_of_one_file(noises, folder, split):
    """A CSV file of the utterances of a set as segments of a channel of one recording."""
    rows, samples = list(manifest(noises, split).values()), []
    for row in rows:
        row["start"] = sum(map(len, samples)) / 16000
        samples.append(soundfile.read(row["wav"])[0])
        row["stop"] = sum(map(len, samples)) / 16000
        row["wav"] = folder / f"{split}.flac"
        row["channel"] = 1
    speech = numpy.concatenate(samples)
    other = numpy.random.default_rng(0).normal(0, 0.1, len(speech))
    soundfile.write(folder / f"{split}.flac", numpy.stack([other, speech], axis=1), 16000)
    with open(folder / f"{split}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_segments_of_long_files_train_and_test_as_files_of_their_own(train, noises, tmp_path):
    (tmp_path / "long").mkdir()
    rows = {
        s: segments_of_one_file(noises, tmp_path / "long", s) for s in ("train", "valid", "test")
    }
    csvs = {f"{split}_csv": tmp_path / "long" / f"{split}.csv" for split in rows}
    options = {"number_of_epochs": 1, "averaged_checkpoints": 1}
    folder = train(**options, **csvs)
    details = (folder / "errors_test.csv").read_text()
    history = curves.read(folder)[-1]
    shutil.rmtree(folder)
    folder = train(**options)
    expected = curves.read(folder)[-1]
    assert {k: v for k, v in history.items() if "seconds" not in k} == {
        k: v for k, v in expected.items() if "seconds" not in k
    }
    assert (folder / "errors_test.csv").read_text() == details
    lines = [
        {"audio_filepath": "test.flac", "text": row["wrd"], "duration": float(row["duration"])}
        | {"offset": row["start"], "channel": row["channel"]}
        for row in rows["test"]
    ]
    (tmp_path / "long" / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    results = (folder / "results.json").read_text()
    train(test_only=True, test_csv=tmp_path / "long" / "test.jsonl", **options)
    again = json.loads((folder / "results.json").read_text())
    assert again["test"]["test"] == json.loads(results)["test"]["test"]


def test_test_only_needs_no_training_set(train, noises, tmp_path):
    moved = tmp_path / "train.csv"
    shutil.copy(noises / "train.csv", moved)
    results = (train(train_csv=moved) / "results.json").read_text()
    moved.unlink()
    assert (train(train_csv=moved, test_only=True) / "results.json").read_text() == results


def test_other_transcripts_than_the_weights_are_refused(train, changed_csv, noises, tmp_path):
    path = tmp_path / "train.csv"
    shutil.copy(noises / "train.csv", path)
    before = (train(train_csv=path, number_of_epochs=1) / "tokenizer.model").read_bytes()
    changed_csv(path, lambda rows: rows[0].update(wrd="ZOO"))
    for _ in range(2):
        with pytest.raises(SystemExit, match="trained with the tokens of other transcripts"):
            train(train_csv=path)
    assert (tmp_path / "out/tokenizer.model").read_bytes() == before
    shutil.copy(noises / "train.csv", path)
    train(train_csv=path)


def test_files_of_one_name_are_told_apart(train, noises, tmp_path):
    csvs = {}
    for part in ("train", "valid", "test"):
        path = csvs[f"{part}_csv"] = tmp_path / part / "data.csv"
        path.parent.mkdir()
        shutil.copy(noises / f"{part}.csv", path)
    folder = train(**csvs, number_of_epochs=1)
    assert set(json.loads((folder / "results.json").read_text())["test"]) == {"test_data"}
    assert (folder / "wer_test_data.txt").is_file()
    shutil.copytree(tmp_path / "test", tmp_path / "more" / "test")
    both = f"{csvs['test_csv']},{tmp_path / 'more/test/data.csv'}"
    with pytest.raises(SystemExit, match="another set is called test_data too, by which results"):
        train(**{**csvs, "test_csv": both}, number_of_epochs=1)


def test_training_on_what_is_tested_is_refused(train, noises):
    with pytest.raises(SystemExit, match="train is to train on and to validate or test on"):
        train(valid_csv=noises / "train.csv")
    with pytest.raises(SystemExit, match="dev is to train on and to validate or test on"):
        train(train_csv="null", valid_csv="null", test_csv="null", train_splits="train,dev")


def test_long_audio_is_left_out_of_training_and_tested(train, noises):
    longest = sorted(manifest(noises, "train").values(), key=lambda row: float(row["duration"]))[-1]
    folder = train(max_seconds=float(longest["duration"]) - 0.01, number_of_epochs=1)
    told = "train: 1 of 24 utterances (0.00 h) are left out of training: outside 0.1 to"
    log = (folder / "log.txt").read_text()
    assert told in log and f"{longest['ID']}: " in log
    shutil.rmtree(folder)
    with pytest.raises(SystemExit, match="train: nothing to train on: 24 of 24 utterances"):
        train(max_seconds=0.2)
    assert json.loads(
        (train(max_seconds=0.9, number_of_epochs=1) / "results.json").read_text()
    )["test"]["test"]["utterances"] == len(manifest(noises, "test"))  # fmt: skip
    assert max(float(row["duration"]) for row in manifest(noises, "test").values()) > 0.9


def test_a_corpus_of_librispeechs_layout(train, noises, tmp_path):
    for split in ("train", "valid", "test"):
        for row in manifest(noises, split).values():
            key = (
                row["ID"]
                .replace("train-", "1-1-")
                .replace("valid-", "2-1-")
                .replace("test-", "3-1-")
            )
            chapter = tmp_path / "corpus" / split / key[0] / "1"
            chapter.mkdir(parents=True, exist_ok=True)
            shutil.copy(row["wav"], chapter / f"{key}.flac")
            with open(chapter / f"{key[0]}-1.trans.txt", "a") as file:
                file.write(f"{key} {row['wrd']}\n")
    csvs = {f"{split}_csv": "null" for split in ("train", "valid", "test")}
    splits = {f"{split}_splits": split for split in ("train", "valid", "test")}
    options = {"corpus": "librispeech", "data_folder": tmp_path / "corpus", **csvs, **splits}
    results = json.loads((train(**options) / "results.json").read_text())
    assert results["test"]["test"]["utterances"] == 6
    (tmp_path / "corpus/train").rename(tmp_path / "elsewhere")
    again = train(**options, test_only=True) / "results.json"
    assert json.loads(again.read_text()) == results
    (tmp_path / "elsewhere").rename(tmp_path / "corpus/train")
    with pytest.raises(SystemExit, match="no split dev-clean; it holds test, train, valid"):
        train(**{**options, "test_splits": "test,dev-clean"})


def test_one_report_names_every_bad_utterance_before_training(train, changed_csv, tmp_path):
    def spoil(rows):
        rows[0]["wav"] = str(tmp_path / "gone.flac")
        rows[1]["duration"] = "0.0"
        rows[2]["wrd"] = ""
        rows[3]["ID"] = rows[4]["ID"]
        cut = tmp_path / "cut.flac"
        with open(rows[6]["wav"], "rb") as file:
            cut.write_bytes(file.read()[:-100])
        rows[6]["wav"] = str(cut)
        rows[7]["duration"] = "999"

    path = changed_csv(tmp_path / "train.csv", spoil)
    with pytest.raises(SystemExit) as error:
        train(train_csv=path)
    for expected in ("gone.flac", "train-1", "train-2", "train-4", "cut.flac", "train-7: 999 s"):
        assert expected in str(error.value), expected
    assert not list((tmp_path / "out").glob("save/*"))


def test_characters_unknown_to_the_tokens_are_told_and_no_training_text_has_them(
    train, changed_csv, tmp_path
):
    def foreign(rows):
        for row in rows:
            row["ID"] = "v" + row["ID"]
        rows[5]["wrd"] = "ÉTÉ"

    path = changed_csv(tmp_path / "valid.csv", foreign)
    folder = train(valid_csv=path, number_of_epochs=1)
    told = "1 transcripts of valid that no hypothesis can equal:\n  vtrain-5: characters not in"
    assert told in (folder / "log.txt").read_text()
    assert float(curves.read(folder)[-1]["valid_loss"]) > 0
    other = train_tokenizer(["SET"] * 9, tmp_path / "other/tokenizer.ckpt", vocab_size=7)
    assert other.get_piece_size() == 7
    with pytest.raises(SystemExit, match="transcripts that cannot be spelled(.|\n)*the tokenizer"):
        shutil.rmtree(folder)
        train(tokenizer_folder=tmp_path / "other", vocab_size=7)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_turns_out_corrupt_is_named(train, changed_csv, corrupt, tmp_path, num_workers):
    def spoil(rows):
        rows[7]["wav"] = corrupt(rows[7])

    path = changed_csv(tmp_path / "train.csv", spoil)
    with pytest.raises(SystemExit) as error:
        train(train_csv=path, num_workers=num_workers)
    assert "corrupt.wav" in str(error.value) and "Traceback" not in str(error.value)


def test_other_rates_and_channels_are_converted(train, changed_csv, tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "_said", set())

    def convert(rows):
        wav, _ = soundfile.read(rows[0]["wav"])
        rows[0]["wav"] = str(tmp_path / "stereo.wav")
        soundfile.write(rows[0]["wav"], numpy.stack([wav, wav], axis=1), 8000)
        rows[0]["duration"] = str(len(wav) / 8000)

    train(train_csv=changed_csv(tmp_path / "train.csv", convert), number_of_epochs=1)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("8000 Hz") == 1 and log.count("2 channels") == 1
