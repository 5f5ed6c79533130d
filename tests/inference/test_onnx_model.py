"""Models in ONNX as MODEL of commands: what torch finds, and what is told of bad ones."""

import json
import subprocess
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import numpy
import onnx
import pytest
import soundfile
import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR
from tiny import EXAMPLE, FILES, SAID, write_csv
from torch import nn

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.decoding import Decoder
from speechbrain_summarymixing.inference.graphs import JoinerGraph, PredictorGraph, StreamingGraph
from speechbrain_summarymixing.inference.onnx_graph import Tokens
from speechbrain_summarymixing.inference.onnx_greedy import without_torch
from speechbrain_summarymixing.inference.sources import load_tokenizer
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_recognizer, transcribe
from speechbrain_summarymixing.lobes.frontend import KaldiFbank
from speechbrain_summarymixing.lobes.transducer import StatelessPredictor, TransducerHead
from speechbrain_summarymixing.lobes.transducer_search import TransducerBeam, TransducerGreedy

VOCABULARY, CHUNK = 80, 4


class Encoder(nn.Module):
    """Four features frames to one by a layer, without context: a network that is quick to export.

    In streams what it heard is added to what it tells.
    """

    def __init__(self, width=VOCABULARY, normalize=True):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.normalize = nn.Linear(4 * 80, width), normalize

    def forward(self, x, lengths=None):
        x = self.layer((x + 6).unflatten(1, (-1, 4)).flatten(2))
        return 3 * x.log_softmax(-1) if self.normalize else x


class Offline(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, x_lens):
        return self.encoder(x), (x_lens + 3) // 4


class Streaming(Offline):
    def forward(self, x, floats, nonlin, sums, others, conv1, conv2, embed, count):
        encoded = self.encoder(x)
        told = encoded + 0.1 * floats.squeeze(0).unsqueeze(1)
        kept = [one + 0.0 for one in (nonlin, sums, others, conv1, conv2, embed)]
        return told, floats + encoded.sum(1).unsqueeze(0), *kept, count + encoded.size(1)


def write_graph(file, module, inputs, names, outputs, axes, **metadata):
    """Writes a module; torch's older exporter takes a tenth of the time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            inputs,
            str(file),
            dynamo=False,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    proto = onnx.load(str(file))
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in metadata.items()})
    onnx.save(proto, str(file))


def write_offline(file, encoder, **metadata):
    inputs = torch.zeros(2, 40, 80), torch.tensor([40, 20])
    axes = {"x": {0: "B", 1: "T"}, "x_lens": {0: "B"}, "y": {0: "B", 1: "U"}, "n": {0: "B"}}
    write_graph(file, Offline(encoder), inputs, ("x", "x_lens"), "yn", axes, **metadata)


def write_tokens(folder):
    tokenizer = load_tokenizer(EXAMPLE / "tokenizer.ckpt")
    pieces = ["<blk>", *map(tokenizer.id_to_piece, range(1, VOCABULARY))]
    lines = "".join(f"{piece} {index}\n" for index, piece in enumerate(pieces))
    (folder / "tokens.txt").write_text(lines, encoding="utf-8")
    return tokenizer


def torch_model(**more):
    """What the export in `folder` was made from, with torch."""
    parts = {
        "tokenizer": load_tokenizer(EXAMPLE / "tokenizer.ckpt"),
        "decoding_function": partial(ctc_greedy_decode, blank_id=0),
        "compute_features": KaldiFbank(),
        "sample_rate": 16000,
        "segment_seconds": 3.0,
        "ctc_lin": nn.Identity(),
        **more,
    }

    class Whole(nn.Module):
        def forward(self, wavs, lengths):
            return Encoder()(parts["compute_features"](wavs, lengths))

    return EncoderASR(modules={"encoder": Whole()}, hparams=parts, run_opts={"device": "cpu"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    write_tokens(folder)
    write_offline(folder / "model.onnx", Encoder(), segment_seconds=3.0)
    states = [torch.zeros(shape) for shape in ((1, 1, 80), (1, 1, 1, 3), (1, 1, 2), (1, 1, 2))]
    states += [torch.zeros(shape) for shape in ((1, 4, 1), (1, 4, 1), (1, 128, 3, 19))]
    states.append(torch.zeros(1, dtype=torch.long))
    (folder / "streaming").mkdir()
    outputs = ["log_probs", *(f"new_{name}" for name in StreamingGraph.states)]
    axes = {
        name: {axis: "B"} for name, axis in zip(StreamingGraph.states, StreamingGraph.batch_axes)
    }
    axes |= {"x": {0: "B"}, "log_probs": {0: "B"}}
    axes |= {f"new_{name}": axes[name] for name in StreamingGraph.states}
    write_graph(
        folder / "streaming" / "model.onnx",
        Streaming(Encoder()),
        (torch.zeros(1, 4 * CHUNK, 80), *states),
        StreamingGraph.inputs,
        outputs,
        axes,
        T=4 * CHUNK,
    )
    return folder


@pytest.mark.parametrize("options", [{}, {"decoder": "beam", "beam_size": 3}])
def test_all_that_is_found_is_what_torch_finds(folder, options):
    found = list(transcribe(load_recognizer(folder), FILES, **options))
    expected = list(transcribe(torch_model(), FILES, **options))
    assert all(len(transcript.words) > 9 for transcript in expected)
    assert same(found, expected) and expected[0].error is None


def same(found, expected):
    """Whether transcripts are the same, but for rounding in their confidence."""
    for one, other in zip(found, expected, strict=True):
        assert (one.file, one.text, one.seconds, one.error) == (
            (other.file, other.text, other.seconds, other.error)
        )
        for mine, right in zip(one.words, other.words, strict=True):
            assert (mine.word, mine.begin, mine.end) == (right.word, right.begin, right.end)
            assert mine.confidence == pytest.approx(right.confidence, abs=2e-4)
    return True


@pytest.mark.parametrize("options", [{}, {"segments": "windows", "segment_seconds": 1.5}])
def test_without_torch_the_transcripts_are_the_same(folder, tmp_path, options):
    random = numpy.random.default_rng(len(options))
    files = [*FILES, "gone.wav", str(tmp_path / "one.wav")]
    soundfile.write(files[-1], random.uniform(-0.5, 0.5, 1), 16000)
    for index in range(12):
        rate, channels = (16000, 16000, 22050)[index % 3], 1 + index % 2
        samples = random.normal(0, 0.1, (random.integers(1, 5 * rate), channels))
        samples[: len(samples) // 3] *= 0.01  # else it is no speech, but steady noise
        files.append(str(tmp_path / f"{index}.wav"))
        soundfile.write(files[-1], samples, rate)
    model = without_torch(folder, "cpu", decoder="greedy", nbest=1, batch_seconds=9.0, **options)
    found = list(model.transcribe(files, decoder="greedy", batch_seconds=9.0, **options))
    assert sum(len(one.words) for one in found) > 50
    assert same(found, transcribe(load_recognizer(folder), files, batch_seconds=9.0, **options))


def test_what_needs_torch_is_told_from_what_does_not(folder, tmp_path, monkeypatch):
    (tmp_path / "encoder.onnx").touch()  # of a transducer
    for source in (EXAMPLE, tmp_path, "owner/name"):
        assert without_torch(source) is None
    assert without_torch(folder, "cuda") is None
    needing = ({"decoder": "beam"}, {"decoder": "joint"}, {"nbest": 2}, {"segments": "vad"})
    for options in (*needing, {"beam_size": 3}, {"hotwords": "BUS"}, {"ngram": "x.arpa"}):
        assert without_torch(folder, **options) is None
    with pytest.raises(ValueError, match="decoder is 'beam'"):
        without_torch(folder).transcribe(FILES, decoder="beam")
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    assert without_torch(folder) is None


def test_a_graph_is_transcribed_by_where_there_is_no_torch(folder):
    heavy = ("torch", "torchaudio", "speechbrain", "sentencepiece", "scipy", "matplotlib")
    start = f"import sys; sys.modules |= dict.fromkeys({heavy})\n"
    start += "from speechbrain_summarymixing import cli; sys.exit(cli.main(sys.argv[1:]))"
    for file in (str(folder), str(folder / "model.onnx")):
        command = [sys.executable, "-c", start, "transcribe", "--json", file, *FILES, "gone.wav"]
        run = subprocess.run(command, capture_output=True, text=True)
        assert (run.returncode, run.stderr.count("Traceback")) == (1, 0), run.stderr
        *found, gone = map(json.loads, run.stdout.splitlines())
        assert "no such file" in gone["error"] and "no such file" in run.stderr
        expected = transcribe(load_recognizer(folder), FILES)
        assert [one["text"] for one in found] == [one.text for one in expected]


def test_streams_that_come_and_go_say_what_each_says_alone(folder, tmp_path, monkeypatch):
    model = StreamingModel(load_recognizer(folder), chunk_ms=40 * CHUNK)
    sounds = [read_audio(file, 16000) for file in FILES]
    alone = []
    for sound in sounds:
        with model.open() as stream:
            stream.put(sound)
            stream.finish()
            alone.append(stream.text)
    streams = [model.open() for _ in sounds]
    for stream, sound in zip(streams, sounds):
        stream.put(sound)
        stream.end()
    model.advance()
    assert [stream.text for stream in streams] == alone and all(alone)
    (tmp_path / "streaming").symlink_to(folder)  # a name that the folder of streams has, too
    monkeypatch.chdir(tmp_path / "streaming")
    for place in (tmp_path / "streaming", "."):
        with StreamingModel(load_recognizer(place), chunk_ms=40 * CHUNK).open() as stream:
            stream.put(sounds[0])
            stream.finish()
            assert stream.text == alone[0]
    # what was heard before is in the state: a chunk in the middle says something else at the start
    with model.open() as stream:
        stream.put(sounds[0][len(sounds[0]) // 2 :])
        stream.finish()
        assert stream.text and not alone[0].endswith(stream.text)
    for options, told in (
        ({"chunk_ms": 640}, "give --chunk-ms 160"),
        ({"chunk_ms": 160, "left_ms": 160}, "leave it out"),
    ):
        with pytest.raises(UserError, match=told):
            StreamingModel(load_recognizer(folder), **options)


def test_commands_take_a_folder_or_a_graph(folder, capsys, tmp_path):
    graph = tmp_path / "model.int8.onnx"
    graph.write_bytes((folder / "model.onnx").read_bytes())
    write_tokens(tmp_path)
    assert cli.main(["transcribe", "--json", str(folder), *FILES[:2], "gone.wav"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["words"] and "gone.wav: no such file" in lines[2]["error"]
    assert cli.main(["transcribe", str(graph), FILES[0]]) == 0
    assert capsys.readouterr().out.strip() == lines[0]["text"]
    rows = [
        {"ID": name, "duration": 2.0, "wav": wav, "spk_id": "", "wrd": said}
        for (name, said), wav in zip(SAID.items(), FILES)
    ]
    write_csv(tmp_path / "set.csv", rows)
    command = ["evaluate", "--json", "--no-progress", str(folder), str(tmp_path / "set.csv")]
    assert cli.main([*command, "--against", str(EXAMPLE), "--decoder=greedy"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["WER"] > 50 > found["against"]["WER"] and found["difference"]["WER"] > 0
    stream = ["transcribe", "--stream", "--chunk-ms=160", str(folder), FILES[0]]
    assert cli.main(stream) == 0 and capsys.readouterr().out.strip()


def test_what_cannot_be_is_told(folder, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="this model has greedy and beam"):
        Decoder(load_recognizer(folder), "joint")
    with pytest.raises(UserError, match="--device is cuda.*leave --device out"):
        load_recognizer(folder, "cuda")
    with pytest.raises(UserError, match=r"x.onnx: copy the folder again"):
        load_recognizer(folder / "x.onnx")
    assert cli.main(["classify", str(folder), FILES[0]]) == 1
    assert "has no hyperparams.yaml" in capsys.readouterr().err

    def copied(name, content):
        write_tokens(tmp_path)
        (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
        (tmp_path / name).write_bytes(content)
        return tmp_path

    for name, content, told in (
        ("model.onnx", b"no graph", "model.onnx: cannot be loaded"),
        ("tokens.txt", b"<blk> 0\nA 1\n", "has 2 tokens, but the model's outputs are 80"),
        ("tokens.txt", b"A\nB\n", "no token with its number"),
        ("model.onnx", (folder / "streaming" / "model.onnx").read_bytes(), "must take x, x_lens"),
        ("config.json", b'{"sha256": {"model.onnx": "0"}}', "is not the file that was exported"),
    ):
        for load in (load_recognizer, without_torch):
            with pytest.raises(UserError, match=told):
                load(copied(name, content))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="a stream needs it: export the model with --chunk-ms"):
        StreamingModel(load_recognizer(tmp_path))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for load in (load_recognizer, without_torch):
        with pytest.raises(
            UserError, match=r"onnxruntime is not installed: pip install .*\[onnx\]"
        ):
            load(folder)


def test_a_batch_that_lacks_memory_is_heard_one_by_one(folder, monkeypatch):
    model, sizes = load_recognizer(folder), []
    graph = model.mods.encoder._graph
    run = graph._session.run

    def scarce(names, feeds):
        sizes.append(len(feeds["x"]))
        if sizes[-1] > 1:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 9")
        return run(names, feeds)

    graph._session = SimpleNamespace(run=scarce)
    expected = [transcript.text for transcript in transcribe(load_recognizer(folder), FILES)]
    assert [transcript.text for transcript in transcribe(model, FILES)] == expected
    assert max(sizes) > 1


def test_a_transducer_says_what_its_head_says(tmp_path):
    torch.manual_seed(0)
    predictor = partial(StatelessPredictor, width=24, context=3)
    head = TransducerHead(VOCABULARY, predictor=predictor, encoder_width=16, joint_width=32).eval()
    with torch.no_grad():
        head.output.bias[0] += 0.6
    encoder = nn.Sequential(Encoder(16, normalize=False), head.of_frame)
    write_tokens(tmp_path)
    write_offline(tmp_path / "encoder.onnx", encoder, max_symbols=2, beam_size=3)
    for name, graph in (("decoder", PredictorGraph(head)), ("joiner", JoinerGraph(head))):
        (inputs, *_), rows = graph.examples(80), dict.fromkeys(graph.inputs, {0: "N"})
        places = tmp_path / f"{name}.onnx", graph, inputs, graph.inputs, graph.outputs, rows
        write_graph(*places, **graph.metadata())
    model = load_recognizer(tmp_path)
    wavs, lengths = 0.1 * torch.randn(2, 32000), torch.tensor([1.0, 0.6])
    with torch.no_grad():
        encoded = encoder[0](KaldiFbank()(wavs, lengths))
    searches = {
        "greedy": TransducerGreedy(head, max_symbols=2),
        "beam": TransducerBeam(head, beam_size=3, max_symbols=2),
    }
    for name, search in searches.items():
        tokens, frames, *_ = search(encoded, lengths)
        found = Decoder(model, name)(wavs, lengths)
        assert [one.tokens for (one,) in found] == tokens and all(tokens)
    assert Decoder(model).search.name == "beam"
    (transcript,) = transcribe(model, FILES[:1])
    assert (transcript.error, type(transcript.text)) == (None, str)


def test_tokens_spell_as_sentencepiece_does(folder):
    theirs, tokens = write_tokens(folder), Tokens(folder / "tokens.txt")
    random = torch.Generator().manual_seed(0)
    for _ in range(300):
        size = int(torch.randint(0, 9, (), generator=random))
        said = torch.randint(1, VOCABULARY, (size,), generator=random).tolist()
        assert tokens.decode_ids(said) == theirs.decode_ids(said)
