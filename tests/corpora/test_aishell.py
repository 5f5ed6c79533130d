import logging

import layouts
import pytest

from speechbrain_summarymixing.corpora import aishell
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    return layouts.aishell(tmp_path / "data_aishell")


def prepare(corpus, **options):
    return aishell.prepare(corpus, corpus.parent / "manifests", progress=False, **options)


def test_manifests_are_of_characters_and_what_lacks_is_told(corpus, caplog):
    with caplog.at_level(logging.INFO, aishell.logger.name):
        rows = {split: read_manifest(path) for split, path in prepare(corpus).items()}
    assert {split: len(part) for split, part in rows.items()} == {"train": 5, "dev": 6, "test": 6}
    first = rows["train"][0]
    assert (first.ID, first.spk_id) == ("BAC009S0002W0121", "S0002")
    assert first.wrd == "甚至出现交易几乎停滞的情况"
    assert first.wav == str(corpus / "wav/train/S0002/BAC009S0002W0121.wav")
    assert first.duration == 0.5 and not first.is_segment
    assert {u.spk_id for u in rows["test"]} == {"S0764", "S0765"}
    assert "v0.8.txt: 1 of 18 lines have no audio:\n  BAC009S0999W0121" in caplog.text
    assert "wav/train: 1 of 6 wav files have no transcript and are left out:\n" in caplog.text
    assert "  BAC009S0003W0123" in caplog.text


def test_speakers_that_are_still_packed_are_named(corpus):
    for name in ("S0002", "S0004"):  # the first is unpacked, too
        (corpus / "wav" / f"{name}.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match="1 speakers are still packed:\n  S0004.tar.gz\nunpack"):
        prepare(corpus)


def test_a_wrong_folder_and_a_split_without_audio(corpus):
    with pytest.raises(UserError, match="wav: no such folder: give AISHELL-1's folder data_ais"):
        prepare(corpus.parent)
    with pytest.raises(UserError, match="wav/valid: 0 wav files, .* audio is in dev, test, train"):
        prepare(corpus, splits=["valid"])


def test_lines_that_cannot_be_used_are_named(corpus):
    path = corpus / aishell.TRANSCRIPTS
    content = path.read_text(encoding="utf-8")
    path.write_text(content + "\nBAC009S0002W0121 别 的\n", encoding="utf-8")
    with pytest.raises(UserError, match="v0.8.txt, line 20: BAC009S0002W0121 has another transc"):
        prepare(corpus)
    path.write_text(content + "BAC009S0002W0124 \n", encoding="utf-8")
    with pytest.raises(UserError, match="line 19: 'BAC009S0002W0124 ' has no words behind its ID"):
        prepare(corpus)
    path.unlink()
    with pytest.raises(UserError, match="aishell_transcript_v0.8.txt: cannot read this file"):
        prepare(corpus)
