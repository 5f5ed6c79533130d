"""Transducers as ONNX graphs: as torch, and as sherpa-onnx takes them."""

from functools import partial

import pytest
import torch
from sherpa import streamed, tokens_of
from tiny import EXAMPLE, FILES

from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.graphs import JoinerGraph, PredictorGraph
from speechbrain_summarymixing.inference.onnx import export_onnx
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_model
from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
from speechbrain_summarymixing.lobes.frontend import pad_to_multiple
from speechbrain_summarymixing.lobes.transducer import (
    BLANK,
    LSTMPredictor,
    StatelessPredictor,
    TransducerHead,
)
from speechbrain_summarymixing.lobes.transducer_search import TransducerBeam, TransducerGreedy
from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing


def head(predictor):
    torch.manual_seed(0)
    return TransducerHead(80, predictor=predictor, encoder_width=16, joint_width=32).eval()


@pytest.mark.parametrize("context", [1, 2, 3])
def test_predictor_and_joiner_are_the_heads(context):
    whole = head(partial(StatelessPredictor, width=24, context=context))
    predictor, joiner = PredictorGraph(whole), JoinerGraph(whole)
    encoded, tokens = torch.randn(2, 5, 16), torch.randint(1, 80, (2, 6))
    expected = whole(encoded, tokens)  # after none, one, … of the tokens
    said = torch.tensor([-1] * (context - 1) + [BLANK]).expand(2, -1)  # sherpa-onnx's start
    for place in range(7):
        (predicted,) = predictor(said[:, -context:])
        for frame in range(5):
            (scores,) = joiner(whole.of_frame(encoded[:, frame]), predicted)
            torch.testing.assert_close(scores, expected[:, frame, place])
        said = torch.cat([said, tokens[:, place : place + 1]], 1)
    assert predictor.metadata() == {"vocab_size": 80, "context_size": context}


def test_a_predictor_of_all_tokens_is_told_of():
    with pytest.raises(UserError, match="LSTMPredictor.*StatelessPredictor"):
        PredictorGraph(head(partial(LSTMPredictor, width=16)))


@pytest.mark.slow
def test_sherpa_onnx_says_the_tokens_of_a_transducer(tmp_path):
    import sherpa_onnx

    model = load_model(EXAMPLE, "cpu")
    hparams = model.hparams
    hparams.head = head(partial(StatelessPredictor, width=16))
    hparams.greedy_search = TransducerGreedy(hparams.head, max_symbols=1)  # as sherpa-onnx
    model.mods.decoder = TransducerBeam(hparams.head, beam_size=4, max_symbols=1)
    hparams.transformer = SummaryMixingASR(
        80,
        320,
        token_mixer=partial(SummaryMixing, 16),
        d_model=16,
        num_encoder_layers=1,
        num_decoder_layers=0,
        csgu_linear_units=16,
        kernel_size=3,
    ).eval()
    with torch.no_grad():
        hparams.head.output.bias[BLANK] += 0.6
    places = tmp_path / "model", tmp_path / "model" / "streaming"
    differences = export_onnx(model, places[0], chunk_ms=640)
    names = {"encoder", "decoder", "joiner"}
    assert differences.keys() == {str(place / f"{name}.onnx") for place in places for name in names}

    graphs = [{name: str(place / f"{name}.onnx") for name in names} for place in places]
    tokens = str(places[0] / "tokens.txt")
    offline = sherpa_onnx.OfflineRecognizer.from_transducer(**graphs[0], tokens=tokens)
    online = sherpa_onnx.OnlineRecognizer.from_transducer(**graphs[1], tokens=tokens)
    streams = StreamingModel(model, chunk_ms=640)

    def spelled(tokens):
        return [model.tokenizer.id_to_piece(token).replace("▁", " ") for token in tokens]

    for file in FILES:
        samples = pad_to_multiple(read_audio(file, 16000), 640)
        stream = offline.create_stream()
        stream.accept_waveform(16000, samples.numpy())
        offline.decode_stream(stream)
        frames = hparams.front_end(hparams.normalize(hparams.compute_features(samples[None])))
        with torch.no_grad():
            (said,), *_ = hparams.greedy_search(hparams.transformer.encode(frames), torch.ones(1))
        assert 0 < len(said) < len(samples) // 640  # at some frames there is none
        assert stream.result.tokens == spelled(said)

        samples = torch.cat([samples, torch.zeros(16000)])
        stream, chunks = streamed(online, samples)
        said = tokens_of(streams, samples, chunks)
        assert chunks >= len(samples) // 10240 - 1 and said
        assert online.tokens(stream) == spelled(said)
