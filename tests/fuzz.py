"""Damaged and ill-meant input, at random: python tests/fuzz.py --examples 100000 --seed 1

Audio, manifests, what a server's clients send, YAML and models' folders, cut, bit-flipped, spliced
and with lies in them, go through this package's own functions. These may raise nothing but a
`UserError` that says something, take no more than 10 s of the CPU, write no file outside of their
folder, start no process and open no connection. What else happens is told, with the input; the exit
status is 1 then.

The seed settles what is drawn; an ogg's random serial number alone differs between runs.
"""

import argparse
import contextlib
import faulthandler
import logging
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import hypothesis
import torch
from fuzz_inputs import SHARES, Inputs
from hypothesis import strategies as st
from speechbrain.utils.importutils import LazyModule

from speechbrain_summarymixing.errors import UserError

SECONDS = 10  # of the CPU, after which an input has hung
MEMORY = 12 * 2**30  # bytes of addresses, most of which torch's libraries take
ROUND = 200  # examples that hypothesis draws by one seed
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.")
WATCHING = []  # not empty while an input is used
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate")


class Hang(BaseException):
    """Took too long."""


class Outside(BaseException):
    """Wrote outside of the folder, started a process or opened a connection."""


def guard(folder):
    """While an input is `watched`, bars writing outside of a folder, processes and connections."""
    folder = os.path.realpath(folder)

    def inside(path):
        if isinstance(path, int):
            return True
        path = os.path.realpath(os.fsdecode(path))
        return path.startswith(folder + os.sep) or path == os.devnull

    def hook(event, args):
        if not WATCHING:
            return
        if event == "open":
            path, mode, flags = args
            writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & WRITES
            if writes and not inside(path):
                raise Outside(f"{path} is opened to write")
        elif event.startswith(CHANGES):
            paths = [path for path in args if isinstance(path, (str, bytes, os.PathLike))]
            if not all(map(inside, paths)):
                raise Outside(f"{event} {paths}")
        elif event.startswith(FORBIDDEN) and event != "socket.__new__":
            raise Outside(f"{event} {args}")

    sys.addaudithook(hook)


@contextlib.contextmanager
def watched():
    """Ends what hangs."""

    def hung(*_):
        raise Hang(f"after {SECONDS} s")

    signal.signal(signal.SIGPROF, hung)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    # what waits, or hangs in C
    faulthandler.dump_traceback_later(60 * SECONDS, exit=True, file=sys.__stdout__)
    stderr = os.dup(2)  # where libmpg123 writes
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    WATCHING.append(True)
    try:
        yield
    finally:
        WATCHING.clear()
        os.dup2(stderr, 2)
        os.close(stderr)
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def run(examples, seed, *, kinds=None, keep=None):
    """Runs examples; returns how many of each kind, and from each finding to how often.

    Arguments
    ---------
    examples, seed : int
    kinds : sequence of str or None
        Those to run; None is all.
    keep : Path or None
        Folder to copy the input of each finding to.
    """
    # hypothesis asks each loaded module for __file__; SpeechBrain's lazy ones would be imported
    on_access = LazyModule.__getattr__
    LazyModule.__getattr__ = lambda self, name: (
        on_access(self, name) if name != "__file__" else object.__getattribute__(self, name)
    )
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    faulthandler.enable(sys.__stdout__)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    counts, findings, errors, start = Counter(), Counter(), Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        os.chdir(folder)
        hypothesis.configuration.set_hypothesis_home_dir(folder / "hypothesis")
        inputs = Inputs(folder)
        guard(folder)
        shares = {make: share for make, share in SHARES.items() if named(make, kinds)}
        whole = sum(shares.values())
        wanted = {make: round(examples * share / whole) for make, share in shares.items()}
        turn = 0
        while any(counts[make.__name__] < number for make, number in wanted.items()):
            turn += 1
            for make, number in wanted.items():
                left = number - counts[make.__name__]
                most = max(1, round(ROUND * number / max(wanted.values())))
                for where, message in drawn(make, inputs, min(left, most), (seed, turn), counts):
                    if where is None:
                        errors[message] += 1
                    else:
                        findings[where] += 1
                        if findings[where] == 1:
                            told(where, message, folder, keep, len(findings))
            said = f"{sum(counts.values())} of {examples} inputs, {len(findings)} findings"
            print(f"\r{said}, {time.monotonic() - start:.0f} s", end="", flush=True)
    print()
    return counts, findings, errors


def named(make, kinds):
    return kinds is None or make.__name__ in kinds


def drawn(make, inputs, examples, seed, counts):
    """Yields (where, traceback) of each bad end, and (None, kind) of each error that is told."""
    if examples < 1:
        return
    use, strategies = make(inputs)
    ends = []

    @hypothesis.seed(f"{seed} {make.__name__}")
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.tuples(*strategies))
    def one(arguments):
        counts[make.__name__] += 1
        try:
            with watched():
                use(*arguments)
        except UserError as error:
            if len(str(error).strip()) < 10:
                ends.append(("an empty message", repr(arguments)))
            ends.append((None, make.__name__))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frames = traceback.extract_tb(error.__traceback__)
            ours = [f for f in frames if "speechbrain_summarymixing" in f.filename] or frames
            where = f"{make.__name__}: {type(error).__name__} at {ours[-1].name}:{ours[-1].lineno}"
            ends.append((where, f"{arguments!r}\n{traceback.format_exc()[-3000:]}"))

    one()
    yield from ends


def told(where, message, folder, keep, number):
    print(f"\n{where}\n{message}", flush=True)
    if keep is not None:
        (Path(keep) / f"{number}.txt").write_text(f"{where}\n{message}")


def main(argv=None):
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    kinds = [make.__name__ for make in SHARES]
    parser.add_argument("--kinds", nargs="+", choices=kinds, help="default: all")
    arguments = parser.parse_args(argv)
    counts, findings, errors = run(arguments.examples, arguments.seed, kinds=arguments.kinds)
    for kind, count in counts.items():
        print(f"{kind}: {count} inputs, of which {errors[kind]} are told to be bad")
    for where, count in findings.items():
        print(f"found {count} x {where}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
