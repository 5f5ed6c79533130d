"""ONNX graphs: as torch, as sherpa-onnx takes them, and without torch."""

import json
import subprocess
import sys
import venv
from hashlib import sha256
from types import SimpleNamespace

import pytest
import torch
from pages import run_python
from sherpa import compare
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tiny import EXAMPLE, FILES, ROOT, SAID
from torch import nn

from speechbrain_summarymixing.analysis.evaluate import read_reference
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.cli import main
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import onnx
from speechbrain_summarymixing.inference.graphs import OfflineGraph, StreamingGraph
from speechbrain_summarymixing.inference.onnx import export_onnx
from speechbrain_summarymixing.inference.onnx_graph import FEATURES
from speechbrain_summarymixing.inference.onnx_greedy import without_torch
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_model, load_recognizer, transcribe
from speechbrain_summarymixing.lobes.streaming import SpeechEncoder

STREAMING = EXAMPLE.with_name("sumformer-mini-streaming")


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


def parts(model):
    hparams = model.hparams
    head = nn.Sequential(hparams.ctc_lin, nn.LogSoftmax(-1))
    return hparams.normalize, hparams.front_end, hparams.transformer, head


def test_the_offline_graph_is_the_model_from_features_on(model):
    wavs = [read_audio(file, 16000) for file in FILES[:2]]
    samples = [-(-len(wav) // 640) * 640 for wav in wavs]
    batch = torch.zeros(2, max(samples))
    for row, wav in zip(batch, wavs):
        row[: len(wav)] = wav
    lengths = torch.tensor(samples) / max(samples)
    with torch.no_grad():
        encoded = model.encode_batch(batch, lengths)
        expected = model.hparams.ctc_lin(encoded).log_softmax(-1)
        features = model.hparams.compute_features(batch, lengths)
        x_lens = torch.tensor(samples) // 160
        found, frames = OfflineGraph(*parts(model)).eval()(features, x_lens)
        # frames that are no multiple of 4 are followed by silence
        cut, cut_frames = OfflineGraph(*parts(model)).eval()(features[:1, :-3], x_lens[:1] - 3)
    assert frames.tolist() == (x_lens // 4).tolist()
    for row, count in enumerate(frames):
        torch.testing.assert_close(found[row, :count], expected[row, :count], atol=1e-4, rtol=0)
    assert cut_frames == frames[:1] and cut.shape[1] == (features.size(1) - 3 + 3) // 4


@pytest.mark.parametrize("left", [None, 3])
def test_the_streaming_graph_is_a_step_of_the_encoder(model, left):
    normalize, front_end, transformer, head = parts(model)
    config = DynChunkTrainConfig(5, left)
    encoder = SpeechEncoder(
        model.hparams.compute_features, normalize, front_end, transformer, config
    ).eval()
    graph = StreamingGraph(encoder, head).eval()
    packed = graph.start(2)
    state, windows = encoder.initial_state(2), 0.1 * torch.randn(7, 2, 5 * 640 + 240)
    with torch.no_grad():
        for chunk in windows:
            frames = torch.tensor([5, 5])
            encoded, state = encoder.step(chunk, frames, state)
            x = model.hparams.compute_features.of_windows(chunk)
            found, *packed = graph(x, *packed)
            expected = head(encoded)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert packed[-1].tolist() == [35, 35]
    assert not any(x.any() for x in graph.start())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "model"
    options = ["--format", "onnx", "--chunk-ms", "640", "--int8"]
    assert main(["export", str(STREAMING), str(folder), *options]) == 0
    return folder


@pytest.mark.slow
def test_the_folder_tells_what_it_holds(exported):
    for place in (exported, exported / "streaming"):
        config = json.loads((place / "config.json").read_text())
        assert {"model.onnx", "model.int8.onnx", "tokens.txt"} <= config["sha256"].keys()
        for name, digest in config["sha256"].items():
            assert sha256((place / name).read_bytes()).hexdigest() == digest
    assert {path.suffix for path in exported.rglob("*.*")} == {".onnx", ".txt", ".json", ".md"}
    for file in exported.rglob("*.onnx"):  # torch would add lines of our source, and where they lay
        assert b"stack_trace" not in file.read_bytes()
        assert str(ROOT).encode() not in file.read_bytes()
    whole, small = (exported / name for name in ("model.onnx", "model.int8.onnx"))
    assert small.stat().st_size < 0.35 * whole.stat().st_size


@pytest.mark.slow
def test_sherpa_onnx_says_the_same_words_offline_and_as_a_stream(exported):
    result = compare(STREAMING, exported, read_reference(STREAMING))
    assert result["utterances"] == len(FILES) and not any(result["differ"].values())
    assert result["offline"]["WER"] == 0 and result["stream"]["WER"] < 20  # after words, silence


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"decoder": "greedy"}, {"decoder": "beam", "beam_size": 4}])
def test_transcribe_says_the_same_words_by_the_graph(exported, options):
    expected = list(transcribe(load_model(STREAMING, "cpu"), FILES, **options))
    found = list(transcribe(load_recognizer(exported), FILES, **options))
    assert [one.text for one in found] == [one.text for one in expected]
    times = [
        [[(w.word, w.begin, w.end) for w in one.words] for one in x] for x in (found, expected)
    ]
    assert times[0] == times[1]
    if (light := without_torch(exported, **options)) is not None:  # of greedy search
        heard = light.transcribe(FILES)
        assert [[(w.word, w.begin, w.end) for w in one.words] for one in heard] == times[1]
    assert (light is None) == (options["decoder"] != "greedy")
    small = transcribe(load_recognizer(exported / "model.int8.onnx"), FILES, **options)
    right = [a == b for one, s in zip(small, SAID.values()) for a, b in zip(one.text, s)]
    assert sum(right) > 0.5 * len(right)


@pytest.mark.slow
def test_streams_say_the_same_words_by_the_graph(exported):
    texts = []
    for model in (load_model(STREAMING, "cpu"), load_recognizer(exported)):
        streams = StreamingModel(model, chunk_ms=640)
        texts.append([])
        for file in FILES:
            with streams.open() as stream:
                # whole chunks: after the end of a stream a graph hears silence, and torch nothing
                samples = read_audio(file, 16000)
                stream.put(samples[: len(samples) // 10240 * 10240])
                stream.finish()
                texts[-1].append(stream.text)
    assert texts[0] == texts[1] and all(texts[0])


EXAMPLE_SCRIPT = ROOT / "examples" / "onnx_transcribe.py"


def said_by(python, exported, *before):
    """The lines of the example, run by an interpreter, and what `transcribe` says."""
    command = [str(python), *before, str(EXAMPLE_SCRIPT), str(exported), *FILES]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={})
    said = [transcript.text for transcript in transcribe(load_model(STREAMING, "cpu"), FILES)]
    return run.stdout.splitlines(), said


@pytest.mark.slow
def test_words_without_torch(exported):
    assert len(EXAMPLE_SCRIPT.read_text().splitlines()) <= 60
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    found, said = said_by(sys.executable, exported, "-c", code)
    assert found == said


@pytest.mark.slow
def test_words_in_an_environment_without_torch(exported, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    needed = ["onnxruntime", "numpy", "kaldi-native-fbank", "soundfile"]
    install = [str(python), "-m", "pip", "install", "--quiet", *needed]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install {needed}: {installed.stderr[-200:]}")
    assert subprocess.run([str(python), "-c", "import torch"], capture_output=True).returncode
    found, said = said_by(python, exported)
    assert found == said


def test_what_cannot_be_exported_says_so(model, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("here")
    for name in ("hyperparams.yaml", "config.json", "x"):  # and what torch loads stays
        with pytest.raises(UserError, match="exists, and is no export"):
            export_onnx(model, tmp_path)
        (tmp_path / name).touch()
    monkeypatch.setattr(model.hparams.compute_features, "n_mels", 40)
    with pytest.raises(UserError, match="'n_mels': 40"):
        export_onnx(model, tmp_path / "new")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="onnxscript is not installed: pip install"):
        export_onnx(model, tmp_path / "new")
    assert onnx.INSTALL.endswith('[onnx]"')
    assert main(["export", str(EXAMPLE), str(tmp_path / "new"), "--left-ms", "640"]) == 1


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_another_wrote_is_not_deleted(tmp_path, monkeypatch):
    parts = {place: {"model": (nn.Identity(), {})} for place in ("", "streaming")}
    monkeypatch.setattr(onnx, "_graphs", lambda *_: parts)
    for name in ("_write", "_quantize", "_halve", "_write_tokens"):
        monkeypatch.setattr(onnx, name, lambda source, file, *_: file.touch())
    monkeypatch.setattr(onnx, "_compared", lambda *_: 0.0)
    normalize, features = SimpleNamespace(norm_type="global"), SimpleNamespace(**FEATURES)
    hparams = SimpleNamespace(compute_features=features, normalize=normalize)
    model = SimpleNamespace(hparams=hparams, tokenizer=None, eval=lambda: None)
    folder = tmp_path / "a" / "model"
    for other, config in (
        ("a/model.new", None),
        ("none", None),
        ("hub", '{"architectures": ["Wav2Vec2ForCTC"]}'),
        ("list", "[]"),
        ("cut", '{"features": '),
    ):
        (tmp_path / other).mkdir(parents=True)
        (tmp_path / other / "tokens.txt").touch()
        if config is not None:
            (tmp_path / other / "config.json").write_text(config)
    kept = names(tmp_path)
    export_onnx(model, folder, int8=True, fp16=True)
    files = {"config.json", "README.md", "tokens.txt", "model.onnx"}
    smaller = {"model.int8.onnx", "model.fp16.onnx"}
    assert {path.name for path in folder.iterdir()} == {*files, *smaller, "streaming"}
    mode = folder.stat().st_mode
    monkeypatch.chdir(folder)
    assert export_onnx(model, ".").keys() == {"model.onnx", "streaming/model.onnx"}
    monkeypatch.chdir(tmp_path)
    exported = names(folder)
    assert exported == sorted([*files, "streaming", *(f"streaming/{name}" for name in files)])
    assert folder.stat().st_mode == mode == (tmp_path / "none").stat().st_mode

    for mine in (
        folder / "mine.onnx",
        folder / "streaming" / "notes.txt",
        folder / "hyperparams.yaml",
    ):
        mine.touch()
        with pytest.raises(UserError, match="exists, and is no export.*holds nothing else"):
            export_onnx(model, folder)
        mine.unlink()
    for other in ("none", "hub", "list", "cut"):
        with pytest.raises(UserError, match="exists, and is no export"):
            export_onnx(model, tmp_path / other)
    monkeypatch.setattr(onnx, "_write_tokens", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(model, folder)
    assert names(folder) == exported
    assert names(tmp_path) == sorted([*kept, "a/model", *(f"a/model/{one}" for one in exported)])


@pytest.mark.slow
def test_the_python_of_the_page(exported, capsys):
    samples = read_audio(FILES[0], 16000)
    heard = [part.numpy() for part in torch.cat([samples, torch.zeros(16000)]).split(1600)]
    run_python(
        "docs/onnx.md", replaced=[("FOLDER", exported)], samples=samples.numpy(), microphone=heard
    )
    whole, *_, streamed = capsys.readouterr().out.strip().splitlines()
    (expected,) = transcribe(load_recognizer(exported), FILES[:1])
    assert whole.split() == expected.text.split() and streamed.split()
