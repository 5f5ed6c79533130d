"""Sound while it comes: from standard input and from a microphone, until it ends or Ctrl-C."""

import logging
import queue
import signal
import sys

import numpy

from speechbrain_summarymixing.errors import UserError

logger = logging.getLogger(__name__)

PIECE_MS = 40  # that a microphone gives at once
BYTES = 2**16  # of standard input, at most, at once


def standard_input():
    """Yields the samples of raw 16-bit little-endian mono sound on standard input.

    Yields
    ------
    numpy.ndarray
        (T,), int16.

    Raises
    ------
    UserError
        If standard input is a terminal.
    """
    if sys.stdin.isatty():
        raise UserError(
            "standard input is a terminal, but - is sound: pipe it in, as by "
            "arecord -t raw -f S16_LE -r 16000 | summarymixing transcribe --stream MODEL -"
        )
    half = b""
    for data in _until_interrupted(lambda: sys.stdin.buffer.read1(BYTES)):
        data = half + data
        whole = len(data) // 2 * 2
        half = data[whole:]
        if whole:
            yield numpy.frombuffer(data[:whole], "<i2")
    if half:
        logger.warning("standard input ends with half a 16-bit sample, which is left out")


def microphone(device, sample_rate):
    """Yields what a microphone hears.

    Arguments
    ---------
    device : str or None
        Its number or a part of its name; None: the system's.
    sample_rate : int
        In Hz.

    Yields
    ------
    numpy.ndarray
        (T,), int16.

    Raises
    ------
    UserError
        If the package sounddevice is missing, or there is no such microphone.
    """
    try:
        import sounddevice
    except ImportError as error:
        raise UserError(
            "--microphone needs the package sounddevice, which is not installed: "
            'pip install "speechbrain-summarymixing[microphone]"'
        ) from error
    except OSError as error:  # its own library
        raise UserError(
            f"--microphone: {error}: install PortAudio (apt install libportaudio2)"
        ) from error
    heard = queue.SimpleQueue()

    def hear(data, frames, time, status):
        if status:
            logger.warning("microphone: %s: the machine is too slow, words may be lost", status)
        heard.put(bytes(data))

    try:
        stream = sounddevice.RawInputStream(
            samplerate=sample_rate,
            blocksize=sample_rate * PIECE_MS // 1000,
            device=int(device) if device is not None and device.isdecimal() else device,
            channels=1,
            dtype="int16",
            callback=hear,
            finished_callback=lambda: heard.put(b""),
        )
        stream.start()
    except (ValueError, sounddevice.PortAudioError) as error:
        raise UserError(
            f"--microphone: {error}: give one of those that python -m sounddevice lists, by its "
            f"number, which records at {sample_rate} Hz"
        ) from error
    with stream:
        for data in _until_interrupted(heard.get):
            yield numpy.frombuffer(data, numpy.int16)


def _until_interrupted(read):
    """Yields what ``read`` returns until it returns nothing, or Ctrl-C is pressed.

    That ends what waits for sound, and never interrupts what is done with it.
    """
    waits = stopped = False

    def stop(*_):
        nonlocal stopped
        stopped = True
        if waits:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        while not stopped:
            waits = True
            data = read()
            waits = False
            if not data:
                return
            yield data
    except KeyboardInterrupt:
        if not stopped:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
