import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import librispeech
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    chapter = tmp_path / "corpus" / "dev-clean" / "84" / "121"
    chapter.mkdir(parents=True)
    for index in range(3):
        soundfile.write(chapter / f"84-121-000{index}.flac", numpy.zeros(16000), 16000)
    lines = "".join(f"84-121-000{i} WORD NUMBER {'ABC'[i]}\n" for i in range(3))
    (chapter / "84-121.trans.txt").write_text(lines)
    return tmp_path / "corpus"


def prepare(corpus, **options):
    options = {"splits": ["dev-clean"], "progress": False, **options}
    return librispeech.prepare(corpus, corpus.parent / "manifests", **options)


def test_manifest(corpus):
    rows = read_manifest(prepare(corpus)["dev-clean"])
    assert [(u.ID, u.spk_id, u.duration, u.wrd) for u in rows] == [
        (f"84-121-000{i}", "84", 1.0, f"WORD NUMBER {'ABC'[i]}") for i in range(3)
    ]


def test_the_same_input_gives_the_same_manifest_and_a_change_a_new_one(corpus):
    path = prepare(corpus)["dev-clean"]
    first, made = path.read_bytes(), path.stat().st_mtime_ns
    prepare(corpus)
    assert path.stat().st_mtime_ns == made
    texts = next(corpus.glob("*/*/*/*.txt"))
    texts.write_text(texts.read_text().replace("NUMBER A", "LETTER A"))
    prepare(corpus)
    assert path.read_bytes() == first.replace(b"NUMBER A", b"LETTER A")


def test_a_missing_split_names_those_there(corpus):
    with pytest.raises(UserError, match="no split test-clean; it holds dev-clean"):
        prepare(corpus, splits=["test-clean"])


def test_audio_without_text_and_text_without_audio_are_one_report(corpus):
    next(corpus.glob("*/*/*/84-121-0001.flac")).unlink()
    texts = next(corpus.glob("*/*/*/*.txt"))
    texts.write_text("".join(texts.read_text().splitlines(True)[:2]))
    with pytest.raises(UserError) as error:
        prepare(corpus)
    assert "84-121-0001: no audio" in str(error.value)
    assert "84-121-0002: no transcript" in str(error.value)


def test_ids_of_several_audio_files_or_transcripts_are_named(corpus):
    path = prepare(corpus)["dev-clean"]
    other = corpus / "dev-clean" / "84" / "122"
    other.mkdir()
    first = next(corpus.glob("*/*/121/84-121-0000.flac"))
    (other / first.name).write_bytes(first.read_bytes())
    (other / "84-122.trans.txt").write_text("84-121-0001 WORD NUMBER D\n")
    with pytest.raises(UserError) as error:
        prepare(corpus)
    report = str(error.value)
    assert f"84-121-0000: {first}, {other / first.name}\n" in report
    old = first.with_name("84-121.trans.txt")
    new = other / "84-122.trans.txt"
    assert f"84-121-0001: 'WORD NUMBER B' in {old}, 'WORD NUMBER D' in {new}\n" in report
    assert report.startswith("dev-clean: ") and "an ID must have one of each: take out" in report
    (other / first.name).unlink()
    new.write_text("84-121-0001 WORD NUMBER B\n")  # the same again is no other
    prepare(corpus)
    assert [u.wrd[-1] for u in read_manifest(path)] == ["A", "B", "C"]


def test_two_transcripts_of_an_id_in_one_file_are_named(corpus):
    texts = next(corpus.glob("*/*/*/*.txt"))
    texts.write_text(texts.read_text() + "84-121-0002 ANOTHER\n")
    with pytest.raises(UserError, match="84-121-0002: 'WORD NUMBER C' in .*, 'ANOTHER' in "):
        prepare(corpus)


def test_blank_lines_and_a_byte_order_mark_are_skipped(corpus):
    texts = next(corpus.glob("*/*/*/*.txt"))
    texts.write_text("\ufeff" + texts.read_text().replace("\n", "\n \n\n"), encoding="utf-8")
    assert len(read_manifest(prepare(corpus)["dev-clean"])) == 3


@pytest.mark.parametrize("content, reason", [(b"84 \xff\n", "it is not UTF-8 text"), (None, "")])
def test_transcripts_that_cannot_be_read_are_named(corpus, content, reason):
    texts = next(corpus.glob("*/*/*/*.txt"))
    texts.unlink()
    texts.mkdir() if content is None else texts.write_bytes(content)
    with pytest.raises(UserError) as error:
        prepare(corpus)
    assert str(error.value).startswith(f"{texts}: cannot read this file ({reason}")
    assert "mend it, or unpack" in str(error.value)


def test_real_speech(speech_data, tmp_path):
    splits = ["dev-clean", "train-clean-5"]
    paths = librispeech.prepare(
        speech_data / "LibriSpeech", tmp_path, splits=splits, progress=False
    )
    dev, train = (read_manifest(paths[split]) for split in splits)
    assert (len(dev), len(train)) == (25, 115)
    assert not {u.spk_id for u in dev} & {u.spk_id for u in train}
    assert all(u.wrd.replace("'", "").replace(" ", "").isupper() for u in dev)
