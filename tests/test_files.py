"""Locks that processes wait for, or are refused by."""

import errno
import fcntl
import os
import threading
import time

import pytest

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import locked


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
