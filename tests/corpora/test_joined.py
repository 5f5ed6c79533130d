from dataclasses import replace

import numpy
import pytest
import soundfile

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora.joined import join
from speechbrain_summarymixing.corpora.manifest import Utterance, read_manifest, write_manifest
from speechbrain_summarymixing.errors import UserError

LEVELS = [round(0.03 * (index + 1), 2) for index in range(20)]  # by which samples are told apart


@pytest.fixture
def manifest(tmp_path):
    """Twenty utterances of 0.5 to 1.45 s, each of one constant level."""
    rows = []
    for index, level in enumerate(LEVELS):
        wav, seconds = tmp_path / f"{index}.wav", 0.5 + 0.05 * index
        soundfile.write(wav, numpy.full(round(16000 * seconds), level), 16000, subtype="FLOAT")
        rows.append(Utterance(f"u{index}", seconds, str(wav), f"s{index % 2}", f"WORD{index}"))
    write_manifest(tmp_path / "test.csv", rows)
    return tmp_path / "test.csv"


def heard(path):
    """The levels that follow one another in a recording, without the pauses."""
    samples = read_audio(path).numpy()
    loud = samples[samples > 0.02]
    changes = numpy.flatnonzero(numpy.abs(numpy.diff(loud)) > 0.01)
    return [round(float(loud[i]), 2) for i in [*changes, len(loud) - 1]]


@pytest.mark.parametrize(
    "seconds, pause", [((3, 6), (0.1, 0.3)), ((1, 2), (0, 0)), ((9, 9), (1, 1))]
)
def test_each_utterance_is_said_once_and_written_where_it_is_said(
    manifest, tmp_path, seconds, pause
):
    rows = read_manifest(
        join(manifest, tmp_path / "long", seconds=seconds, pause=pause, progress=False)
    )
    assert all(row.ID.startswith("test-joined-") for row in rows)  # a split's IDs are its own
    written = [row.wrd.split() for row in rows]
    assert sorted(sum(written, [])) == sorted(f"WORD{index}" for index in range(20))
    for row, words in zip(rows, written):
        assert heard(row.wav) == [LEVELS[int(word.removeprefix("WORD"))] for word in words]
        samples = read_audio(row.wav)
        assert row.duration == pytest.approx(len(samples) / 16000, abs=1e-4)
        assert row.duration <= seconds[1] + 1e-3
        quiet = int((samples.abs() < 0.02).sum()) / 16000
        assert pause[0] * (len(words) - 1) - 1e-3 <= quiet <= pause[1] * (len(words) - 1) + 1e-3
    assert all(row.duration >= seconds[0] - pause[1] - 1.45 for row in rows[:-1])


def test_segments_of_one_file_are_joined_as_files_are(manifest, tmp_path):
    whole = read_manifest(manifest)
    long = tmp_path / "long.wav"
    samples = numpy.concatenate([soundfile.read(row.wav)[0] for row in whole])
    soundfile.write(long, samples, 16000, subtype="FLOAT")
    starts = numpy.cumsum([0.0, *(row.duration for row in whole)])
    rows = [
        replace(row, wav=str(long), start=float(start), stop=float(start + row.duration))
        for row, start in zip(whole, starts)
    ]
    write_manifest(tmp_path / "segments" / "test.csv", rows)
    joined = [
        read_manifest(join(path, tmp_path / folder, progress=False))
        for path, folder in ((manifest, "a"), (tmp_path / "segments" / "test.csv", "b"))
    ]
    for one, other in zip(*joined):
        assert (one.ID, one.wrd) == (other.ID, other.wrd) and heard(one.wav) == heard(other.wav)


def test_a_recording_of_one_speaker_has_its_name(tmp_path, manifest):
    rows = read_manifest(join(manifest, tmp_path / "long", seconds=(1, 3), progress=False))
    assert {row.spk_id for row in rows} == {"", "s0", "s1"}
    for row in rows:
        speakers = {f"s{int(word.removeprefix('WORD')) % 2}" for word in row.wrd.split()}
        assert row.spk_id == (speakers.pop() if len(speakers) == 1 else "")


def test_the_same_seed_makes_the_same_samples(tmp_path, manifest):
    def content(folder, **options):
        rows = read_manifest(join(manifest, tmp_path / folder, progress=False, **options))
        return [(row.ID, row.wrd, read_audio(row.wav).tolist()) for row in rows]

    assert content("first") == content("second")
    assert [row[1] for row in content("third", seed=2)] != [row[1] for row in content("fourth")]


def test_the_command_joins(manifest, tmp_path, capsys):
    command = ["join", str(manifest), str(tmp_path / "long"), "--seconds", "2", "4"]
    assert cli.main([*command, "--sample-rate", "8000", "--no-progress"]) == 0
    path = tmp_path / "long" / "test.csv"
    assert capsys.readouterr().out == f"{path}\n"
    row = read_manifest(path)[0]
    assert soundfile.info(row.wav).samplerate == 8000
    assert soundfile.info(row.wav).duration == pytest.approx(row.duration, abs=1e-3)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"seconds": (5, 3)}, "--seconds is 5 3, but must be two numbers of 0.1 or more seconds"),
        ({"seconds": (0, 3)}, "--seconds is 0 3"),
        ({"pause": (-1, 3)}, "--pause is -1 3"),
        ({"pause": (0, float("nan"))}, "--pause is 0 nan"),
        ({"sample_rate": 0}, "--sample-rate is 0, but must be 1 to 655350 Hz"),
    ],
)
def test_what_cannot_be_is_refused(manifest, tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        join(manifest, tmp_path / "long", progress=False, **options)
    assert not (tmp_path / "long").exists()


def test_nothing_is_overwritten_and_nothing_is_left_half_done(manifest, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        join(manifest, tmp_path / "there", progress=False)
    (tmp_path / "3.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match=r"3\.wav"):
        join(manifest, tmp_path / "long", progress=False)
    assert not list(tmp_path.glob("long*"))


def test_noise_lies_under_speech_and_pauses(manifest, tmp_path):
    options = {"seconds": (3, 3), "pause": (0.5, 0.5), "progress": False}
    clean, noisy = (
        read_audio(read_manifest(join(manifest, tmp_path / str(db), noise_db=db, **options))[0].wav)
        for db in (None, -30.0)
    )
    added = (noisy - clean).split(1600)
    levels = [20 * float(part.square().mean().sqrt().log10()) for part in added]
    assert levels == pytest.approx([-30.0] * len(levels), abs=1.0)
    with pytest.raises(UserError, match="--noise-db is 3.0"):
        join(manifest, tmp_path / "loud", noise_db=3.0)
