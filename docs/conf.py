"""The site: make docs. Its pages are the Markdown files of this repository, where they lie.

The front page is the README; CONTENTS says what stands beside it.
"""

import os
import re
import shutil
from pathlib import Path

import jupytext
from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.addnodes import download_reference, pending_xref
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform

from speechbrain_summarymixing import __version__

ROOT = Path(__file__).parents[1]
CONTENTS = {
    "Begin": """
        docs/start
        docs/swap
        docs/systems
        docs/training
        docs/data
        docs/use
        docs/streaming""",
    "Deploy": """
        docs/server
        docs/onnx
        docs/long_audio""",
    "Understand": """
        docs/theory
        docs/analysis
        docs/mixers/README""",
    "Notebooks": """
        docs/notebooks/swap_and_compare
        docs/notebooks/train_on_your_recordings
        docs/notebooks/look_into_attention""",
    "Recipes": """
        AN4 <recipes/AN4/ASR/README>
        LibriSpeech <recipes/LibriSpeech/ASR/transformer/README>
        LibriSpeech, transducers <recipes/LibriSpeech/ASR/transducer/README>
        LibriSpeech, pre-training <recipes/LibriSpeech/self-supervised-learning/BEST-RQ/README>
        LibriSpeech, tokenizer <recipes/LibriSpeech/Tokenizer/README>
        LibriSpeech, language model <recipes/LibriSpeech/LM/README>
        Common Voice <recipes/CommonVoice/ASR/transformer/README>
        AISHELL-1 <recipes/AISHELL-1/ASR/README>
        TED-LIUM 2 <recipes/TEDLIUM2/ASR/README>
        VoxPopuli <recipes/VoxPopuli/ASR/README>
        SLURP <recipes/SLURP/direct/README>
        Barista <recipes/Barista/direct/README>
        Speech Commands <recipes/Google-speech-commands/README>
        Images, text, a translation <examples/transfer/README>""",
    "Reference": """
        docs/api
        docs/troubleshooting
        How it is built <CONTRIBUTING>
        CHANGELOG""",
}

project = "SummaryMixing for SpeechBrain"
release = __version__
root_doc = "README"
include_patterns = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/**.md",
    "docs/notebooks/*.py",
    "examples/transfer/README.md",
    "recipes/**/README.md",
]
exclude_patterns = [
    "docs/_build",
    "docs/mixers/*/*",
    "docs/gpu",
    ".*",
    "data",
    "**/results",
]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
nitpicky = True
default_role = "literal"
highlight_language = "none"  # of indented blocks; fenced ones name theirs
myst_heading_anchors = 4
napoleon_google_docstring = False
napoleon_use_param = False  # types are words ("Tensor (B, T, d_model)"), not names to link
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_theme = "furo"
html_title = project
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


class Notebook(MystParser):
    """Reads Python files in jupytext's percent format as pages."""

    supported = ("notebook",)

    def parse(self, inputstring, document):
        """Parses the cells, Markdown as it is and code in fences."""
        cells = jupytext.reads(inputstring, fmt="py:percent").cells
        text = (
            cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
            for cell in cells
        )
        super().parse("\n\n".join(text), document)


class RepositoryLinks(SphinxTransform):
    """Leads a link to what is no page where GitHub does: a file, a folder's README or its list."""

    default_priority = 5

    def apply(self, **_):
        """Changes the links of one page."""
        here = ROOT / self.env.doc2path(self.env.docname, base=False)
        for node in list(self.document.findall(pending_xref)):
            path, _, anchor = node["reftarget"].partition("#")
            folder = Path(os.path.normpath(here.parent / path))
            if node["reftype"] != "myst":
                continue
            if node["refdomain"] == "doc":  # a name that a page could have
                if path not in self.env.found_docs:
                    file = next(
                        f"/{path}{end}"
                        for end in (".md", ".py")
                        if (ROOT / f"{path}{end}").exists()
                    )
                    link = download_reference("", "", *node.children, reftarget=file)
                    node.replace_self(link)
            elif path and (folder / "README.md").exists():
                page = (folder / "README").relative_to(ROOT).as_posix()
                node.attributes.update(refdomain="doc", reftarget=page, reftargetid=anchor or None)
            elif path and folder.is_dir():
                name = folder.relative_to(ROOT).as_posix()
                LISTED.add(name)
                uri = self.app.builder.get_relative_uri(self.env.docname, f"{name}/index")
                node.replace_self(nodes.reference("", "", *node.children, refuri=uri))


LISTED = set()
SMALL = {".csv", ".json", ".md", ".png", ".yaml"}  # of a folder that is listed


def contents(app, docname, source):
    """Adds the tables of contents to the front page."""
    if docname == root_doc:
        for caption, pages in CONTENTS.items():
            lines = "\n".join(line.strip() for line in pages.splitlines())
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n{lines}\n```\n"


def docstring(app, what, name, obj, options, lines):
    """Makes of a docstring what napoleon reads: its equations and its reference are ours."""
    made, text = [], True
    for line, after in zip(lines, [*lines[1:], ""]):
        text = text and not after.startswith("---")
        if text and line.startswith("    ") and not (made and made[-1].startswith("    ")):
            made += ["::", ""]
        if line.startswith("Reference: "):
            made += ["References", "----------", line.removeprefix("Reference: ")]
        else:
            made.append(line if line.startswith("    ") and text else line.replace("|", "\\|"))
    lines[:] = made


def listings(app):
    """Yields a page for each folder that is linked and has no README; copies its small files."""
    for name in sorted(LISTED):
        files = sorted(path for path in (ROOT / name).rglob("*") if path.suffix in SMALL)
        for file in files:
            copy = Path(app.outdir, file.relative_to(ROOT))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
        links = (file.relative_to(ROOT / name).as_posix() for file in files)
        items = "\n".join(f'<li><a href="{link}">{link}</a></li>' for link in links)
        body = f"<h1>{name}</h1><ul>{items}</ul>"
        yield f"{name}/index", {"title": name, "body": body}, "page.html"


def finish(app, exception):
    """Leads index.html to the front page; refuses pages that load something from elsewhere."""
    if not exception and app.builder.name == "html":
        for page in Path(app.outdir).rglob("*.html"):
            text = page.read_text(encoding="utf-8")
            if re.search(
                r'<(script|img|iframe|link rel="(stylesheet|preload)")[^>]*"https?:', text
            ):
                raise ExtensionError(f"{page} loads from the network: give the file itself")
        refresh = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">'
        Path(app.outdir, "index.html").write_text(
            f"<!doctype html>{refresh}<title>{project}</title>", encoding="utf-8"
        )


def setup(app):
    """Connects what stands above."""
    app.add_source_suffix(".py", "notebook")
    app.add_source_parser(Notebook)
    app.add_transform(RepositoryLinks)
    app.connect("autodoc-process-docstring", docstring, priority=100)
    app.connect("source-read", contents)
    app.connect("html-collect-pages", listings)
    app.connect("build-finished", finish)
