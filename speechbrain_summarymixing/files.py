"""Files that a kill leaves whole: the old content or the new."""

import csv
import errno
import io
import json
import logging
import os
import platform
import secrets
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

from speechbrain_summarymixing.errors import UserError

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # some disks of clusters


def write_atomically(path, content):
    """Writes a file, whose folder is made, whole or not at all.

    Arguments
    ---------
    path : str or Path
    content : str or bytes
        Text becomes UTF-8.
    """
    with atomically(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_table(path, columns, rows):
    """Writes a CSV file with a header, whole or not at all.

    Arguments
    ---------
    path : str or Path
    columns : sequence of str
    rows : iterable of sequence
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


@contextmanager
def atomically(path):
    """Gives the path of a file to write, which replaces another when it is whole.

    Arguments
    ---------
    path : str or Path
        Of the file to be; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # two runs may share a folder, and a longer name than the file's may be too long
    temporary = path.with_name(f"{secrets.token_hex(4)}.new")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder):
    """Gives the path of a folder to fill with audio, which gets its name when it is whole.

    Arguments
    ---------
    folder : Path
        Must not exist.

    Raises
    ------
    UserError
        If it exists, or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already: delete it, or give a new folder")
    new = folder.with_name(folder.name + ".new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        os.rename(new, folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror or error}: {folder} is not written; it "
            "takes about as much room as the audio files"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def locked(path, refusal=None):
    """Bars other processes from a lock file until the block ends, or this process does.

    Arguments
    ---------
    path : str or Path
        Its folder is made. It holds the process's number, and goes when the block ends.
    refusal : callable or None
        Given which process holds the lock, such as "process 12 on host", returns what to tell;
        None waits for its end.

    Yields
    ------
    int
        The file's descriptor: a process that inherits it holds the lock too.

    Raises
    ------
    UserError
        Of the refusal.
    """
    import fcntl  # which Windows lacks: all else works there

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        try:
            while True:
                lock = opened.enter_context(open(path, "a+", encoding="utf-8"))
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal is not None else 0))
                if _is_open(lock, path):
                    break  # else the one who had it has deleted the file
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(refusal(lock.read().strip() or "another process")) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s: this disk has no locks: start nothing else there", path.parent)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        try:
            yield lock.fileno()
        finally:
            path.unlink(missing_ok=True)


def _is_open(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def read_lines(path):
    """Returns the lines of a corpus's text file.

    Arguments
    ---------
    path : Path

    Raises
    ------
    UserError
        If it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # whose line ends are all \n
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{path}: cannot read this file ({reason}): mend it, or unpack the corpus again"
        ) from error
    # not by splitlines, which takes U+2028 and others within a transcript for ends
    return text.removesuffix("\n").split("\n") if text else []


def read_tsv(path, columns, *, filled):
    """Reads a corpus's table, whose columns are apart by tabs and named in the first line.

    Arguments
    ---------
    path : Path
    columns : sequence of str
        That it must have.
    filled : sequence of str
        Those of the columns that may not be empty in a line.

    Yields
    ------
    dict
        From each column to a line's value.

    Raises
    ------
    UserError
        If it cannot be read, is not UTF-8, or lacks a column or a value.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            names = reader.fieldnames or []
            if absent := [name for name in columns if name not in names]:
                raise UserError(
                    f"{path}: no column {', '.join(absent)}: the first line must name the columns "
                    f"{', '.join(columns)}; it is {', '.join(names) or 'empty'}"
                )
            for line in reader:
                for name in columns:
                    if line[name] is None or (name in filled and not line[name]):
                        raise UserError(
                            f"{path}, line {reader.line_num}: no value for {name}: mend the line, "
                            "or unpack the corpus again"
                        )
                yield line
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path}: cannot read this file ({reason})") from error


def placed(path, *folders):
    """Returns the absolute path of a file, which stands in the working directory or in a folder.

    Arguments
    ---------
    path : str
        As it is written.
    *folders : Path
        Looked into in this order, where the working directory does not have it.
    """
    if os.path.isabs(path):
        return path
    places = (Path(path), *(folder / path for folder in folders))
    return str(next((place for place in places if place.is_file()), places[0]).absolute())


def made_once(path, source, make, *, refusal=None):
    """Makes a file, unless its stamp says that it was made from the same before.

    Arguments
    ---------
    path : str or Path
        Beside it stands its stamp, ``<path>.json``.
    source : dict
        What it is made from, of JSON's types.
    make : callable
        Writes the file.
    refusal : str or None
        What to tell if the file must not be made anew, and would be.

    Raises
    ------
    UserError
        Of the refusal.
    """
    path = Path(path)
    stamp = path.with_name(path.name + ".json")
    if path.is_file() and _content(stamp) == json.loads(json.dumps(source)):
        return
    if refusal is not None:
        raise UserError(refusal)
    stamp.unlink(missing_ok=True)
    make()
    write_atomically(stamp, json.dumps(source))


def _content(stamp):
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or one that was cut short
        return None
