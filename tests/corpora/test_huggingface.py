import io
import shutil
import sys
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import an4, huggingface
from speechbrain_summarymixing.corpora.checks import check_manifests
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def wavs(tmp_path):
    random = numpy.random.default_rng(0)
    paths = [str(tmp_path / f"{seconds}.{kind}") for seconds, kind in ((1, "flac"), (2, "wav"))]
    for seconds, path in enumerate(paths, 1):
        soundfile.write(path, random.normal(0, 0.1, 16000 * seconds), 16000)
    return paths


def dataset(audio, **columns):
    data = datasets.Dataset.from_dict({"audio": audio, **columns})
    return data.cast_column("audio", datasets.Audio(decode=False))


def in_memory(paths, names=("a.flac", None)):
    contents = []
    for path, name in zip(paths, names):
        with open(path, "rb") as file:
            contents.append({"bytes": file.read(), "path": name})
    return contents


def prepare(source, folder, *splits, **options):
    folder = folder / "manifests"
    return huggingface.prepare(source, folder, splits=splits, progress=False, **options)


def same_samples(rows, data):
    for u, entry in zip(rows, data, strict=True):
        source = entry["audio"]["path"]
        if entry["audio"]["bytes"] is not None:
            source = io.BytesIO(entry["audio"]["bytes"])
        samples, _ = soundfile.read(source, dtype="float32")
        assert read_audio(u.wav).equal(torch.from_numpy(samples))


def test_a_saved_data_set_of_files(wavs, tmp_path):
    data = dataset(wavs, text=["A", "B"], speaker_id=[7, None])
    data.save_to_disk(tmp_path / "saved" / "train")
    [rows] = map(read_manifest, prepare(tmp_path / "saved", tmp_path, "train").values())
    assert [(u.ID, u.duration, u.spk_id, u.wrd) for u in rows] == [
        ("train-0000000", 1.0, "7", "A"),
        ("train-0000001", 2.0, "", "B"),
    ]
    same_samples(rows, data)
    check_manifests({"train": rows}, open_audio=True, progress=False)
    with pytest.raises(UserError, match="no split test; it holds train: name one"):
        prepare(tmp_path / "saved", tmp_path, "test")


def parquet(data, folder, name="train-00000-of-00001"):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    data.to_parquet(folder / "data" / f"{name}.parquet")


@pytest.mark.parametrize("streaming", [False, True])
def test_audio_within_a_data_set_is_written_once(wavs, tmp_path, streaming):
    def rows_of(split):
        return read_manifest(prepare(tmp_path / "hub", tmp_path, split, streaming=streaming)[split])

    data = dataset(in_memory(wavs), sentence=["A", "B"])
    parquet(data, tmp_path / "hub")
    rows = rows_of("train")
    assert [(u.ID, u.duration, u.wrd) for u in rows] == [
        ("train-0000000", 1.0, "A"),
        ("train-0000001", 2.0, "B"),
    ]
    assert [u.wav for u in rows] == [
        str(tmp_path / "manifests" / "train-audio" / name)
        for name in ("train-0000000.flac", "train-0000001.wav")
    ]
    same_samples(rows, data)
    written = Path(rows[0].wav).stat().st_mtime_ns
    assert rows_of("train") == rows
    assert Path(rows[0].wav).stat().st_mtime_ns == written
    shutil.rmtree(tmp_path / "manifests" / "train-audio")
    assert rows_of("train") == rows
    same_samples(rows, data)
    with pytest.raises(UserError, match="split dev cannot be loaded by datasets .*(Unknown|Bad) s"):
        rows_of("dev")
    assert streaming != any((tmp_path / "cache").rglob("*.arrow"))  # kept twice
    parquet(dataset(in_memory(wavs), sentence=["C", "D"]), tmp_path / "hub")
    assert [u.wrd for u in rows_of("train")] == ["C", "D"]


def test_manifests_follow_their_folder(wavs, tmp_path):
    data = dataset(in_memory(wavs), text=["A", "B"])
    data.save_to_disk(tmp_path / "saved" / "train")
    prepare(tmp_path / "saved", tmp_path / "one", "train")
    (tmp_path / "one").rename(tmp_path / "two")
    rows = read_manifest(prepare(tmp_path / "saved", tmp_path / "two", "train")["train"])
    same_samples(rows, data)


def test_a_stream_that_breaks_off_is_begun_anew(wavs, tmp_path):
    contents = in_memory(wavs)
    parquet(dataset(contents[:1], text=["A"]), tmp_path / "hub", "train-00000-of-00002")
    (tmp_path / "hub" / "data" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="hub, train: breaks off .*run the same command again"):
        prepare(tmp_path / "hub", tmp_path, "train", streaming=True)
    parquet(dataset(contents[1:], text=["B"]), tmp_path / "hub", "train-00001-of-00002")
    rows = prepare(tmp_path / "hub", tmp_path, "train", streaming=True)["train"]
    same_samples(read_manifest(rows), dataset(contents, text=["A", "B"]))


def test_a_stream_of_text_files_is_none_of_audio(wavs, tmp_path):
    table = tmp_path / "table"
    table.mkdir()
    (table / "train.csv").write_text(f"audio,text\n{wavs[0]},A\n")
    with pytest.raises(UserError, match="table, train: its files do not tell their columns"):
        prepare(table, tmp_path, "train", streaming=True)


def test_other_texts_make_the_manifest_anew(wavs, tmp_path):
    for text in ("A", "B"):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        dataset(in_memory(wavs), transcription=[text, "C"]).save_to_disk(tmp_path / "saved/train")
        rows = read_manifest(prepare(tmp_path / "saved", tmp_path, "train")["train"])
        assert [u.wrd for u in rows] == [text, "C"]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"words": ["A", "B"]}, "train: has the columns audio, words, but must have audio and one"),
        (
            {"text": ["A", "B"], "audio": [None, None]},
            "(?s)train: 2 of 2 utterances have no audio.*-0000000",
        ),
    ],
)
def test_what_lacks_a_column_or_audio(wavs, tmp_path, columns, message):
    dataset(**{"audio": wavs, **columns}).save_to_disk(tmp_path / "saved" / "train")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "saved", tmp_path, "train")


def test_what_is_nowhere(tmp_path):
    with pytest.raises(
        UserError, match="--data_folder no/such:clean: split train cannot be loaded"
    ):
        prepare("no/such:clean", tmp_path, "train")


def test_without_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="datasets, which is not installed: pip install"):
        prepare(tmp_path, tmp_path, "train")


def test_real_speech(speech_data, tmp_path):
    path = an4.prepare(speech_data / "an4", tmp_path, splits=["test"], progress=False)["test"]
    spoken = read_manifest(path)[:10]
    data = dataset(
        [u.wav for u in spoken], text=[u.wrd for u in spoken], speaker=[u.spk_id for u in spoken]
    )
    data.save_to_disk(tmp_path / "saved" / "test")
    rows = read_manifest(prepare(tmp_path / "saved", tmp_path, "test")["test"])
    assert [(u.duration, u.spk_id, u.wrd) for u in rows] == [
        (u.duration, u.spk_id, u.wrd) for u in spoken
    ]
    same_samples(rows, data)
