"""Speech of the corpora made here: one process speaks one chunk of utterances into FLAC files.

espeak-ng seeds its breath and whisper by the clock unless told otherwise, and carries its echo from
one utterance to the next. So each utterance is given a seed, and each chunk, of a fixed size, a
fresh process: that repeats exactly. Started by `mini.make_corpus`: it reads a JSON list of
utterances from its standard input, and imports no torch.
"""

import ctypes
import json
import sys
from itertools import takewhile

import numpy
import scipy.signal
import soundfile

SAMPLE_RATE = 16000  # Hz
RATE, PITCH, RANGE = 1, 3, 4  # espeak's parameters: words a minute, 0..100, 0..100
SYNCHRONOUS = 2
END, WORD = 0, 1  # espeak's kinds of events: there is no other, a word begins
SHORTEST, LONGEST = 1.0, 6.0  # seconds, the latter unless an utterance tells its own


class _Event(ctypes.Structure):
    """What espeak tells of a sample: its ``espeak_EVENT``."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


class Espeak:
    """espeak-ng through ctypes.

    ``begins`` tells of the last utterance where words begin: from the place of a word's first
    letter in the text to seconds. Words that espeak speaks as one, such as "of the", are there by
    the first of them.
    """

    def __init__(self):
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng did not start with its data in {data.decode()}")
        callback = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_short),
            ctypes.c_int,
            ctypes.POINTER(_Event),
        )
        self._samples, self.begins = [], {}
        self._callback = callback(self._collect)  # kept: espeak holds a bare pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples, count, events):
        if samples and count > 0:
            self._samples.append(numpy.ctypeslib.as_array(samples, (count,)).copy())
        for event in takewhile(lambda event: event.type != END, events or ()):
            if event.type == WORD:
                self.begins[event.text_position - 1] = event.sample / self.sample_rate
        return 0

    def speak(self, text, *, accent, variant, rate, pitch, pitch_range, seed):
        """Returns float samples (T,) at ``sample_rate``."""
        voice = f"{accent}+{variant}"
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice}")
        for parameter, value in ((RATE, rate), (PITCH, pitch), (RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._samples, self.begins = [], {}
        utf8 = text.lower().encode()
        self._library.espeak_Synth(utf8, len(utf8) + 1, 0, 1, 0, 1, None, None)
        if not self._samples:
            raise RuntimeError(f"espeak-ng said nothing for {text!r} with the voice {voice}")
        return numpy.concatenate(self._samples) / 32768.0


def utter(espeak, utterance):
    """Speaks an utterance and makes it sound recorded.

    Arguments
    ---------
    espeak : Espeak
    utterance : dict
        Of the plan: text, accent, variant, seed, and perhaps longest: seconds that it may last,
        else `LONGEST`; it is spoken faster until it does.

    Returns
    -------
    numpy.ndarray
        float32 samples (T,) at `SAMPLE_RATE`, from `SHORTEST` to the longest; ``espeak.begins`` is
        of these.
    """
    random = numpy.random.default_rng(utterance["seed"])
    voice = {
        "accent": utterance["accent"],
        "variant": utterance["variant"],
        "pitch": random.integers(30, 71),
        "pitch_range": random.integers(30, 71),
        "seed": int(random.integers(1, 2**31)),
    }
    longest = utterance.get("longest", LONGEST)
    rate = random.uniform(140, 200)
    before, after = random.uniform(0.05, 0.3, size=2)
    while True:
        speech, cut = _trim(espeak.speak(utterance["text"], rate=rate, **voice))
        if len(speech) / espeak.sample_rate + before + after <= longest - 0.05:
            break
        rate *= 1.2
    shift = before - cut / espeak.sample_rate
    espeak.begins = {place: begin + shift for place, begin in espeak.begins.items()}
    speech = scipy.signal.resample_poly(speech, SAMPLE_RATE, espeak.sample_rate)
    short = SHORTEST + 0.01 - (len(speech) / SAMPLE_RATE + before + after)
    after += max(0.0, short)
    speech = numpy.pad(speech, [round(seconds * SAMPLE_RATE) for seconds in (before, after)])
    power = numpy.mean(speech**2)
    if random.random() < 0.9:
        background = _background(len(speech), random)
        decibels = random.uniform(10, 35)
        speech = speech + background * numpy.sqrt(power * 10 ** (-decibels / 10))
    peak = random.uniform(0.1, 0.9)
    return (speech * (peak / numpy.abs(speech).max())).astype(numpy.float32)


def _trim(speech, threshold=0.003):
    """Cuts the silence off both ends of samples (T,); tells how many at the begin it took."""
    loud = numpy.flatnonzero(numpy.abs(speech) > threshold)
    return (speech[loud[0] : loud[-1] + 1], loud[0]) if len(loud) else (speech, 0)


def _background(samples, random):
    """Noise (samples,) of power 1: coloured, or the hum of the mains."""
    kind = random.integers(4)
    if kind == 3:
        time = numpy.arange(samples) / SAMPLE_RATE
        mains = random.choice([50.0, 60.0])
        noise = sum(
            random.uniform(0.2, 1) * numpy.sin(2 * numpy.pi * (k * mains * time + random.random()))
            for k in range(1, 8)
        )
    else:
        # white, pink or brown: power falls with frequency ** kind
        spectrum = numpy.fft.rfft(random.standard_normal(samples))
        frequency = numpy.maximum(numpy.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 50.0)
        noise = numpy.fft.irfft(spectrum * frequency ** (-kind / 2), samples)
    return noise / numpy.sqrt(numpy.mean(noise**2))


def main():
    """Speaks the chunk on standard input into the files that it names."""
    espeak = Espeak()
    for utterance in json.load(sys.stdin):
        soundfile.write(
            utterance["file"], utter(espeak, utterance), SAMPLE_RATE, "PCM_16", format="FLAC"
        )


if __name__ == "__main__":
    main()
