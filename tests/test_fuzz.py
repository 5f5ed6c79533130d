"""A share of tests/fuzz.py, and that it sees what it looks for."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzz
import pytest
from hypothesis import strategies as st

from speechbrain_summarymixing.errors import UserError


def test_damaged_input_is_told_and_no_more():
    command = [sys.executable, str(Path(fuzz.__file__)), "--examples", "7000", "--seed", "0"]
    tried = subprocess.run(command, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stdout[-5000:] + tried.stderr[-5000:]
    counts = re.findall(r"(\w+): (\d+) inputs, of which (\d+) are told", tried.stdout)
    assert sum(int(inputs) for _, inputs, _ in counts) >= 6990 and len(counts) == 6
    for kind, inputs, told in counts:
        assert int(inputs) >= int(told) > int(inputs) / 10, kind  # it does damage


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    fuzz.guard(folder)  # for good, but it bars nothing unless an input is watched
    return folder


def crash(number):
    [][number]


def empty(number):
    raise UserError(" ")


def hang(number):
    while True:
        number += 1


def write(number):
    (Path(__file__).parent / "fuzzed").write_text("")


def start(number):
    subprocess.run(["true"])


@pytest.mark.parametrize(
    "use, found",
    [
        (crash, "IndexError at crash"),
        (empty, "an empty message"),
        (hang, "Hang at"),
        (write, "Outside at"),
        (start, "Outside at"),
    ],
)
def test_what_must_not_be_is_found(guarded, monkeypatch, use, found):
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)

    def made(inputs):
        return use, (st.integers(0, 9),)

    [(where, message)] = [end for end in fuzz.drawn(made, None, 1, 0, Counter()) if end[0]]
    assert found in where and "(0,)" in message
    assert not (Path(__file__).parent / "fuzzed").exists()


def test_what_may_be_is_not(guarded):
    def made(inputs):
        def use(number):
            (guarded / "inside").write_text(str(number))
            raise UserError("the number is too small: give another")

        return use, (st.integers(0, 9),)

    assert list(fuzz.drawn(made, None, 3, 0, Counter())) == [(None, "made")] * 3
