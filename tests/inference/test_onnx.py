"""ONNX graphs: as torch, as sherpa-onnx takes them, and without torch."""

import json
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tiny import EXAMPLE, FILES, ROOT

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.cli import main
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference import onnx
from speechbrain_summarymixing.inference.graphs import OfflineGraph, StreamingGraph
from speechbrain_summarymixing.inference.onnx import export_onnx
from speechbrain_summarymixing.inference.transcribe import load_model
from speechbrain_summarymixing.lobes.streaming import SpeechEncoder


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


def parts(model):
    hparams = model.hparams
    return hparams.normalize, hparams.front_end, hparams.transformer, hparams.ctc_lin


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
    normalize, front_end, transformer, ctc_lin = parts(model)
    config = DynChunkTrainConfig(5, left)
    encoder = SpeechEncoder(
        model.hparams.compute_features, normalize, front_end, transformer, config
    ).eval()
    graph = StreamingGraph(encoder, ctc_lin).eval()
    packed = graph.start(2)
    state, windows = encoder.initial_state(2), 0.1 * torch.randn(7, 2, 5 * 640 + 240)
    with torch.no_grad():
        for chunk in windows:
            frames = torch.tensor([5, 5])
            encoded, state = encoder.step(chunk, frames, state)
            x = model.hparams.compute_features.of_windows(chunk)
            found, *packed = graph(x, *packed)
            expected = ctc_lin(encoded).log_softmax(-1)
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert packed[-1].tolist() == [35, 35]
    assert not any(x.any() for x in graph.start())


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "model"
    command = [
        "export",
        str(EXAMPLE),
        str(folder),
        "--format",
        "onnx",
        "--chunk-ms",
        "640",
        "--int8",
    ]
    assert main(command) == 0
    return folder


@pytest.mark.slow
def test_the_folder_tells_what_it_holds(exported):
    for place in (exported, exported / "streaming"):
        config = json.loads((place / "config.json").read_text())
        assert {"model.onnx", "model.int8.onnx", "tokens.txt"} <= config["sha256"].keys()
        for name, digest in config["sha256"].items():
            assert sha256((place / name).read_bytes()).hexdigest() == digest
    assert {path.suffix for path in exported.rglob("*.*")} == {".onnx", ".txt", ".json", ".md"}
    assert (exported / "model.int8.onnx").stat().st_size < 0.7 * (
        exported / "model.onnx"
    ).stat().st_size


@pytest.mark.slow
def test_sherpa_onnx_says_the_same_words_offline_and_as_a_stream(exported, model):
    import sherpa_onnx

    offline = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(exported / "model.onnx"), tokens=str(exported / "tokens.txt")
    )
    streaming = exported / "streaming"
    online = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        model=str(streaming / "model.onnx"), tokens=str(streaming / "tokens.txt")
    )
    from speechbrain_summarymixing.inference.streaming import StreamingModel

    streams = StreamingModel(model, chunk_ms=640)
    for file in FILES:
        samples = read_audio(file, 16000)
        stream = offline.create_stream()
        stream.accept_waveform(16000, samples.numpy())
        offline.decode_stream(stream)
        padded = torch.nn.functional.pad(samples, (0, -len(samples) % 640)).unsqueeze(0)
        with torch.no_grad():
            log_probs = model.hparams.ctc_lin(model.encode_batch(padded, torch.ones(1)))
        best = torch.unique_consecutive(log_probs[0].argmax(1)).tolist()
        assert stream.result.text.strip() == model.tokenizer.decode_ids([t for t in best if t])
        silence = torch.zeros(16000)
        stream = online.create_stream()
        stream.accept_waveform(16000, torch.cat([samples, silence]).numpy())
        stream.input_finished()
        while online.is_ready(stream):
            online.decode_stream(stream)
        with streams.open() as ours:
            ours.put(torch.cat([samples, silence]))
            streams.advance()
            assert online.get_result(stream).strip() == ours.text


@pytest.mark.slow
def test_words_without_torch(exported, model):
    script = ROOT / "examples" / "onnx_transcribe.py"
    assert len(script.read_text().splitlines()) <= 60
    hidden = "import sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; import runpy; "
    command = [
        sys.executable,
        "-c",
        f"{hidden}runpy.run_path({str(script)!r}, run_name='__main__')",
    ]
    run = subprocess.run(
        [*command, str(script), str(exported), *FILES], capture_output=True, text=True, check=True
    )
    assert len(run.stdout.splitlines()) == len(FILES)
    assert "CODE IS SEVEN ZERO FOUR" in run.stdout


def test_what_cannot_be_exported_says_so(model, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("here")
    with pytest.raises(UserError, match="exists, and is no export"):
        export_onnx(model, tmp_path)
    monkeypatch.setattr(model.hparams.compute_features, "n_mels", 40)
    with pytest.raises(UserError, match="'n_mels': 40"):
        export_onnx(model, tmp_path / "new")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="onnxscript is not installed: pip install"):
        export_onnx(model, tmp_path / "new")
    assert onnx.INSTALL.endswith('[onnx]"')
    assert main(["export", str(EXAMPLE), str(tmp_path / "new"), "--left-ms", "640"]) == 1
