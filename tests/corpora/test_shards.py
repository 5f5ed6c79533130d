import errno
import hashlib
import json
import os
import tarfile
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import shards
from speechbrain_summarymixing.corpora.manifest import Utterance, write_manifest
from speechbrain_summarymixing.errors import UserError


@pytest.fixture
def manifest(tmp_path):
    """Seven utterances of 1 to 7 tenths of a second, in two formats."""
    rows = []
    for index in range(7):
        wav = tmp_path / "audio" / f"{index}.{'flac' if index % 2 else 'WAV'}"
        wav.parent.mkdir(exist_ok=True)
        soundfile.write(wav, numpy.full(1600 * (index + 1), index / 10), 16000)
        rows.append(
            Utterance(f"u{index}", 0.1 * (index + 1), str(wav), f"s{index}", f"ÜBER {index}")
        )
    write_manifest(tmp_path / "all.csv", rows)
    return tmp_path / "all.csv"


def contents(folder):
    """From each tar file of a folder, in order, to its names and bytes."""
    files = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files[path.name] = [(m.name, tar.extractfile(m).read()) for m in tar]
    return files


def test_every_utterance_is_in_one_shard_as_it_is(manifest, tmp_path, capsys):
    command = ["shard", str(manifest), str(tmp_path / "shards"), "--utterances-per-shard", "3"]
    assert cli.main([*command, "--no-progress"]) == 0
    assert "3 shards, 7 utterances, 0.00 hours" in capsys.readouterr().out
    files = contents(tmp_path / "shards")
    assert list(files) == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert [len(entries) for entries in files.values()] == [6, 6, 2]
    entries = [entry for shard in files.values() for entry in shard]
    keys = [name.partition(".")[0] for name, _ in entries]
    assert keys[::2] == keys[1::2]  # audio and JSON stand together
    assert keys[::2] != sorted(keys[::2]) and sorted(keys[::2]) == [f"u{i}" for i in range(7)]
    content = dict(entries)
    for index in range(7):
        suffix = "flac" if index % 2 else "wav"
        [wav] = (tmp_path / "audio").glob(f"{index}.*")
        assert content[f"u{index}.{suffix}"] == wav.read_bytes()
        facts = json.loads(content[f"u{index}.json"])
        assert facts.pop("duration") == pytest.approx(0.1 * (index + 1))
        assert facts == {"spk_id": f"s{index}", "wrd": f"ÜBER {index}"}
    counts = json.loads((tmp_path / "shards" / "shards.json").read_text())
    assert counts == {"shards": 3, "utterances": 7, "seconds": 2.8}


def test_a_segment_is_cut_out_and_heard_as_in_its_file(tmp_path):
    samples = numpy.random.default_rng(0).normal(0, 0.1, (22050 * 3, 2))
    wav = tmp_path / "long.ogg"
    soundfile.write(wav, samples, 22050)
    rows = [Utterance(f"u{i}", 1.0, str(wav), "", "A", float(i), float(i + 1)) for i in range(3)]
    rows += [
        Utterance("all", 3.0, str(wav), "", "B"),
        Utterance("right", 3.0, str(wav), "", "B", channel=1),
    ]
    write_manifest(tmp_path / "all.csv", rows)
    shards.write_shards(tmp_path / "all.csv", tmp_path / "shards", progress=False)
    [entries] = contents(tmp_path / "shards").values()
    content = dict(entries)
    assert content["all.ogg"] == wav.read_bytes()
    for row in (row for row in rows if row.ID != "all"):
        heard = read_audio(wav, **row.part)
        torch.testing.assert_close(
            read_audio(content[f"{row.ID}.flac"]), heard, rtol=0, atol=1e-6, msg=row.ID
        )


def test_a_shard_is_full_at_its_seconds(manifest, tmp_path):
    shards.write_shards(manifest, tmp_path / "shards", shard_seconds=1.0, progress=False)
    seconds = [
        sum(json.loads(content)["duration"] for name, content in entries if name.endswith("json"))
        for entries in contents(tmp_path / "shards").values()
    ]
    assert len(seconds) >= 2 and all(1.0 <= s < 1.7 for s in seconds[:-1])


def test_the_same_corpus_makes_the_same_bytes(manifest, tmp_path):
    digests = []
    for name in ("one", "two"):
        shards.write_shards(manifest, tmp_path / name, shard_seconds=1.0, progress=False)
        files = sorted((tmp_path / name).iterdir())
        digests.append([(f.name, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files])
        for wav in (tmp_path / "audio").iterdir():
            os.utime(wav, (1, 1))
    assert digests[0] == digests[1]


def test_an_existing_folder_and_wrong_sizes_are_refused(manifest, tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(UserError, match="exists already"):
        shards.write_shards(manifest, tmp_path / "shards")
    with pytest.raises(UserError, match="--shard-seconds is 0"):
        shards.write_shards(manifest, tmp_path / "new", shard_seconds=0)
    with pytest.raises(UserError, match="--utterances-per-shard is 0"):
        shards.write_shards(manifest, tmp_path / "new", utterances_per_shard=0)


def test_an_id_with_a_dot_is_refused(manifest, tmp_path):
    manifest.write_text(manifest.read_text().replace("u3,", "u.3,"))
    with pytest.raises(UserError, match="no dot"):
        shards.write_shards(manifest, tmp_path / "shards")


def test_nothing_is_left_of_a_corpus_that_cannot_be_written(manifest, tmp_path, monkeypatch):
    bad = tmp_path / "audio" / "5.flac"
    content = bad.read_bytes()
    bad.write_bytes(b"no audio")
    with pytest.raises(UserError, match="u5: .*5.flac: cannot be read as audio"):
        shards.write_shards(manifest, tmp_path / "shards", progress=False)
    assert not list(tmp_path.glob("shards*"))
    bad.write_bytes(content)

    def full(tar, utterance):
        raise OSError(errno.ENOSPC, "No space left on device", Path(utterance.wav).name)

    monkeypatch.setattr(shards, "_add", full)
    with pytest.raises(UserError, match="No space left"):
        shards.write_shards(manifest, tmp_path / "shards", progress=False)
    assert not list(tmp_path.glob("shards*"))
