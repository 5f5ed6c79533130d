"""Sound while it comes: from standard input and from a microphone, until it ends or Ctrl-C."""

import logging
import queue
import signal
import sys
from contextlib import contextmanager

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
    if sys.stdin is None:
        raise UserError("standard input is closed, but - is its sound: pipe it in")
    if sys.stdin.isatty():
        raise UserError(
            "standard input is a terminal, but - is sound: pipe it in, as by "
            "arecord -t raw -f S16_LE -r 16000 | summarymixing transcribe --stream MODEL -"
        )
    half = b""
    for data in _read():
        data = half + data
        whole = len(data) // 2 * 2
        half = data[whole:]
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

    with _at_interrupt(lambda: heard.put(b"")):
        try:
            stream = sounddevice.RawInputStream(
                samplerate=sample_rate,
                blocksize=sample_rate * PIECE_MS // 1000,
                device=int(device) if device is not None and device.isdecimal() else device,
                channels=1,
                dtype="int16",
                callback=hear,
                finished_callback=lambda: heard.put(b""),  # as when it is pulled out
            )
            stream.start()
        except (ValueError, sounddevice.PortAudioError) as error:
            raise UserError(
                f"--microphone: {error}: give one of those that python -m sounddevice lists, by "
                f"its number, which records at {sample_rate} Hz"
            ) from error
        print("listening: Ctrl-C ends", file=sys.stderr, flush=True)
        with stream:
            while data := heard.get():
                yield numpy.frombuffer(data, numpy.int16)


def _read():
    """Yields bytes of standard input as they come; Ctrl-C ends it."""
    ended = waits = False

    def end():
        nonlocal ended
        ended = True
        if waits:  # and never while others work with what was read
            raise KeyboardInterrupt

    with _at_interrupt(end):
        while not ended:
            try:
                waits = True
                data = sys.stdin.buffer.read1(BYTES)
                waits = False
            except KeyboardInterrupt:
                return
            if not data:
                return
            yield data


@contextmanager
def _at_interrupt(do):
    """A context in which the first Ctrl-C calls ``do``; the next interrupts as ever."""

    def handle(*_):
        signal.signal(signal.SIGINT, before)
        do()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
