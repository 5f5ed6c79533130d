"""The command line of a training: SpeechBrain's options, and those of the system's YAML file."""

import ruamel.yaml
from speechbrain import parse_arguments
from speechbrain.utils.run_opts import HELP_TEXTS, RunOptions

from speechbrain_summarymixing.errors import UserError

MINUTES = "ckpt_interval_minutes"  # of which SpeechBrain would take whole numbers alone
PATHS = ("_folder", "_csv", "_text")  # ends of names of options that are never a number, nor a date
MANY = {"jit_module_keys", "compile_module_keys"}  # take any number of values


def parse_options(argv):
    """Parses a command line as SpeechBrain's ``parse_arguments`` does, and refuses what that loses.

    There a word too many becomes part of the value before it, and "=" within a value a space.

    Arguments
    ---------
    argv : list of str
        A YAML file, and options as ``--key value`` or ``--key=value``.

    Returns
    -------
    tuple
        The YAML file, SpeechBrain's run options and a dict of the other options, whose values are
        read as YAML.

    Raises
    ------
    UserError
        If an option has more than its value, is given twice, or its value is no YAML.

    Example
    -------
    >>> parse_options(["x.yaml", "--lr", "1e-3", "--data_folder=/a=b", "--speeds", "[95, 100]"])[2]
    {'lr': 0.001, 'data_folder': '/a=b', 'speeds': [95, 100]}
    """
    if not argv or {"-h", "--help"} & set(argv):
        parse_arguments(argv)  # tells the usage and exits
    defaults, theirs, options = RunOptions().as_dict(), [], {}
    for key, values in _groups(argv):
        run_option = key in HELP_TEXTS or key in MANY
        if key not in MANY:
            _check_count(key, values, 0 if run_option and defaults[key] is False else 1)
        if run_option and key != MINUTES:
            theirs += [f"--{key}", *values]
        elif key in options:
            raise UserError(f"--{key} is given twice: give it once")
        else:
            options[key] = _value(key, *values)
    path, run_opts, _ = parse_arguments([argv[0], *theirs])
    return path, run_opts, options


def _groups(argv):
    """Pairs of an option and the words that follow it."""
    if argv[0].startswith("-"):
        raise UserError(f"{argv[0]}: the system's YAML file comes before the options")
    groups = []
    for word in argv[1:]:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            groups.append((key, [value] if equals else []))
        elif not groups:
            raise UserError(f"{word!r} is no option: write --key value")
        else:
            groups[-1][1].append(word)
    return groups


def _check_count(key, values, most):
    if len(values) > most:
        takes = "one value: quote one that has spaces" if most else "no value: leave it out"
        raise UserError(f"--{key} is followed by {' '.join(values)!r}, but takes {takes}")


def _value(key, text=""):
    """What a text is as YAML; all but numbers, and what is quoted or in brackets, as it stands."""
    try:
        value = ruamel.yaml.YAML(typ="safe").load(text)
    except ruamel.yaml.error.YAMLError as error:
        raise UserError(
            f"--{key} is {text!r}, which is no YAML ({' '.join(str(error).split())}): quote values "
            "with special characters, such as --speeds '[95, 100]'"
        ) from error
    number = isinstance(value, (bool, int, float)) and not key.endswith(PATHS)
    if value is None or number or text.lstrip().startswith(("'", '"', "{", "[")):
        return value
    return text  # perhaps with a colon or a # in it
