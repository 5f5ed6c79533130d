import json
import logging
import os

import numpy
import pytest
import soundfile

from speechbrain_summarymixing.corpora import common_voice, text
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError

NEW = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents "
    "variant locale segment"
).split()
OLD = "client_id path sentence up_votes down_votes age gender accent".split()
SENTENCES = ["Zo’n dag!", 'Hij zei: "ja', "…?!", "’s Avonds"]


def clip(path, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.1 * numpy.sin(numpy.arange(int(seconds * 16000)) / 10)
    soundfile.write(path, samples, 16000, format="MP3", subtype="MPEG_LAYER_III")


def table(path, rows, columns=NEW, locale="nl"):
    lines = [columns]
    for name, sentence in rows:
        values = {"client_id": f"speaker-{name}", "path": name, "sentence": sentence}
        lines.append([{"locale": locale, **values}.get(column, "") for column in columns])
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "nl"
    names = [f"common_voice_nl_{index}.mp3" for index in range(len(SENTENCES))]
    for name in names:
        clip(folder / "clips" / name)
    table(folder / "train.tsv", zip(names, SENTENCES))
    table(folder / "dev.tsv", [(names[0], "Ja.")])
    return folder


def prepare(corpus, **options):
    options = {"splits": ["train"], "language": "nl", "progress": False, **options}
    return common_voice.prepare(corpus, corpus.parent / "manifests", **options)


def test_manifest(corpus):
    rows = read_manifest(prepare(corpus)["train"])
    assert [(u.ID, u.spk_id, u.wrd) for u in rows] == [
        ("common_voice_nl_0", "speaker-common_voice_nl_0.mp3", "ZO'N DAG"),
        ("common_voice_nl_1", "speaker-common_voice_nl_1.mp3", "HIJ ZEI JA"),
        ("common_voice_nl_3", "speaker-common_voice_nl_3.mp3", "'S AVONDS"),
    ]
    assert all(0.95 < u.duration < 1.15 and os.path.isabs(u.wav) for u in rows)


def test_what_is_dropped_and_left_out_is_told(corpus, caplog):
    with caplog.at_level(logging.INFO, text.logger.name):
        path = prepare(corpus)["train"]
    assert "1 of 4 utterances are left out: no word in them:" in caplog.text
    assert "common_voice_nl_2: '…?!'" in caplog.text
    assert "6 characters are dropped" in caplog.text
    assert "U+0021 EXCLAMATION MARK '!': 2" in caplog.text
    report = json.loads((path.parent / "train.dropped.json").read_text(encoding="utf-8"))
    assert report["left_out"] == ["common_voice_nl_2: '…?!'"]
    assert {c["character"]: c["count"] for c in report["characters"]} == {
        "!": 2, ":": 1, '"': 1, "…": 1, "?": 1,
    }  # fmt: skip


def test_old_release_without_suffixes_and_locale(corpus):
    table(corpus / "train.tsv", [("common_voice_nl_1", "Een")], OLD)
    [utterance] = read_manifest(prepare(corpus)["train"])
    assert (utterance.ID, utterance.wrd) == ("common_voice_nl_1", "EEN")
    assert utterance.wav == str(corpus / "clips" / "common_voice_nl_1.mp3")


def test_the_same_input_gives_the_same_manifest_and_a_change_a_new_one(corpus, monkeypatch):
    path = prepare(corpus)["train"]
    first = path.read_bytes()

    def made_again():
        os.utime(path, ns=(1, 1))
        prepare(corpus)
        return path.stat().st_mtime_ns != 1

    assert not made_again()
    clip(corpus / "clips" / "common_voice_nl_1.mp3", seconds=2)
    assert made_again() and path.read_bytes() != first
    clip(corpus / "clips" / "common_voice_nl_1.mp3")
    assert made_again() and path.read_bytes() == first
    tsv = corpus / "train.tsv"
    tsv.write_text(tsv.read_text(encoding="utf-8").replace("dag", "dagen"), encoding="utf-8")
    assert made_again() and path.read_bytes() == first.replace(b"DAG", b"DAGEN")
    monkeypatch.setitem(text.LANGUAGES, "nl", text.MOST)
    assert made_again() and b",S AVONDS" in path.read_bytes()
    assert not made_again()


def test_an_interrupted_preparation_goes_on(corpus, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    splits = ["dev", "train"]
    dev = prepare(corpus, splits=["dev"])["dev"]
    os.utime(dev, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(text, "probe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, splits=splits)
    assert not (dev.parent / "train.csv").exists()
    assert len(read_manifest(prepare(corpus, splits=splits)["train"])) == 3
    assert dev.stat().st_mtime_ns == 1


def test_a_missing_split_names_those_there(corpus, tmp_path):
    with pytest.raises(UserError) as error:
        prepare(corpus, splits=["test"])
    assert "test.tsv: no such file; the folder holds dev.tsv, train.tsv: ask for splits" in str(
        error.value
    )
    with pytest.raises(UserError, match="holds no .tsv: give the folder of a language"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "no column client_id, path, sentence: .* it is empty"),
        ("client_id\tpath\ttext\n", "no column sentence: .* it is client_id, path, text"),
        ("client_id\tpath\tsentence\na\tb.mp3\n", "line 2: no value for sentence: mend the line"),
        ("client_id\tpath\tsentence\na\t\tJa\n", "line 2: no value for path: mend"),
        ("client_id\tpath\tsentence\n", "none of its 0 sentences has a word"),
        ("client_id\tpath\tsentence\na\tcommon_voice_nl_1\t!\n", "none of its 1 sentences has"),
        (b"\xff\xfe\xff", "cannot read this file .it is not UTF-8"),
    ],
)
def test_unusable_tables(corpus, content, message):
    (corpus / "train.tsv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        prepare(corpus)
    assert str(corpus / "train.tsv") in str(error.value)
    assert not (corpus.parent / "manifests" / "train.csv").exists()


def test_missing_clips_are_one_report(corpus):
    for index in (1, 3):
        (corpus / "clips" / f"common_voice_nl_{index}.mp3").unlink()
    with pytest.raises(UserError, match="2 of 4 clips are missing") as error:
        prepare(corpus)
    assert "common_voice_nl_1.mp3" in str(error.value)
    assert "common_voice_nl_3.mp3" in str(error.value)
    assert "unpack it again" in str(error.value)


def test_a_broken_clip_is_named(corpus):
    (corpus / "clips" / "common_voice_nl_1.mp3").write_bytes(b"no audio")
    with pytest.raises(UserError, match="1 of 3 files are no audio:\n.*nl_1.mp3"):
        prepare(corpus)


def test_another_language(corpus):
    with pytest.raises(UserError, match="language is it, but 4 of 4 lines .* have the locale nl: "):
        prepare(corpus, language="it")
    with pytest.raises(UserError, match="language is None, but must be a locale"):
        prepare(corpus, language=None)


def test_real_speech(speech_data, tmp_path):
    folder = speech_data / "CommonVoice" / "fa"
    once, again = (
        common_voice.prepare(folder, tmp_path / name, language="fa", progress=False)
        for name in ("once", "again")
    )
    assert all(once[split].read_bytes() == again[split].read_bytes() for split in once)
    rows = {split: read_manifest(path) for split, path in once.items()}
    assert {split: len(r) for split, r in rows.items()} == {"train": 180, "dev": 40, "test": 40}
    every = [u for r in rows.values() for u in r]
    assert all(0.5 < u.duration < 20 for u in every)
    signs = {char for u in every for char in u.wrd if not char.isalpha()}
    assert signs <= set(" \u064b\u064f\u0654") and "ك" not in "".join(u.wrd for u in every)
    dropped = json.loads((tmp_path / "once" / "train.dropped.json").read_text(encoding="utf-8"))
    assert dropped["left_out"] == []
    assert {c["character"] for c in dropped["characters"]} <= set(".،؟!")
