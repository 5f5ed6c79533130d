"""Transcribes audio files by an ONNX export, without torch: python onnx_transcribe.py FOLDER FILE…

Needs onnxruntime, numpy, kaldi-native-fbank and soundfile alone.
"""

import sys
from pathlib import Path

import kaldi_native_fbank
import numpy
import onnxruntime
import soundfile


def features(file, rate=16000):
    """Returns Kaldi's log-mel filterbank (frames, 80) of an audio file, of its channels' mean."""
    samples, own = soundfile.read(file, dtype="float32", always_2d=True)
    if own != rate or len(samples) < rate // 100 or not numpy.isfinite(samples).all():
        raise ValueError(f"has {own} Hz: must have {rate}, 10 ms or more, and finite samples")
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq, options.mel_opts.high_freq = 20.0, -400.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(rate, samples.mean(1).tolist())
    fbank.input_finished()
    return numpy.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def words(log_probs, tokens):
    """Returns the text of CTC's log-probabilities (frames, V): the best token of each frame."""
    best = log_probs.argmax(1)
    first = numpy.insert(best[1:] != best[:-1], 0, True)
    text = "".join(tokens[i] for i in best[first & (best != 0)])  # 0 is the blank
    return text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").strip()


def main(folder, *files):
    """Prints the words of each file; returns 1 where one cannot be read."""
    lines = Path(folder, "tokens.txt").read_text(encoding="utf-8").splitlines()
    tokens = [line.rsplit(" ", 1)[0] for line in lines]
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")))
    failed = 0
    for file in files:
        try:
            x = features(file)[None]
        except (soundfile.LibsndfileError, ValueError) as error:
            failed = print(f"error: {file}: {error}", file=sys.stderr) or 1
            continue
        log_probs, _ = session.run(None, {"x": x, "x_lens": numpy.array([x.shape[1]])})
        print(words(log_probs[0], tokens))
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) > 2 else __doc__)
