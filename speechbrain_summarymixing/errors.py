"""The one exception that a user's input or settings can cause."""

import pickle
import re


class UserError(Exception):
    """Input or settings that cannot be used; the message tells the value, the rule and what to do.

    Command-line entry points print it without a traceback and exit with status 1.
    """


def user_message(error):
    """The text of a `UserError`, freed of the traceback that a loader's worker wraps it in."""
    return str(error).rpartition(f"{UserError.__name__}: ")[2].strip()


def lacks_memory(error):
    """Whether a RuntimeError of torch says that memory is out: the CPU's allocator has no kind."""
    return bool(re.search("out of memory|can't allocate memory", str(error)))


def reason_of(error):
    """What an exception says, in one line: its kind, and its text unless that is bad advice."""
    if isinstance(error, pickle.UnpicklingError):  # torch's tells how to run what a file holds
        return "it is damaged, or holds more than weights, which could run anything when loaded"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = ": ".join(map(str, error.args)) if len(error.args) > 1 else str(error)
    text = " ".join(text.split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
