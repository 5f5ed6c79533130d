import json
import logging

import layouts
import pytest

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import tedlium
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError

TALK = "AlGore_2006train"


@pytest.fixture
def corpus(tmp_path):
    return layouts.tedlium(tmp_path / "TEDLIUM_release2")


@pytest.fixture
def stm(corpus):
    return corpus / "train" / "stm" / f"{TALK}.stm"


def prepare(corpus, **options):
    return tedlium.prepare(corpus, corpus.parent / "manifests", progress=False, **options)


def test_segments_of_talks_and_what_is_left_of_their_lines(corpus, caplog):
    with caplog.at_level(logging.INFO):
        paths = prepare(corpus)
    rows = {split: read_manifest(path) for split, path in paths.items()}
    assert {split: len(part) for split, part in rows.items()} == {"train": 4, "dev": 4, "test": 4}
    first, second = rows["train"][:2]
    assert (first.ID, first.spk_id) == (f"{TALK}-0000050-0000173", TALK)
    assert (first.start, first.stop, first.duration) == (0.5, 1.73, pytest.approx(1.23))
    assert first.wrd == "IT'S WHAT WE DON'T KNOW" and second.wrd == "THE 60S WERE Y'ALL'S I 'CAUSE"
    assert read_audio(first.wav, **first.part).equal(read_audio(first.wav)[8000:27680])
    assert "train/stm: 10 tags are left out of its words:" in caplog.text
    assert "{NOISE}: 2" in caplog.text and "<unk>: 2" in caplog.text
    assert "2 of 6 utterances are left out: no word in them" in caplog.text
    report = json.loads((paths["train"].parent / "train.dropped.json").read_text(encoding="utf-8"))
    assert {c["character"]: c["count"] for c in report["characters"]} == {"'": 2}


def test_a_segment_beyond_the_audio_is_left_out_and_told(corpus, stm, caplog):
    line = f"{TALK} 1 {TALK} 2.5 3.5 <o,f0,male> too late\n"
    stm.write_text(stm.read_text() + line)
    with caplog.at_level(logging.WARNING):
        assert len(read_manifest(prepare(corpus, splits=["train"])["train"])) == 4
    assert "1 segments are not in their audio:" in caplog.text
    assert f"{TALK}-0000250-0000350" in caplog.text and "they are left out" in caplog.text


@pytest.mark.parametrize(
    "line, message",
    [
        ("t 1 s 0.0 1.0 no label", "line 8: 't 1 s 0.0 1.0 no label' is not 'TALK CHANNEL SPEAK"),
        ("t 1 s 2.0 1.0 <o> back", "line 8: t starts at 2 and stops at 1 s, but a segment starts"),
        ("t 1 s 0.0 x <o> words", "line 8: stop is 'x' of t, but must be seconds"),
        ("t 1 s 0.0 1.0 <o> words", "the audio of 1 of 2 talks is gone:\n.*train/sph/t.sph"),
    ],
)
def test_lines_that_cannot_be_used_are_named(corpus, stm, line, message):
    stm.write_text(stm.read_text() + f"\n{line}\n")
    with pytest.raises(UserError, match=message):
        prepare(corpus, splits=["train"])


def test_a_talk_whose_transcript_is_not_what_is_said_is_left_out(corpus, stm):
    stm.rename(stm.with_stem(tedlium.MISHEARD))
    assert len(read_manifest(prepare(corpus, splits=["train"])["train"])) == 2


def test_a_missing_split_names_those_there(corpus):
    with pytest.raises(UserError, match="splits dev, test, train: ask for these, or give TEDLIUM"):
        prepare(corpus, splits=["valid"])


def test_audio_that_is_compressed_by_shorten_names_the_tool(corpus):
    path = corpus / "dev" / "sph" / "AlGore_2006dev.sph"
    content = path.read_bytes()
    coding = b"sample_coding -s26 pcm,embedded-shorten-v2.00"
    header = content[:1024].rstrip(b"\0").replace(b"sample_coding -s3 pcm", coding)
    path.write_bytes(header.ljust(1024, b"\0") + b"ajkg\x02" + content[1024:])
    with pytest.raises(UserError, match="AlGore_2006dev.sph: is compressed by shorten.* sph2pipe"):
        prepare(corpus, splits=["dev"])
