import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import an4
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "an4"
    (root / "etc").mkdir(parents=True)
    for part, folder, speakers in (
        ("train", "an4_clstk", ["fa", "fb", "ma", "mb"]),
        ("test", "an4test_clstk", ["mz"]),
    ):
        names, lines = [], []
        for speaker in speakers:
            (root / "wav" / folder / speaker).mkdir(parents=True)
            for index in range(2):
                key = f"an{index}-{speaker}-b"
                wav = root / "wav" / folder / speaker / f"{key}.sph"
                soundfile.write(wav, numpy.zeros(16000), 16000, format="NIST", subtype="PCM_16")
                names.append(f"{folder}/{speaker}/{key}\n")
                words = "<s> YES </s>" if part == "train" else "R U  B"
                lines.append(f"{words} ({key})\n")
        (root / "etc" / f"an4_{part}.fileids").write_text("".join(names))
        (root / "etc" / f"an4_{part}.transcription").write_text("".join(lines))
    return root


def prepare(corpus, **options):
    options = {"valid_speakers": 2, "progress": False, **options}
    return an4.prepare(corpus, corpus.parent / "manifests", **options)


def test_splits_share_no_speaker_and_lose_no_utterance(corpus):
    rows = {split: read_manifest(path) for split, path in prepare(corpus).items()}
    speakers = {split: {u.spk_id for u in r} for split, r in rows.items()}
    assert speakers == {"train": {"fb", "mb"}, "valid": {"fa", "ma"}, "test": {"mz"}}
    assert [len(r) for r in rows.values()] == [4, 4, 4 // 2]
    assert {u.wrd for u in rows["train"]} == {"YES"} and rows["test"][0].wrd == "R U B"


def test_another_number_of_validation_speakers_makes_the_manifests_anew(corpus):
    prepare(corpus)
    assert len(read_manifest(prepare(corpus, valid_speakers=1)["valid"])) == 2


@pytest.mark.parametrize("count", [0, 4])
def test_wrong_number_of_validation_speakers(corpus, count):
    with pytest.raises(UserError, match=f"valid_speakers is {count}, but must be 1 to 3"):
        prepare(corpus, valid_speakers=count)


def test_wrong_folder_split_line_and_format(corpus):
    with pytest.raises(UserError, match="an4_train.fileids: no such file: give the folder"):
        prepare(corpus / "etc")
    with pytest.raises(UserError, match="no split dev"):
        prepare(corpus, splits=["dev"])
    wav = next(corpus.glob("wav/*/fb/an0*.sph"))
    wav.rename(wav.with_suffix(".raw"))
    with pytest.raises(UserError, match="only .raw: take the sphere release"):
        prepare(corpus)
    (corpus / "etc" / "an4_train.transcription").write_text("YES an0-fa-b\n")
    with pytest.raises(UserError, match="line 1: 'YES an0-fa-b' is not"):
        prepare(corpus)


def test_an_utterance_without_a_transcript_is_named(corpus):
    path = corpus / "etc" / "an4_test.transcription"
    path.write_text(path.read_text().splitlines(True)[0])
    with pytest.raises(UserError, match="an1-mz-b: no transcript"):
        prepare(corpus)


def test_transcripts_are_one_each_in_utf8_and_blank_lines_are_none(corpus):
    lines = corpus / "etc" / "an4_train.transcription"
    content = lines.read_text()
    lines.write_text(content + "\n<s> YES </s> (an0-fa-b)\n\n")
    assert len(read_manifest(prepare(corpus)["valid"])) == 4
    lines.write_text(content + "<s> NO </s> (an0-fa-b)\n")
    with pytest.raises(UserError, match="line 9: an0-fa-b has another transcript before"):
        prepare(corpus)
    lines.write_bytes(b"\xff" + content.encode())
    with pytest.raises(UserError, match="an4_train.transcription: cannot read .*not UTF-8"):
        prepare(corpus)


def test_real_speech(speech_data, tmp_path):
    paths = an4.prepare(speech_data / "an4", tmp_path, progress=False)
    rows = {split: read_manifest(path) for split, path in paths.items()}
    assert len(rows["train"]) + len(rows["valid"]) == 821 and len(rows["test"]) == 127
    assert all(word.isalpha() for r in rows.values() for u in r for word in u.wrd.split())
