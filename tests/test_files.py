"""Files that are whole or not there, and locks that processes wait for, or are refused by."""

import errno
import fcntl
import os
import threading
import time

import pytest

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import atomically, locked, read_lines, write_atomically


@pytest.mark.parametrize("name", ["a", "n" * 255, "é" * 127])
def test_a_file_of_any_name_is_written_whole_or_not_at_all(name, tmp_path):
    for content in ("old", "new"):
        write_atomically(tmp_path / name, content)
        assert (tmp_path / name).read_text() == content
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / name, "\ud800")
    with pytest.raises(OSError), atomically(tmp_path / name) as temporary:
        temporary.write_text("half")
        raise OSError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_those_who_wait_take_turns_and_leave_nothing(tmp_path):
    number = tmp_path / "number.txt"
    number.write_text("0")

    def add():
        for _ in range(20):
            with locked(tmp_path / ".lock"):
                before = int(number.read_text())
                time.sleep(0.0005)  # another would read the same
                number.write_text(str(before + 1))

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert number.read_text() == "120"
    assert [path.name for path in tmp_path.iterdir()] == ["number.txt"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog, number):
    def unsupported(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / ".lock", lambda who: "busy"):
        assert "this disk has no locks" in caplog.text


def test_a_second_one_is_refused_and_told_who_is_first(tmp_path):
    with locked(tmp_path / "new/.lock"):
        with pytest.raises(UserError, match=r"^busy: process \d+ on ."):
            with locked(tmp_path / "new/.lock", lambda who: f"busy: {who}"):
                pass
    with locked(tmp_path / "new/.lock", lambda who: f"busy: {who}"):
        assert (tmp_path / "new/.lock").is_file()


def test_lines_end_where_the_file_says_and_at_no_other_character(tmp_path):
    file = tmp_path / "text"
    for content, lines in (
        ("", []),
        ("a", ["a"]),
        ("a\r\n\nb\n", ["a", "", "b"]),
        (
            "\ufeffu1 HELLO\u2028BIG\u0085 WORLD\x0c\nu2\n",
            ["u1 HELLO\u2028BIG\u0085 WORLD\x0c", "u2"],
        ),
    ):
        file.write_bytes(content.encode())
        assert read_lines(file) == lines
