"""On a GPU: what the CPU computes, in each precision, compiled, in training and in use."""

import copy
import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from tiny import ROOT, task_of

from speechbrain_summarymixing.inference.transcribe import load_model, transcribe
from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.transducer import (
    LSTMPredictor,
    StatelessPredictor,
    TransducerHead,
    transducer_loss,
)
from speechbrain_summarymixing.lobes.transducer_search import TransducerBeam, TransducerGreedy
from speechbrain_summarymixing.nnet.fastformer import Fastformer
from speechbrain_summarymixing.nnet.selective_summary_mixing import SelectiveSummaryMixing
from speechbrain_summarymixing.nnet.summaries import CAUSAL, Window
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
from speechbrain_summarymixing.training import experiment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
GPU = "cuda"
D, T = 32, 50
FORMS = {
    "plain": partial(SummaryMixing, D),
    "heads": partial(SummaryMixing, D, nhead=4),
    "lite": partial(SummaryMixing, D, local_branch=False),
    "fast": partial(SummaryMixing, D, shared_projection=True),
    "decay": partial(SummaryMixing, D, decay=0.9),
    "selective": partial(SelectiveSummaryMixing, D, nhead=4, neighbours=8, summaries=2),
    "fastformer": partial(Fastformer, D, nhead=4),
}
WINDOWED = [
    (form, window)
    for form in ("plain", "heads", "lite", "fast", "selective")
    for window in (CAUSAL, Window(chunk_frames=8, left_chunks=2))
]
ENCODERS = ("branchformer", "conformer", "transformer")


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def padded(dtype=torch.float64):
    """Frames (3, T, D) of three lengths, and their mask."""
    mask = torch.arange(T) >= torch.tensor([[T], [T // 2], [1]])
    return torch.randn(3, T, D, dtype=dtype), mask


def outputs_and_gradients(module, x, device, **options):
    module = copy.deepcopy(module).to(device)
    x = x.detach().to(device).requires_grad_()
    output = module(x, **options)[0]
    output.sin().sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in module.parameters())]
    return [tensor.cpu() for tensor in (output.detach(), *gradients) if tensor is not None]


@pytest.mark.parametrize("form, window", [*((form, None) for form in FORMS), *WINDOWED])
def test_a_mixer_computes_what_it_does_on_the_cpu(form, window):
    mixer = FORMS[form]().double().eval()
    x, mask = padded()
    options = {} if window is None else {"window": window}
    there = outputs_and_gradients(mixer, x, GPU, key_padding_mask=mask.to(GPU), **options)
    here = outputs_and_gradients(mixer, x, "cpu", key_padding_mask=mask, **options)
    torch.testing.assert_close(there, here, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_mixer_computes_the_same(form):
    torch.compiler.reset()
    mixer = FORMS[form]().to(GPU).eval()
    x, mask = padded(torch.float32)
    x, mask = x.to(GPU), mask.to(GPU)
    compiled = torch.compile(mixer, fullgraph=True)(x, key_padding_mask=mask)[0]
    torch.testing.assert_close(compiled, mixer(x, key_padding_mask=mask)[0], rtol=1e-4, atol=1e-4)


def make_encoder(kind, form="selective"):
    return SummaryMixingASR(
        20,
        D,
        token_mixer=FORMS[form],
        d_model=D,
        nhead=4,
        num_encoder_layers=2,
        num_decoder_layers=1,
        d_ffn=48,
        csgu_linear_units=48,
        kernel_size=7,
        encoder_module=kind,
    ).eval()


@pytest.mark.parametrize("form", ["plain", "selective"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_computes_what_it_does_on_the_cpu(kind, form):
    model = make_encoder(kind, form).double()
    x, lengths = padded()[0], torch.tensor([1.0, 0.5, 1 / T], dtype=torch.float64)
    here = model.encode(x, lengths)
    there = model.to(GPU).encode(x.to(GPU), lengths.to(GPU)).cpu()
    torch.testing.assert_close(there, here, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_under_autocast_is_near_float32(kind, dtype):
    model = make_encoder(kind).to(GPU)
    x, lengths = padded(torch.float32)[0].to(GPU), torch.tensor([1.0, 0.5, 1 / T], device=GPU)
    whole = model.encode(x, lengths)
    with torch.autocast("cuda", dtype=dtype):
        rounded = model.encode(x, lengths)
    assert (rounded.float() - whole).norm() < 0.05 * whole.norm()
    rounded.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ENCODERS)
def test_no_forward_pass_waits_for_the_host(kind):
    model = make_encoder(kind).to(GPU)
    x, lengths = padded(torch.float32)[0].to(GPU), torch.tensor([1.0, 0.5, 1 / T], device=GPU)
    chunks = DynChunkTrainConfig(chunk_size=8, left_context_size=2)
    for options in ({}, {"dynchunktrain_config": chunks}):
        model.encode(x, lengths, **options)  # tables are made
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.encode(x, lengths, **options).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("predictor", [StatelessPredictor, LSTMPredictor])
def test_a_transducer_learns_and_finds_what_it_does_on_the_cpu(predictor):
    head = TransducerHead(
        9, predictor=partial(predictor, width=16), encoder_width=D, joint_width=16
    ).eval()
    encoded, tokens = 5 * torch.randn(3, T, D), torch.randint(1, 9, (3, 7))
    found = []
    for device in ("cpu", GPU):
        head = copy.deepcopy(head).to(device)
        x, y = encoded.to(device), tokens.to(device)
        lengths, said = torch.tensor([[1.0, 0.5, 0.02], [1.0, 0.0, 3 / 7]], device=device)
        loss = transducer_loss(head(x, y), y, lengths, said)
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        greedy = TransducerGreedy(head, max_symbols=2)(x, lengths)
        beam = TransducerBeam(head, beam_size=4, max_symbols=2)(x, lengths)
        found.append((loss.cpu(), [g.cpu() for g in gradients], greedy[:2], beam[:1]))
    torch.testing.assert_close(found[0][:2], found[1][:2], rtol=1e-3, atol=1e-3)
    assert found[0][2:] == found[1][2:] and any(found[0][2][0])


@pytest.mark.parametrize("kind", ENCODERS)
def test_a_stream_is_the_whole(kind):
    model = make_encoder(kind).double().to(GPU)
    chunks = DynChunkTrainConfig(chunk_size=8, left_context_size=2)
    x = padded()[0][:, :48].to(GPU)
    context = model.make_streaming_context(chunks)
    with torch.no_grad():
        parts = [model.encode_streaming(part, context) for part in x.split(8, dim=1)]
        whole = model.encode(x, dynchunktrain_config=chunks)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-8, atol=1e-8)


def on_gpu(arguments):
    return [f"--device={GPU}" if a.startswith("--device=") else a for a in arguments]


@pytest.mark.parametrize("system", ["sumformer", "sumformer_transducer"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_exports_a_model_that_says_the_same_on_the_cpu(
    command, noises, precision, system, tmp_path
):
    yaml = f"hparams/{system}.yaml"
    arguments = command(tmp_path / "out", yaml=yaml, precision=precision)
    experiment.run(on_gpu(arguments), task_of(yaml))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["device"].startswith(GPU) and results["optimizer_steps"] > 0
    files = sorted(noises.glob("*.wav"))[:4] or sorted(noises.rglob("*.flac"))[:4]
    texts = [
        [said.text for said in transcribe(load_model(tmp_path / "out/pretrained", device), files)]
        for device in ("cpu", GPU)
    ]
    assert len(texts[0]) == len(files) and texts[0] == texts[1]


def test_one_process_of_torchrun_trains_by_nccl(command, tmp_path):
    arguments = on_gpu(command(tmp_path / "out"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "train.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "out/results.json").exists()
