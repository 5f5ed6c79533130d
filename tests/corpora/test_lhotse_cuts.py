import gzip
import json
import sys
from dataclasses import replace

import numpy
import pytest
import soundfile
import torch

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora import lhotse_cuts
from speechbrain_summarymixing.corpora.checks import check_manifests
from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.errors import UserError

lhotse = pytest.importorskip("lhotse")


def cut_of(path, key="cut", text="HI", speaker="x"):
    cut = lhotse.Recording.from_file(path, recording_id=key).to_cut()
    said = lhotse.SupervisionSegment(key, key, 0, cut.duration, text=text, speaker=speaker)
    cut.supervisions = [said]
    return cut


@pytest.fixture
def cut(tmp_path):
    samples = numpy.random.default_rng(0).normal(0, 0.1, 48000)
    soundfile.write(tmp_path / "x.flac", samples, 16000)
    return cut_of(tmp_path / "x.flac")


def prepare(folder, *cuts, split="train"):
    lhotse.CutSet.from_cuts(cuts).to_file(folder / f"{split}.jsonl.gz")
    options = {"splits": [split], "progress": False}
    return read_manifest(lhotse_cuts.prepare(folder, folder / "manifests", **options)[split])


def test_cuts_are_heard_as_lhotse_hears_them(cut, tmp_path):
    part = cut.truncate(offset=0.5, duration=1.25).with_id("part")
    cuts = {c.id: c for c in (cut, part, part.resample(8000).with_id("slow"))}
    rows = prepare(tmp_path, *cuts.values())
    assert [(u.ID, u.duration, u.wrd, u.spk_id, u.is_segment) for u in rows] == [
        ("cut", 3.0, "HI", "x", False),
        ("part", 1.25, "HI", "x", True),
        ("slow", 1.25, "HI", "x", True),
    ]
    check_manifests({"train": rows}, open_audio=True, progress=False)
    for u in rows[:2]:
        heard = read_audio(u.wav, start=u.start, stop=u.stop)
        assert heard.equal(torch.from_numpy(cuts[u.ID].load_audio()[0]))


def test_a_cut_of_a_channel(tmp_path):
    samples = numpy.random.default_rng(0).normal(0, 0.1, (32000, 2))
    soundfile.write(tmp_path / "call.wav", samples, 16000)
    call = lhotse.Recording.from_file(tmp_path / "call.wav", recording_id="call").to_cut()
    call.supervisions = [
        lhotse.SupervisionSegment(f"{channel}", "call", 0.5 + channel / 4, 1, channel, "HI")
        for channel in (1, 0)
    ]
    turns = list(call.trim_to_supervisions(keep_overlapping=False))
    cuts = {str(turn.channel): turn.with_id(str(turn.channel)) for turn in turns}
    rows = prepare(tmp_path, *cuts.values())
    assert [(u.ID, u.channel, u.start) for u in rows] == [("0", 0, 0.5), ("1", 1, 0.75)]
    for u in rows:
        assert read_audio(u.wav, **u.part).equal(torch.from_numpy(cuts[u.ID].load_audio()[0]))
    other = replace(cuts["0"], id="other", channel=1)
    with pytest.raises(UserError, match="other: is of channel 1, and its supervision of 0, of a"):
        prepare(tmp_path, other)


def test_paths_are_those_of_the_working_directory_or_of_the_folder(cut, tmp_path, monkeypatch):
    cut.recording.sources[0].source = "x.flac"
    for place in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(place)
        [u] = prepare(tmp_path, cut)
        assert u.wav == str(tmp_path / "x.flac")


def test_cuts_that_cannot_be_used_are_named(cut, tmp_path):
    soundfile.write(tmp_path / "two.wav", numpy.zeros((16000, 2)), 16000)
    both = lhotse.Recording.from_file(tmp_path / "two.wav").to_cut()
    [source] = cut.recording.sources
    url = replace(cut.recording, sources=[replace(source, type="url")])
    cuts = {
        "fit": cut,
        "mixed": cut.pad(9),
        "silent": cut.drop_supervisions(),
        "double": replace(cut, supervisions=cut.supervisions * 2),
        "audioless": replace(cut, recording=None),
        "url": replace(cut, recording=url),
        "channels": both,
        "fast": cut.perturb_speed(1.1),
    }
    with pytest.raises(UserError, match="train.jsonl.gz: 7 cuts cannot be used") as error:
        prepare(tmp_path, *(c.with_id(key) for key, c in cuts.items()))
    for told in (
        "mixed: is a MixedCut",
        "silent: has 0 supervisions",
        "double: has 2 supervisions",
        "audioless: has no recording",
        "url: its audio is of url",
        "channels: is a MultiCut",
        "fast: its audio is changed by Speed",
    ):
        assert told in str(error.value)
    assert "fit" not in str(error.value) and not list(tmp_path.glob("manifests/*"))


def test_files_that_are_no_cut_set(cut, tmp_path):
    with pytest.raises(UserError, match="no dev.jsonl.gz: give a folder of lhotse's cut sets"):
        lhotse_cuts.prepare(tmp_path, tmp_path / "manifests", splits=["dev"])
    path = tmp_path / "train.jsonl.gz"
    for content in (b"no gzip", gzip.compress(b"{\n"), gzip.compress(json.dumps({}).encode())):
        path.write_bytes(content)
        with pytest.raises(UserError, match="train.jsonl.gz: cannot be read as a cut set"):
            lhotse_cuts.prepare(tmp_path, tmp_path / "manifests", splits=["train"])


def test_without_lhotse(cut, tmp_path, monkeypatch):
    lhotse.CutSet.from_cuts([cut]).to_file(tmp_path / "train.jsonl.gz")
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(UserError, match="lhotse, which is not installed: pip install .*.lhotse."):
        lhotse_cuts.prepare(tmp_path, tmp_path / "manifests", splits=["train"])


def test_real_speech(speech_data, tmp_path):
    chapter = sorted((speech_data / "LibriSpeech" / "dev-clean").glob("*/*"))[0]
    [lines] = chapter.glob("*.trans.txt")
    texts = dict(line.split(" ", 1) for line in lines.read_text().splitlines()[:5])
    cuts = {key: cut_of(chapter / f"{key}.flac", key, text) for key, text in texts.items()}
    parts = [c.truncate(offset=0.25, duration=0.5).with_id(f"{k}-part") for k, c in cuts.items()]
    cuts |= {c.id: c for c in parts}
    found = prepare(tmp_path, *cuts.values())
    assert {u.ID: (u.wrd, u.duration) for u in found} == {
        key: (cut.supervisions[0].text, cut.duration) for key, cut in cuts.items()
    }
    for u in found:
        heard = read_audio(u.wav, start=u.start, stop=u.stop)
        assert heard.equal(torch.from_numpy(cuts[u.ID].load_audio()[0]))
