"""Whole test sets in sherpa-onnx and in ours: python tests/sherpa.py MODEL FOLDER test.csv

FOLDER is what `summarymixing export MODEL FOLDER --format onnx --chunk-ms N` wrote, of a CTC model.
Each utterance goes through sherpa-onnx offline and, with a second of zeros after it, as a stream;
through MODEL by greedy search, and as the same chunks. The exit status is 1 where the words of a
stream differ or are not all heard, or those of more than 1% of the utterances offline.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from speechbrain_summarymixing.analysis.evaluate import measure, read_reference
from speechbrain_summarymixing.audio import read_audio
from speechbrain_summarymixing.inference.streaming import StreamingModel
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe

RATE = 16000  # Hz
FRAME = RATE // 25  # samples of an encoder's frame


def heard(recognizer, samples):
    """What sherpa-onnx's OfflineRecognizer hears in samples."""
    stream = recognizer.create_stream()
    stream.accept_waveform(RATE, samples.numpy())
    recognizer.decode_stream(stream)
    return stream.result.text.strip()


def streamed(recognizer, samples):
    """A stream of sherpa-onnx's OnlineRecognizer that has heard samples, and its chunks."""
    stream, chunks = recognizer.create_stream(), 0
    stream.accept_waveform(RATE, samples.numpy())
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
        chunks += 1
    return stream, chunks


def tokens_of(streams, samples, chunks):
    """The tokens of so many chunks of a `StreamingModel`'s stream, in silence too."""
    windows, tokens = streams.encoder.windows(), []
    windows.accept(torch.cat([samples, samples.new_zeros(RATE)]))  # sherpa's last chunk goes beyond
    state, search = streams.encoder.initial_state(1), streams.search.start(1)
    with torch.no_grad():
        for window, frames in list(windows.ready())[:chunks]:
            encoded, state = streams.encoder.step(window[None], torch.tensor([frames]), state)
            (found,), search = streams.search.step(encoded, search)
            tokens += [emission.token for emission in found]
    return tokens


def compare(model, folder, utterances):
    """Recognises utterances in each way.

    Returns
    -------
    dict
        ``audio_seconds``; of each way its errors and seconds of the CPU; ``differ``: the IDs, and
        both texts, whose words differ offline, offline with zeros up to a multiple of a frame,
        and as a stream; "unheard": those of whose stream sherpa-onnx left out chunks.
    """
    import sherpa_onnx

    model = load_model(model, "cpu")
    place = folder / "streaming"
    offline = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(
        model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt")
    )
    online = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        model=str(place / "model.onnx"), tokens=str(place / "tokens.txt")
    )
    chunk_ms = json.loads((place / "config.json").read_text())["chunk_ms"]
    streams = StreamingModel(model, chunk_ms=chunk_ms)
    said, took, audio = defaultdict(list), Counter(), 0.0
    differ = {"offline": {}, "offline_whole_frames": {}, "stream": {}, "unheard": {}}

    @contextmanager
    def timed(way):
        start = time.process_time()
        yield
        took[way] += time.process_time() - start

    for u in tqdm(utterances, unit="utt"):
        samples = read_audio(u.wav, RATE, **u.part)
        audio += len(samples) / RATE
        with timed("torch"):
            own = next(transcribe(model, [u], decoder="greedy")).text
        with timed("offline"):
            text = heard(offline, samples)
        said["torch"].append(own.split())
        said["offline"].append(text.split())
        if text.split() != own.split():
            differ["offline"][u.ID] = [text, own]
            text = heard(offline, torch.cat([samples, samples.new_zeros(-len(samples) % FRAME)]))
            if text.split() != own.split():
                differ["offline_whole_frames"][u.ID] = [text, own]
        samples = torch.cat([samples, samples.new_zeros(RATE)])
        with timed("stream"):
            stream, chunks = streamed(online, samples)
            text = online.get_result(stream).strip()
        if chunks < len(samples) // (RATE * chunk_ms // 1000) - 1:
            differ["unheard"][u.ID] = chunks
        with timed("torch_stream"):
            own = model.tokenizer.decode_ids(tokens_of(streams, samples, chunks))
        said["stream"].append(text.split())
        said["torch_stream"].append(own.split())
        if text.split() != own.split():
            differ["stream"][u.ID] = [text, own]
    keys, reference = [u.ID for u in utterances], [u.wrd.split() for u in utterances]
    result = {"utterances": len(keys), "audio_seconds": round(audio, 1)}
    for way, words in said.items():
        result[way] = measure(keys, reference, words)[1] | {"cpu_seconds": round(took[way], 2)}
    return result | {"differ": differ}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("manifest")
    arguments = parser.parse_args()
    result = compare(arguments.model, arguments.folder, read_reference(arguments.manifest))
    print(json.dumps(result, indent=1, ensure_ascii=False))
    differ = result["differ"]
    return (
        differ["stream"] or differ["unheard"] or len(differ["offline"]) > result["utterances"] / 100
    )


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
