"""The rooms of the package and who may know whom, as CONTRIBUTING.md draws them."""

import ast
import sys
from pathlib import Path

import pytest

from speechbrain_summarymixing.corpora.corpus import declared

PACKAGE = Path(__file__).parents[1] / "speechbrain_summarymixing"
# from the bottom: a file imports from its own room and from those before it
FLOORS = "ground nnet lobes corpora inference data training tasks analysis cli __main__".split()
GROUND = ("__version__", "errors", "files", "opening", "audio", "processes", "systems")
FILES = sorted(PACKAGE.rglob("*.py"))


def room(parts):
    """The room of a module, given the parts of its name after the package's."""
    return "ground" if parts and parts[0] in GROUND else (parts or ["ground"])[0]


def imported(path):
    """The modules of this package that a file imports, each as the parts of its name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
            parts = node.module.split(".")[1:]
            yield from [[*parts, alias.name] for alias in node.names] if not parts else [parts]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE.name:
                    yield alias.name.split(".")[1:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = FLOORS.index(room([] if parts == ("__init__",) else list(parts)))
    above = [".".join(other) for other in imported(path) if FLOORS.index(room(other)) > own]
    assert not above, f"{path.name} imports {above}, which lie above it"


def test_the_cell_imports_torch_alone():
    allowed = {"torch", *sys.stdlib_module_names}
    for path in (PACKAGE / "nnet").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] in {*allowed, PACKAGE.name}, f"{path.name}: {name}"


def test_each_corpus_declares_itself():
    names = {"mini", "an4", "librispeech", "commonvoice", "slurp", "barista", "speechcommands"}
    names |= {"kaldi", "lhotse", "huggingface", "aishell", "tedlium2", "voxpopuli"}
    assert declared().keys() == names
    for corpus in declared().values():
        assert callable(corpus.prepare) and corpus.train and corpus.valid and corpus.test
