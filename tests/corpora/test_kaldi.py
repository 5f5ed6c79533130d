import numpy
import pytest
import soundfile

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import an4, kaldi
from speechbrain_summarymixing.corpora.checks import check_manifests
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError


@pytest.fixture
def corpus(tmp_path):
    """A data folder of two recordings, one of which has two segments, and one without segments."""
    for name, seconds in (("one", 2.0), ("two", 1.0)):
        samples = numpy.random.default_rng(len(name)).normal(0, 0.1, round(16000 * seconds))
        soundfile.write(tmp_path / f"{name}.flac", samples, 16000)
    write(
        tmp_path / "data" / "train",
        {
            "wav.scp": f"one {tmp_path / 'one.flac'}\ntwo {tmp_path / 'two.flac'}\n",
            "segments": "b-1 one 0.5 1.25\na-1 one 1.25 -1\na-2 two 0 1.005\n",
            "text": "a-1 HELLO  YOU\na-2 YES\nb-1 ÉTÉ\n",
            "utt2spk": "a-1 a\na-2 a\nb-1 b\n",
        },
    )
    write(
        tmp_path / "data" / "test",
        {"wav.scp": f"two {tmp_path / 'two.flac'}\n", "text": "two NO\n"},
    )
    return tmp_path / "data"


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def prepare(corpus, *splits):
    return kaldi.prepare(corpus, corpus.parent / "manifests", splits=splits, progress=False)


def test_segments_and_whole_recordings(corpus):
    paths = prepare(corpus, "train", "test")
    rows = {split: read_manifest(path) for split, path in paths.items()}
    found = {u.ID: (u.wrd, u.spk_id, u.start, u.stop, u.duration) for u in rows["train"]}
    assert found == {
        "a-1": ("HELLO  YOU", "a", 1.25, float("inf"), 0.75),
        "a-2": ("YES", "a", 0.0, 1.005, 1.0),
        "b-1": ("ÉTÉ", "b", 0.5, 1.25, 0.75),
    }
    [two] = rows["test"]
    assert (two.ID, two.duration, two.spk_id, two.wrd) == ("two", 1.0, "", "NO")
    assert not two.is_segment
    check_manifests({**rows}, open_audio=True, progress=False)


def test_a_segment_of_a_channel(corpus):
    samples = numpy.random.default_rng(0).normal(0, 0.1, (16000, 2))
    soundfile.write(corpus.parent / "two.flac", samples, 16000)
    write(corpus / "test", {"segments": "A two 0 -1 0\nB two 0.5 1 1\n", "text": "A YES\nB NO\n"})
    rows = read_manifest(prepare(corpus, "test")["test"])
    assert [(u.ID, u.start, u.channel) for u in rows] == [("A", 0.0, 0), ("B", 0.5, 1)]
    heard, _ = soundfile.read(corpus.parent / "two.flac", dtype="float32")
    assert (read_audio(rows[1].wav, **rows[1].part).numpy() == heard[8000:, 1]).all()


def test_paths_are_those_of_the_working_directory_or_of_the_data_folder(corpus, monkeypatch):
    scp = corpus / "test" / "wav.scp"
    for path, place in (("two.flac", corpus.parent), ("here.flac", corpus), ("x.flac", scp.parent)):
        scp.write_text(f"two {path}\n")
        if place != corpus.parent:
            (corpus.parent / "two.flac").rename(place / path)
        monkeypatch.chdir(corpus.parent if place == corpus.parent else corpus.parent / "data/train")
        [two] = read_manifest(prepare(corpus, "test")["test"])
        assert two.wav == str(place / path)
        (place / path).rename(corpus.parent / "two.flac")
    with pytest.raises(UserError, match="train/x.flac: no such file"):
        prepare(corpus, "test")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("wav.scp", "one sph2pipe -f wav {one} |\ntwo {two}\n", "audio of 1 recordings comes from"),
        ("wav.scp", "one\ntwo {two}\n", "1 recordings have no path:\n.*wav.scp, line 1"),
        ("wav.scp", "one {one}\ntwo t\0wo\n", r"t.wo: cannot be read .*embedded null"),
        ("wav.scp", "one {one}\n", "a-2: no line in wav.scp for its recording, two"),
        ("wav.scp", "one {one}\none {two}\n", "1 lines of what stands before:\n  line 2: one"),
        ("text", "a-1 HELLO\n", "(?s)a-2: no line in text.*b-1: no line.*fix_data_dir"),
        ("text", "a-1 A\na-2 B\nb-1 C\nc-1 D\n", "c-1: no line in segments"),
        ("segments", "a-1 one 0.5\n", "segments, line 1: a-1 'one 0.5' is not"),
        ("segments", "a-1 one 0 1 1 1\n", "a-1 'one 0 1 1 1' is not .* a channel behind: mend"),
        ("segments", "a-1 one 0 1 A\n", "segments, line 1: channel is 'A' of a-1"),
        ("segments", "a-1 one 0 1 1\na-2 two 0 1\nb-1 one 0 1\n", "one.flac: has no channel 1"),
        ("segments", "a-1 one x 1\n", "segments, line 1: start is 'x' of a-1"),
        ("segments", "\na-1 one 1 0.5\n", "segments, line 2: a-1 starts at 1 and stops at 0.5"),
        ("segments", "a-1 one 1 9\na-2 two 0 1\nb-1 one 0 1\n", "a-1: .*one.flac: ends at 2 s"),
    ],
)
def test_what_cannot_be_is_named(corpus, name, content, message):
    paths = {key: corpus.parent / f"{key}.flac" for key in ("one", "two")}
    (corpus / "train" / name).write_text(content.format(**paths))
    with pytest.raises(UserError, match=message):
        prepare(corpus, "train")
    assert not list(corpus.parent.glob("manifests/*.csv"))


def test_a_folder_that_is_none_of_kaldi(corpus):
    with pytest.raises(UserError, match="dev: no wav.scp and no text: give the folder of Kaldi's"):
        prepare(corpus, "dev")


def test_changed_segments_make_the_manifest_anew(corpus):
    path = corpus / "train" / "segments"
    before = read_manifest(prepare(corpus, "train")["train"])
    assert read_manifest(prepare(corpus, "train")["train"]) == before
    path.write_text(path.read_text().replace("0.5 1.25", "0.5 1.5"))
    assert read_manifest(prepare(corpus, "train")["train"])[2].stop == 1.5


def test_real_speech(speech_data, tmp_path):
    """AN4's test set as segments of a recording of each speaker."""
    path = an4.prepare(speech_data / "an4", tmp_path, splits=["test"], progress=False)["test"]
    files = {"wav.scp": "", "segments": "", "text": "", "utt2spk": ""}
    speakers, rows = {}, read_manifest(path)[:20]
    for u in rows:
        samples = speakers.setdefault(u.spk_id, [])
        start = sum(map(len, samples)) / 16000
        samples.append(read_audio(u.wav))
        files["segments"] += f"{u.ID} {u.spk_id} {start:.6f} {start + u.duration:.6f}\n"
        files["text"] += f"{u.ID} {u.wrd}\n"
        files["utt2spk"] += f"{u.ID} {u.spk_id}\n"
    for speaker, samples in speakers.items():
        wav = tmp_path / f"{speaker}.wav"
        soundfile.write(wav, numpy.concatenate(samples), 16000, subtype="FLOAT")
        files["wav.scp"] += f"{speaker} {wav}\n"
    write(tmp_path / "data" / "test", files)
    found = read_manifest(prepare(tmp_path / "data", "test")["test"])
    assert [(u.ID, u.spk_id, u.wrd) for u in found] == [(u.ID, u.spk_id, u.wrd) for u in rows]
    for segment, u in zip(found, rows):
        heard = read_audio(segment.wav, start=segment.start, stop=segment.stop)
        assert heard.equal(read_audio(u.wav))
