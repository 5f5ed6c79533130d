"""Long files in segments; audio without speech; doubtful words."""

import pytest
import soundfile
import torch
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.inference.batches import has_speech
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


@pytest.fixture(scope="module")
def long_file(tmp_path_factory):
    """The example's utterances again and again with pauses, 40 s in stereo."""
    utterances = [torch.from_numpy(soundfile.read(file, dtype="float32")[0]) for file in FILES]
    noise = 1e-4 * torch.randn(16000 * 40, generator=torch.Generator().manual_seed(0))
    words, end = [], 0
    for index in range(100):
        utterance = utterances[index % 3]
        if end + utterance.numel() > noise.numel():
            break
        noise[end : end + utterance.numel()] += utterance
        words += list(SAID.values())[index % 3].split()
        end += utterance.numel() + 9600
    path = tmp_path_factory.mktemp("long") / "long.flac"
    soundfile.write(path, torch.stack([noise, noise], 1).numpy(), 16000)
    return str(path), words


def test_words_of_a_long_file_come_from_segments_of_bounded_length(model, long_file, monkeypatch):
    file, words = long_file
    shapes, told = [], []
    encode = model.encode_batch

    def noted(wavs, lengths):
        shapes.append(wavs.shape)
        return encode(wavs, lengths)

    monkeypatch.setattr(model, "encode_batch", noted)
    files = [FILES[0], file, "missing.wav", FILES[1]]
    found = list(transcribe(model, files, batch_seconds=15, progress=told.append))
    assert [t.file for t in found] == files
    assert found[0].text == SAID["bus"] and found[3].text == SAID["code"]
    assert "no such file" in found[2].error
    assert found[1].seconds == pytest.approx(40)
    assert [word.word for word in found[1].words] == found[1].text.split()
    right = sum(a == b for a, b in zip(found[1].text.split(), words))
    assert len(found[1].words) == len(words) and right >= 0.95 * len(words)
    longest = model.hparams.segment_seconds * 16000
    assert all(
        length <= longest + 640 and count * length <= 15.1 * 16000 for count, length in shapes
    )
    assert len(told) >= 4 and sum(told) == pytest.approx(sum(t.seconds or 0 for t in found))


def test_the_segments_length_is_an_option(long_file, capsys):
    file, words = long_file
    arguments = ["transcribe", "--device=cpu", str(EXAMPLE), file]
    assert cli.main([*arguments, "--segment-seconds", "3.5"]) == 0
    out, _ = capsys.readouterr()
    assert len(out.split()) > 0.9 * len(words)
    assert cli.main([*arguments, "--segment-seconds", "-1"]) == 1
    assert "--segment-seconds is -1.0, but must be above 0" in capsys.readouterr().err


def test_of_silence_and_white_noise_hardly_a_word_goes_unmarked(model, tmp_path, capsys):
    random = torch.Generator().manual_seed(0)
    files = []
    for index in range(200):
        noise = torch.randn(int(16000 * (0.5 + 0.04 * (index // 2))), generator=random)
        level = 10 ** (-2.5 + 2 * float(torch.rand((), generator=random)))
        files.append(str(tmp_path / f"{index}.wav"))
        soundfile.write(files[-1], (noise * level if index % 2 else noise * 1e-5).numpy(), 16000)
    found = list(transcribe(model, files))
    for kind in (found[::2], found[1::2]):
        assert sum(word.sure for transcript in kind for word in transcript.words) <= 5
        assert all(transcript.doubt() is not None for transcript in kind)
    assert cli.main(["transcribe", "--device=cpu", str(EXAMPLE), files[0], FILES[0]]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{files[0]}\t", f"{FILES[0]}\t{SAID['bus']}"]
    assert f"warning: {files[0]}: no words" in err and FILES[0] not in err


def test_speech_that_the_model_does_not_know_is_doubted(model, speech_data):
    files = sorted(map(str, (speech_data / "LibriSpeech").glob("**/*.flac")))[:4]
    found = list(transcribe(model, files, segment_seconds=4.0))
    words = [word for transcript in found for word in transcript.words]
    assert len(words) > 20 and sum(word.sure for word in words) < 0.2 * len(words)
    assert all("words are uncertain" in transcript.doubt() for transcript in found)


def test_silence_and_steady_noise_hold_no_speech():
    random = torch.Generator().manual_seed(0)
    for seconds in (0.3, 1.0, 30.0):
        noise = torch.randn(int(16000 * seconds), generator=random)
        for level in (0.0, 1e-6, 1e-3, 0.3):
            assert not has_speech(level * noise)
        spoken = 1e-3 * noise
        spoken[1600:3200] *= 10  # a tenth of a second that is 20 dB louder
        assert has_speech(spoken)
    assert has_speech(noise[:100]) and not has_speech(torch.zeros(100))  # too little to tell more


def test_real_speech_is_no_steady_noise(speech_data):
    files = sorted(speech_data.glob("an4/wav/an4test_clstk/**/*.sph"))
    files += sorted(speech_data.glob("LibriSpeech/**/*.flac"))[:60]
    assert files and all(has_speech(read_audio(file)) for file in files)
