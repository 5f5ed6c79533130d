"""Opening audio files: what is no audio, not whole or without a length is told."""

import io
import os
import re
import stat

import soundfile

from speechbrain_summarymixing.errors import UserError

UNKNOWN_FRAMES = 2**63 - 1  # of libsndfile, for a flac that was written to a pipe
LOWEST_RATE = 4000  # Hz: at a lower one no speech is left, and resampling makes it long
# libsndfile's log tells of sizes of samples that are not the file's, of which writers to a pipe
# write the largest
WRONG_SIZE = re.compile(r"(?:data|SSND|Data Size) +: (\d+) \(should be (\d+)\)")
SIZE_OF_A_PIPE = 2**31 - 2**12
OGG_PAGE = 27 + 255 + 255 * 255  # bytes, at most
NIST_FRAMES = re.compile(rb"sample_count -i (\d+)")


def opened(source, path=None):
    """Opens an audio file, whose header can be believed as far as that can be seen.

    Arguments
    ---------
    source : str, Path or bytes
        Path or content.
    path : str or None
        What errors call it; None: its path.

    Returns
    -------
    soundfile.SoundFile

    Raises
    ------
    UserError
        If the file is missing, empty, cut short, no audio, or cannot be sought in.
    """
    path = source if path is None else path
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    else:
        source = os.fsencode(source)  # a name that is not UTF-8 is one
        _check_file(source, path)
    try:
        file = soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        if _is_shortened(source):
            raise UserError(
                f"{path}: is compressed by shorten, which is not read: write it anew by sph2pipe "
                "-f sph -p FILE NEW_FILE, and put that in its place"
            ) from error
        raise UserError(
            f"{path}: cannot be read as audio ({error.error_string}): "
            "give wav, flac, mp3, ogg or sph, or convert it"
        ) from error
    if (reason := _cut_short(file, source)) is not None:
        file.close()
        raise UserError(f"{path}: cut short, {reason}: replace the file")
    if file.frames == UNKNOWN_FRAMES:
        file.close()
        raise UserError(f"{path}: its header does not tell its length: convert it to wav or flac")
    if file.samplerate < LOWEST_RATE:
        file.close()
        raise UserError(
            f"{path}: its header says {file.samplerate} Hz, but speech has {LOWEST_RATE} Hz or "
            "more: mend the header, or replace the file"
        )
    if not file.seekable():
        file.close()
        raise UserError(
            f"{path}: its encoding, {file.subtype_info}, is read from the beginning alone: convert "
            "it to wav with 16 bits, or flac"
        )
    if file.frames == 0:
        file.close()
        raise UserError(f"{path}: holds no sample: leave it out or replace it")
    return file


def _cut_short(file, source):
    """What is missing at a file's end, as far as its header and libsndfile's log tell."""
    if file.format == "OGG" and not _ends_in_last_page(_part(source, -OGG_PAGE)):
        return "its last page is not there or not whole"
    if file.format == "NIST":
        promised = NIST_FRAMES.search(_part(source, 1024))
        if promised is not None and file.frames < int(promised[1]):
            return f"{file.frames} of the {int(promised[1])} samples that its header promises"
    for promised, there in (map(int, sizes) for sizes in WRONG_SIZE.findall(file.extra_info)):
        if there < promised < SIZE_OF_A_PIPE:
            return f"{there} of the {promised} bytes that its header promises"
    return None


def _is_shortened(source):
    """Whether it is NIST sphere whose samples are compressed."""
    header = _part(source, 1024)
    return header.startswith(b"NIST_1A") and b"embedded-shorten" in header


def _part(source, size):
    """The first bytes of a file, or with a size below 0 the last."""
    if isinstance(source, io.BytesIO):
        content = source.getvalue()
        return content[:size] if size > 0 else content[size:]
    with open(source, "rb") as file:
        if size < 0:
            file.seek(max(0, file.seek(0, io.SEEK_END) + size))
        return file.read(abs(size))


def _ends_in_last_page(content):
    """Whether the last page of an ogg is whole and says that it is the last (RFC 3533)."""
    page = content[content.rfind(b"OggS") :]
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return bool(segments) and len(page) >= 27 + len(segments) + sum(segments) and bool(page[5] & 4)


def _check_file(source, path):
    try:
        mode = os.stat(source).st_mode
        if stat.S_ISREG(mode):
            open(source, "rb").close()  # whether it may be read
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file: give the path of an audio file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}): give another audio file") from error
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or device, which has no length"
        raise UserError(f"{path}: is {what}: give the path of an audio file")
