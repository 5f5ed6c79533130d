"""The pages of README, docs and recipes, and the code in them."""

import contextlib
import os
import re
import shlex

import yaml
from markdown_it import MarkdownIt
from tiny import ROOT

from speechbrain_summarymixing import cli, systems
from speechbrain_summarymixing.analysis.compare_plan import parse_corpus, parse_system
from speechbrain_summarymixing.analysis.systems import parse_settings
from speechbrain_summarymixing.training.config import options_of, route_overrides
from speechbrain_summarymixing.training.options import parse_options

PATTERNS = ("*.md", "docs/*.md", "docs/mixers/*.md", "recipes/**/README.md", "examples/*/README.md")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in PATTERNS
    for path in ROOT.glob(pattern)
    if not {"results", "pretrained"} & set(path.parts)
)
NO_SHELL = ("s_bar =", "q_t, k_t", "errors, files", "ID,duration", "{", "from speechbrain")
OTHERS = {"tar", "awk", "cd", "git", "arecord", ".venv/bin/pre-commit"}  # not our programs
MINE = {"mine.yaml": "sumformer", "my.yaml": "sumformer"}  # files that a reader has made


def blocks(page, kind):
    """The text of each block of a page: "python", "yaml", or "shell", which is indented."""
    for token in MarkdownIt("commonmark").parse((ROOT / page).read_text(encoding="utf-8")):
        indented = token.type == "code_block" and not token.content.startswith(NO_SHELL)
        if (kind == "shell" and indented) or (token.type == "fence" and token.info == kind):
            yield token.content


def run_python(page, *, replaced=(), **names):
    """Runs a page's blocks one after the other, as one program at the clone's root.

    Arguments
    ---------
    page : str
    replaced : sequence of (str, str)
        What stands in for names of files that a reader has; each must occur.
    names : object
        That the blocks use and do not make.

    Returns
    -------
    dict
        The program's names.
    """
    program = list(blocks(page, "python"))
    assert program, page
    for old, new in replaced:
        assert any(old in block for block in program), f"{page}: {old}"
        program = [block.replace(old, str(new)) for block in program]
    names["__name__"] = page
    with contextlib.chdir(ROOT) if hasattr(contextlib, "chdir") else _chdir():
        for block in program:
            exec(compile(block, page, "exec"), names)
    return names


@contextlib.contextmanager
def _chdir():  # Python 3.10
    before = os.getcwd()
    os.chdir(ROOT)
    yield
    os.chdir(before)


def commands(page):
    """The simple commands of a page's shell blocks, each as a list of words."""
    for block in blocks(page, "shell"):
        text = re.sub(r"\\\n", "", block.replace("…", ""))
        for name, value in re.findall(r'^([A-Z_]+)="(.*)"$', text, re.MULTILINE):
            text = text.replace(f"${name}", value)
        text = re.sub(r"\$\w+", "1", text)
        text = re.sub(r"\[(--[^]]*)\]", r"\1", text)  # what may be left out
        text = re.sub(r"<[a-z ]+>", "FOLDER", text)
        for line in text.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&>")
            lexer.whitespace_split, lexer.commenters = True, "#"
            command = []
            for word in [*lexer, ";"]:
                if set(word) <= set(";|&"):
                    if command:
                        yield command
                    command = []
                elif command or not (word == "do" or re.match(r"[A-Z_]+=", word)):
                    command.append(word)


def home_of(page):
    """Where a page's commands are given: in the recipe's folder, else at the clone's root."""
    return (ROOT / page).parent if page.startswith("recipes") else ROOT


def check(command, home):
    """Raises SystemExit or UserError if a command, or one of its options, is none.

    Arguments
    ---------
    command : list of str
    home : Path
        Folder in which it is given.

    Returns
    -------
    Path
        The folder of the next command: another one after a cd to one that is here.
    """
    if command[0] == "cd" and (home / command[1]).is_dir():
        return home / command[1]
    _check(command, home)
    return home


def _check(command, home):
    if ">" in command:
        command = command[: command.index(">")]
    program, *words = command
    if program in ("for", "done") or program in OTHERS:
        return
    if program == "torchrun":
        words = [word for word in words if not word.startswith(("--nnodes", "--nproc", "--rdzv"))]
        program = "python"
    if program == "python":
        _check_python(words, home)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert set(words) <= set(targets), words
    elif program == "pip":
        _check_pip(words)
    else:
        assert program == "summarymixing", f"{command} is no command that is known"
        _check_own(words, home)


def _check_python(words, home):
    if words[0] == "-m":
        assert words[1].startswith(("voxpopuli.", "speechbrain_summarymixing.")), words
        return
    assert (home / words[0]).is_file(), f"{home}: {words}"
    if words[0].endswith("train.py"):
        _check_training(words[1:], home)


def _check_training(words, home):
    file = home / words[0] if words[0].endswith(".yaml") and words[0] not in MINE else None
    file = file or systems.find(MINE.get(words[0], words[0]))
    _, _, overrides = parse_options([str(file), *words[1:]])
    route_overrides(file, overrides)


def _check_pip(words):
    assert words[0] == "install", words
    extras = re.findall(r"\[(\w+)\]", words[-1])
    known = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2]
    assert all(re.search(rf"^{extra} =$", known, re.M) for extra in extras), extras


def _check_own(words, home):
    words = ["5" if word == "N" else word for word in words]
    given = cli.make_parser().parse_args(words)
    if words[0] == "train" and given.system is not None:
        _check_training([given.system, *given.options], home)
    named = [MINE.get(name, name) for name in (getattr(given, "system", None),) if name]
    if words[0] == "compare":
        compared = [parse_system(text) for pattern in given.systems for text in _braced(pattern)]
        corpora = [parse_corpus(text, own=given.train is not None) for text in given.corpora]
        named = [MINE.get(system.file, system.file) for system in compared]
        for system, file in zip(compared, named):
            for some in (system, *corpora):
                values = {key: yaml.safe_load(text) for key, text in some.settings.items()}
                route_overrides(_find(file, home), values)
    elif words[0] == "benchmark":
        named = [file for file in getattr(given, "systems", []) if file != "MODEL"]
    settings = parse_settings(getattr(given, "set", None) or ())
    known = set().union(*(options_of(_find(file, home)) for file in named)) if settings else ()
    assert all(key in known for key in settings), settings
    for file in named:
        assert _find(file, home).exists(), file


def _find(file, home):
    return home / file if (home / file).is_file() else systems.find(file)


def _braced(pattern):
    """What a shell makes of a pattern with one pair of braces."""
    before, brace, rest = pattern.partition("{")
    inside, _, after = rest.partition("}")
    return [f"{before}{part}{after}" for part in inside.split(",")] if brace else [pattern]
