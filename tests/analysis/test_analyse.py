"""``summarymixing analyse`` on models of this project, SpeechBrain and Hugging Face."""

import csv
import shutil
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import soundfile
import torch
from swap_hosts import hugging_face
from tiny import EXAMPLE, FILES, SAID
from torch import nn

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.analysis import analyse as module
from speechbrain_summarymixing.analysis import analysis_page
from speechbrain_summarymixing.analysis.analyse import UNCHANGED, _changes, _spread, _utterances
from speechbrain_summarymixing.analysis.attention_rows import MEANS, AttentionRows
from speechbrain_summarymixing.analysis.probe import Change
from speechbrain_summarymixing.analysis.subjects import load_subject
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.corpora.manifest import Utterance
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe

SPEECHBRAIN = """
sample_rate: 16000
features: !new:speechbrain.lobes.features.Fbank
    n_mels: 20
model: !new:speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
    tgt_vocab: 30
    input_size: 20
    d_model: 16
    nhead: 2
    num_encoder_layers: 2
    num_decoder_layers: 0
    d_ffn: 16
    encoder_module: conformer
    kernel_size: 3
    attention_type: RelPosMHAXL
    normalize_before: True
    causal: False
ctc_lin: !new:speechbrain.nnet.linear.Linear
    input_size: 16
    n_neurons: 30
encoder: !new:speechbrain.nnet.containers.LengthsCapableSequential
    features: !ref <features>
    model: !new:speechbrain.lobes.models.transformer.TransformerASR.EncoderWrapper
        transformer: !ref <model>
    ctc_lin: !ref <ctc_lin>
modules:
    encoder: !ref <encoder>
decoding_function: !name:speechbrain.decoders.ctc_greedy_decode
    blank_id: 0
tokenizer: !new:sentencepiece.SentencePieceProcessor
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
"""


def analyse(*arguments):
    return cli.main(["analyse", "--device=cpu", "--no-progress", *map(str, arguments)])


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def speechbrain_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "hyperparams.yaml").write_text(SPEECHBRAIN)
    return tmp_path / "model"


@pytest.fixture
def hugging_face_folder(tmp_path):
    torch.manual_seed(0)
    model = hugging_face("Wav2Vec2", conv_stride=(20, 16))
    from transformers import Wav2Vec2FeatureExtractor

    model.save_pretrained(tmp_path / "model")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_example_and_its_clip(tmp_path, capsys, monkeypatch):
    draw = analysis_page.draw_rows  # of one layer: pictures take seconds
    monkeypatch.setattr(analysis_page, "draw_rows", lambda p, path: p.layer or draw(p, path))
    monkeypatch.setattr(analysis_page, "draw_profiles", lambda *_: None)
    clip = shutil.copy(FILES[1], tmp_path / "code.flac")
    (tmp_path / "code.txt").write_text(SAID["code"])
    out = tmp_path / "out"
    assert analyse(EXAMPLE, clip, "--output", out) == 0
    heads, replaced = table(out / "heads.csv"), table(out / "replaced.csv")
    assert [(row["layer"], row["head"]) for row in heads] == [
        (str(layer), str(head)) for layer in range(1, 7) for head in range(1, 5)
    ]
    for row in heads:
        whole = sum(float(row[name]) for name in row if name.startswith(("neigh", "summary_")))
        assert whole == pytest.approx(1.0, abs=1e-2)
    assert len(replaced) == 2 * (1 + 6 * (1 + 4))
    whole = {row["change"]: row for row in replaced if row["layer"] == ""}
    assert float(whole["no neighbours"]["output"]) > float(whole["no summaries"]["output"]) > 0
    assert all(float(r["low"]) <= float(r["WER_difference"]) <= float(r["high"]) for r in replaced)
    (said,) = transcribe(load_model(EXAMPLE, "cpu"), [clip], decoder="greedy")
    wrong = sum(a != b for a, b in zip(said.text.split(), SAID["code"].split()))
    own = 100 * wrong / len(SAID["code"].split())
    for row in replaced:
        difference = float(row["WER_difference"])
        assert difference == pytest.approx(float(row["WER"]) - own, abs=0.02)
    page = (out / "README.md").read_text()
    assert len(said.text.split()) == len(SAID["code"].split())
    assert f"WER {own:.2f}%" in page
    assert "summarymixing analyse" in page and "of 24 heads" in page
    for name in ("heads.png", "rows_01.png"):
        assert f"]({name})" in page and (out / name).read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == ""


def test_what_a_change_moves_and_costs(monkeypatch):
    """An output of length 5 moves by 2.5; of four words one is wrong, and three with the change."""
    change = Change("silence")
    monkeypatch.setattr(module, "_changes", lambda _: [UNCHANGED, change])
    probe = SimpleNamespace(parts=[SimpleNamespace(heads=1)], changing=lambda _: nullcontext())
    subject = SimpleNamespace(
        encode=lambda *_: torch.tensor([[[3.0, 4.0]], [[3.0, 6.5]]]),
        words=lambda _: ["a b c x", "a x x x"],
        has_words=True,
        sample_rate=16000,
    )
    heard, said = {"bus": (1.0, 1)}, [Utterance("bus", 1.0, str(FILES[0]), "", "a b c d")]
    changes, moved, stats = module._changed(subject, probe, said, heard, False)
    assert moved == pytest.approx([0.0, 0.5])
    analysis = module._together("model", [], heard, changes, moved, stats)
    (row,) = analysis.replaced
    assert (analysis.WER, row["WER"], row["WER_difference"]) == (25.0, 75.0, 50.0)
    assert (row["low"], row["high"]) == (50.0, 50.0)


def test_attention_of_a_recogniser_of_speechbrain(speechbrain_folder, tmp_path, capsys):
    out = tmp_path / "out"
    gone = tmp_path / "gone.flac"
    shutil.copy(FILES[0], tmp_path / "bus.flac")
    (tmp_path / "set.csv").write_text(
        f"ID,duration,wav,spk_id,wrd\nbus,1.0,{tmp_path / 'bus.flac'},,\ngone,1.0,{gone},,\n"
    )
    assert analyse(speechbrain_folder, tmp_path / "set.csv", "--output", out, "--trust") == 1
    assert "1 utterances cannot be read" in (err := capsys.readouterr().err) and str(gone) in err
    heads, replaced = table(out / "heads.csv"), table(out / "replaced.csv")
    assert {row["mixer"] for row in heads} == {"RelPosMHAXL"} and len(heads) == 4
    assert set(AttentionRows.columns) <= set(heads[0])
    assert len(replaced) == 3 * (1 + 2 * (1 + 2)) and "WER" not in replaced[0]  # no words are known
    assert {row["change"] for row in replaced} == set(MEANS)
    assert all(float(row["output"]) > 0 for row in replaced)
    profile = [row for row in table(out / "profiles.csv") if row["layer"] == row["head"] == "1"]
    assert sum(float(row["weight"]) for row in profile) > 0.5
    assert "error_uniform" in (out / "README.md").read_text()


def test_attention_of_hugging_face(hugging_face_folder, tmp_path, monkeypatch, capsys):
    out, short = tmp_path / "out", tmp_path / "short.wav"
    soundfile.write(short, torch.rand(100).numpy(), 16000)
    assert analyse(hugging_face_folder, short, FILES[1], "--output", out) == 1
    assert f"{short}: 100 samples are less than a frame" in capsys.readouterr().err
    heads = table(out / "heads.csv")
    assert [row["module"] for row in heads[::2]] == [
        "encoder.layers.0.attention", "encoder.layers.1.attention"
    ]  # fmt: skip
    for name in ("heads.png", "profiles.png", "rows_01.png", "rows_02.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install .*huggingface"):
        load_subject(hugging_face_folder, "cpu")


def test_whispers_encoder_is_heard_alone(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs an encoder of transformers")
    options = {"max_source_positions": 50}  # of 1 s
    hugging_face("Whisper", **options).save_pretrained(tmp_path)
    features = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    features.save_pretrained(tmp_path)
    subject = load_subject(tmp_path, "cpu")
    assert subject.encode(read_audio(FILES[0]), 2).shape == (2, 50, 16)


def test_a_model_or_files_that_cannot_be_used(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    options = ("--output", tmp_path / "out")
    assert analyse(EXAMPLE, FILES[0], "--output", tmp_path / "file") == 1
    assert "a file: give a folder" in capsys.readouterr().err
    assert analyse(EXAMPLE, FILES[0], *options, "--utterances", "0") == 1
    assert "--utterances is 0" in capsys.readouterr().err
    assert analyse(EXAMPLE, FILES[0], FILES[0], *options) == 1
    assert "IDs occur more than once" in capsys.readouterr().err
    bus = shutil.copy(FILES[0], tmp_path / "bus.flac")
    (tmp_path / "bus.txt").write_bytes(b"CAF\xc9\n")
    assert analyse(EXAMPLE, bus, *options) == 1
    assert "bus.txt: cannot read this file (it is not UTF-8 text)" in capsys.readouterr().err
    assert analyse(EXAMPLE, tmp_path / "file.flac", *options) == 1
    assert "no such file" in capsys.readouterr().err
    assert analyse(tmp_path, FILES[0], *options) == 1
    assert "no hyperparams.yaml" in capsys.readouterr().err
    (tmp_path / "hyperparams.yaml").write_text("sample_rate: 16000\n")
    assert analyse(tmp_path, FILES[0], *options) == 1
    assert "cannot load" in capsys.readouterr().err
    (tmp_path / "hyperparams.yaml").write_text("key: !apply:os.getcwd []\n")
    assert analyse(tmp_path, FILES[0], *options) == 1
    assert "os.getcwd" in capsys.readouterr().err
    (tmp_path / "hyperparams.yaml").rename(tmp_path / "config.json")
    pytest.importorskip("transformers", reason="its error is told")
    assert analyse(tmp_path, FILES[0], *options) == 1
    assert "which transformers cannot load" in capsys.readouterr().err

    class Other:
        module, sample_rate, has_words = nn.Linear(2, 2), 16000, False

        def encode(self, waveform, copies=1):
            return self.module(torch.rand(copies, 5, 2))

    monkeypatch.setattr(module, "load_subject", lambda source, device, trust: Other())
    assert analyse(EXAMPLE, FILES[0], *options) == 1
    assert "no token mixer that is known" in (err := capsys.readouterr().err)
    assert "RelPosMHAXL" in err and "SelectiveSummaryMixing" in err
    empty = tmp_path / "empty.flac"
    empty.touch()
    assert analyse(EXAMPLE, empty, *options) == 1
    assert "no utterance can be read" in capsys.readouterr().err


def test_utterances_are_taken_at_equal_steps():
    found = _utterances([EXAMPLE], None)
    assert [u.wrd for u in found] == list(SAID.values())
    assert _spread(list(range(10)), 4) == [0, 2, 5, 7] and _spread(found, 9) == found


def test_changes_are_of_all_layers_of_each_and_of_each_head():
    parts = []
    for layer, heads in enumerate((1, 2)):
        part = AttentionRows("", nn.MultiheadAttention(2, 1), None)
        part.layer, part.heads = layer, heads
        parts.append(part)
    where = [(change.layer, change.head) for change in _changes(parts) if change.name == MEANS[0]]
    assert where == [(None, None), (0, None), (1, None), (1, 0), (1, 1)]
