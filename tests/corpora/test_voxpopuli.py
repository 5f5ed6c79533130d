import json
import logging

import layouts
import pytest

from speechbrain_summarymixing.corpora import voxpopuli
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    return layouts.voxpopuli(tmp_path / "transcribed_data" / "en")


def prepare(corpus, **options):
    options = {"language": "en", "progress": False, **options}
    return voxpopuli.prepare(corpus, corpus.parent / "manifests", **options)


def test_manifests_and_what_is_left_out(corpus, caplog):
    with caplog.at_level(logging.INFO):
        paths = prepare(corpus)
    rows = {split: read_manifest(path) for split, path in paths.items()}
    key = layouts.PLENARY.format(number=0)
    assert [(u.ID, u.spk_id, u.wrd) for u in rows["train"]] == [
        (key, "124737", "THANK YOU MR PRESIDENT"),
        (layouts.PLENARY.format(number=1), "", "IT'S 5 O'CLOCK"),
    ]
    assert rows["train"][0].wav == str(corpus / "2009" / f"{key}.ogg")
    assert all(u.duration == pytest.approx(0.5, abs=0.01) for part in rows.values() for u in part)
    assert "asr_dev.tsv: 1 of 3 utterances are left out: no word in them" in caplog.text
    report = json.loads((paths["test"].parent / "test.dropped.json").read_text(encoding="utf-8"))
    assert {c["character"]: c["count"] for c in report["characters"]} == {'"': 2}


def test_tables_without_a_prefix(corpus):
    for split in ("train", "dev", "test"):
        (corpus / f"asr_{split}.tsv").rename(corpus / f"{split}.tsv")
    assert all(len(read_manifest(path)) == 2 for path in prepare(corpus).values())


def test_the_layout_of_the_hub(corpus):
    part = corpus / "train" / "train_part_0"
    wavs = [part / f"{layouts.PLENARY.format(number=number)}.wav" for number in range(3)]
    for wav in wavs:
        layouts.noise(wav, 0.7)
    rows = read_manifest(prepare(corpus, splits=["train"])["train"])
    assert [(u.wav, u.duration) for u in rows] == [(str(wav), 0.7) for wav in wavs[:2]]
    wavs[1].unlink()
    (corpus / "2009" / f"{wavs[1].stem}.ogg").unlink()
    (corpus / "train" / "train_part_1.tar.gz").write_bytes(b"")
    with pytest.raises(
        UserError, match="1 of 3 audio files are missing:\n.*\nunpack it: cd .*train"
    ):
        prepare(corpus, splits=["train"])


def test_missing_splits_audio_and_values_are_named(corpus):
    with pytest.raises(UserError, match="asr_valid.tsv: no such file; .* splits dev, test, train"):
        prepare(corpus, splits=["valid"])
    with pytest.raises(UserError, match="splits .none.: .* give the folder of a language"):
        prepare(corpus.parent)
    with pytest.raises(UserError, match="language is None, but must be a locale"):
        prepare(corpus, language=None)
    (corpus / "2009" / f"{layouts.PLENARY.format(number=4)}.ogg").unlink()
    with pytest.raises(UserError, match="asr_dev.tsv: 1 of 3 audio files are missing:\n.*en_2009"):
        prepare(corpus)
    table = corpus / "asr_train.tsv"
    table.write_text(table.read_text() + "20090112-x\traw\n")
    with pytest.raises(UserError, match="asr_train.tsv, line 5: no value for normalized_text"):
        prepare(corpus)
    table.write_text(table.read_text().replace("normalized_text", "text"))
    with pytest.raises(UserError, match="no column normalized_text: the first line must name"):
        prepare(corpus)
