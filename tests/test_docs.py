"""README and docs: their Python runs, their commands and options exist, their messages are ours."""

import ast
import os
import re
import subprocess
import sys
from functools import cache

import jupytext
import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from pages import PAGES, blocks, check, commands, home_of, run_python
from tiny import ROOT, SAID

from speechbrain_summarymixing import cli, systems
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.config import options_of

RUN_BY = {  # where the Python of each page runs: beside what it needs
    "README.md": "test_docs.py",
    "docs/swap.md": "test_docs.py",
    "docs/use.md": "test_docs.py",
    "docs/streaming.md": "test_docs.py",
    "docs/onnx.md": "inference/test_onnx.py",
    "docs/server.md": "inference/test_server.py",
    "recipes/Barista/direct/README.md": "tasks/test_understanding.py",
    "recipes/SLURP/direct/README.md": "tasks/test_understanding.py",
    "recipes/Google-speech-commands/README.md": "tasks/test_classification.py",
    "recipes/LibriSpeech/ASR/transducer/README.md": "lobes/test_transducer.py",
}


def test_the_python_of_every_page_runs_in_a_test():
    assert {page for page in PAGES if list(blocks(page, "python"))} == RUN_BY.keys()
    for page, test in RUN_BY.items():
        program = (ROOT / "tests" / test).read_text()
        assert "run_python" in program and f'"{page}"' in program, page


def test_the_python_of_the_readme():
    assert run_python("README.md")["encoded"].shape == (2, 100, 512)


def test_the_python_of_swapping(capsys):
    names = run_python("docs/swap.md")
    assert names["first"].shape == (2, 16, 512)
    assert capsys.readouterr().out == "torch.Size([2, 49, 768])\n"


def test_the_python_of_using(capsys):
    run_python("docs/use.md")
    assert capsys.readouterr().out.strip() == SAID["bus"]


def test_the_python_of_streaming(capsys):
    run_python("docs/streaming.md")
    *_, ours, speechbrains = capsys.readouterr().out.strip().splitlines()
    assert ours == speechbrains != ""


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/notebooks/*.py")), ids=lambda p: p.stem)
def test_a_notebook_runs_and_is_one(notebook, tmp_path):
    cells = jupytext.read(notebook, fmt="py:percent").cells
    assert {cell.cell_type for cell in cells} == {"markdown", "code"} and len(cells) > 5
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(notebook)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("page", ["README.md", "docs/swap.md"])
def test_the_line_of_yaml_names_a_mixer(page):
    yaml = next(iter(blocks(page, "yaml")))
    mixer = load_hyperpyyaml(f"d_model: 8\n{yaml}")["token_mixer"]()
    assert mixer(torch.rand(1, 5, 8))[0].shape == (1, 5, 8)


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))])
def test_the_commands_of_a_page_exist(page):
    home = home_of(page)
    for command in commands(page):
        try:
            home = check(command, home)
        except (SystemExit, UserError) as error:
            pytest.fail(f"{page}: {' '.join(command)}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "summarymixing transcribe --steam MODEL x.wav",
        "summarymixing train sumformer --lr_decay 1",
        "summarymixing train sumformers",
        "summarymixing benchmark systems hparams/sumformer.yaml --set d_modell=3",
        "summarymixing compare hparams/sumformer.yaml:summary=0 hparams/sumformer.yaml",
        "summarymixing compare hparams/none.yaml hparams/sumformer.yaml",
        "python train.py hparams/sumformer.yaml --corpora mini",
        "python trian.py hparams/sumformer.yaml",
        "pip install -e .[mina]",
        "make tests",
        "summarise MODEL",
    ],
)
def test_a_command_that_does_not_exist_is_found(line):
    with pytest.raises((SystemExit, UserError, AssertionError)):
        check(line.split(), ROOT)


@cache
def known_options():
    """All options of our commands and systems, and of SpeechBrain's runs."""
    found, parsers = set(), [cli.make_parser()]
    while parsers:
        for action in parsers.pop()._actions:
            found |= set(action.option_strings)
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                parsers += action.choices.values()
    for file in systems.names().values():
        found |= {f"--{key}" for key in options_of(file)}
    return found


RUN_OPTIONS = (  # of SpeechBrain, whose parser is out of reach
    "device precision debug test_only distributed_backend grad_accumulation_factor compile jit "
    "compile_module_keys compile_using_dynamic_shape_tracing optimizer_step_limit"
)
OF_OTHERS = {f"--{name}" for name in RUN_OPTIONS.split()}
OF_OTHERS |= {"--nproc_per_node", "--examples", "--recordings"}  # torchrun, fuzz.py, slurp_voices


@pytest.mark.parametrize("page", PAGES)
def test_the_options_that_a_page_speaks_of_exist(page):
    spoken = re.findall(r"(?<!`)`[^`\n]*`(?!`)", (ROOT / page).read_text(encoding="utf-8"))
    options = {
        option for span in spoken for option in re.findall(r"(?<!\S)--[a-z][\w-]*", span[1:])
    }
    assert options <= known_options() | OF_OTHERS, options - known_options() - OF_OTHERS


def said(node):
    """The text of a string in a program, with … for what fills it; None: it is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) or "…" for part in node.values)
    return None


@cache
def messages():
    """Every string in the package, and what make says."""
    found = [(ROOT / "Makefile").read_text(encoding="utf-8").replace("%d.%d", "…")]
    for file in (ROOT / "speechbrain_summarymixing").rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        found += [text for node in nodes if (text := said(node))]
    return found


def is_message(quoted):
    """Whether a program of ours says it, up to what it is filled with."""
    pattern = ".*".join(map(re.escape, quoted.split("…")))
    return any(re.search(pattern, text, re.DOTALL) for text in messages())


def test_the_messages_of_troubleshooting_are_said():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^- `(.*)`$", page, re.MULTILINE)
    assert len(quoted) == len(re.findall("^- ", page, re.MULTILINE)) > 30
    assert [text for text in quoted if not is_message(text)] == []


def test_a_message_that_is_not_said_is_found():
    assert is_message("…: holds a run with other settings:")
    assert not is_message("…: holds a run with different settings:")
    assert not is_message("--corpus is …, but must be some of …")
