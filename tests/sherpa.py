"""Streams in sherpa-onnx, and the same chunks in ours."""

import torch


def streamed(recognizer, samples):
    """A stream of sherpa-onnx's OnlineRecognizer that has heard samples, and its chunks."""
    stream, chunks = recognizer.create_stream(), 0
    stream.accept_waveform(16000, samples.numpy())
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
        chunks += 1
    return stream, chunks


def tokens_of(streams, samples, chunks):
    """The tokens of so many chunks of a `StreamingModel`'s stream, in silence too."""
    windows, tokens = streams.encoder.windows(), []
    windows.accept(samples)
    state, search = streams.encoder.initial_state(1), streams.search.start(1)
    with torch.no_grad():
        for window, frames in list(windows.ready())[:chunks]:
            encoded, state = streams.encoder.step(window[None], torch.tensor([frames]), state)
            (found,), search = streams.search.step(encoded, search)
            tokens += [emission.token for emission in found]
    return tokens
