"""What a model's YAML file would run when it is loaded, found before any of it is run.

HyperPyYAML makes what a file names, which may be any Python that is installed. Here the names are
read without that, and what exported models need is let through: classes of layers, looked up where
they are defined, and a few callables that are listed by name.
"""

import inspect
import io
import itertools
import pydoc
import re

import ruamel.yaml
import torch
from hyperpyyaml import resolve_references

from speechbrain_summarymixing.errors import UserError, reason_of

OWN = "speechbrain_summarymixing"
# modules of layers: what a name begins with, and what the class's own module begins with
LAYERS = {
    "torch.nn.": "torch.nn.modules.",
    "speechbrain.nnet.": "speechbrain.nnet.",
    "speechbrain.decoders.": "speechbrain.decoders.seq2seq",
    "speechbrain.lobes.features.": "speechbrain.lobes.features",
    "speechbrain.lobes.models.transformer.": "speechbrain.lobes.models.transformer.",
    "speechbrain.lobes.models.convolution.": "speechbrain.lobes.models.convolution",
    "speechbrain.lobes.models.CRDNN.": "speechbrain.lobes.models.CRDNN",
    "speechbrain.lobes.models.RNNLM.": "speechbrain.lobes.models.RNNLM",
    "speechbrain.processing.features.": "speechbrain.processing.features",
    f"{OWN}.nnet.": f"{OWN}.nnet.",
    f"{OWN}.lobes.": f"{OWN}.lobes.",
}
# what else an export writes
LISTED = {
    "!new:sentencepiece.SentencePieceProcessor",
    "!new:speechbrain.dataio.encoder.CategoricalEncoder",
    "!new:speechbrain.dataio.preprocess.AudioNormalizer",
    "!new:speechbrain.utils.parameter_transfer.Pretrainer",
    "!name:speechbrain.decoders.ctc_greedy_decode",
    f"!apply:{OWN}.lobes.search.decoder_head",
    f"!new:{OWN}.lobes.search.JointScorer",
    f"!new:{OWN}.inference.sources.OwnFolder",
    f"!name:{OWN}.inference.sources.load_labels",
    f"!name:{OWN}.inference.export.load_strictly",
    # of streaming.yaml
    f"!new:{OWN}.inference.streaming_asr.StreamingSamples",
    f"!new:{OWN}.inference.streaming_asr.StreamingEncoder",
    f"!new:{OWN}.inference.streaming_asr.StreamingSearch",
    f"!name:{OWN}.inference.streaming_asr.SearchContext",
    f"!name:{OWN}.inference.streaming_asr.Spelling",
    f"!name:{OWN}.inference.streaming_asr.spell",
}
# a Pretrainer may fetch from anywhere by its paths
PRETRAINER = "!new:speechbrain.utils.parameter_transfer.Pretrainer"
PRETRAINER_KEYS = {"loadables", "custom_hooks"}
PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in "bool float int map merge null seq str".split()}
PLAIN |= {"tag:yaml.org,2002:timestamp", "!tuple"}
REFERENCE = re.compile(r"<[^<>.]+>")
# what more would keep a reader of YAML busy for minutes
MOST_CHARACTERS, MOST_DEPTH = 100_000, 100
MOST_NODES = 100_000  # aliases of aliases could stand for more than any memory holds
RULE = (
    "which no export of this project has: take its ONNX form, which holds no code, or, where you "
    "trust who made it with your account on this machine, give --trust (in Python trust=True)"
)


def check_yaml(text, file):
    """Makes sure that a YAML file builds a model, and runs nothing else; it is not run.

    Arguments
    ---------
    text : str
    file : str or Path
        What errors call it.

    Raises
    ------
    UserError
        If it is no YAML, or names, reads or computes anything that exports do not; it tells the
        line, the key and what would be run.
    """
    check_references(text, file)
    _check(_composed(text, file), file, _named)
    try:
        resolved = resolve_references(text)
    except Exception as error:  # hyperpyyaml has many kinds
        raise UserError(f"{file}: cannot be loaded ({reason_of(error)}): copy it again") from error
    # what was put together by references
    check_names(resolved.getvalue(), file)


def check_references(text, file):
    """As `check_yaml`, but looks only for what would run while references are resolved."""
    _check(_composed(text, file), file, _referred)


def check_names(text, file):
    """As `check_yaml`, of text whose references are resolved, so that its lines are not the file's.

    Arguments
    ---------
    text : str
    file : str or Path
    """
    _check(_composed(text, file), file, _named, lines=False)


def _composed(text, file):
    """The nodes of a file, from which nothing is made."""
    if len(text) > MOST_CHARACTERS or _depth(text) > MOST_DEPTH:
        raise UserError(
            f"{file}: has {len(text)} characters and brackets {_depth(text)} deep, but a model's "
            f"YAML {MOST_CHARACTERS} and {MOST_DEPTH} at most: copy it again"
        )
    if re.search("^%", text, re.MULTILINE):
        raise UserError(f"{file}: has a directive, a line that begins with %, {RULE}")
    try:
        loader = ruamel.yaml.Loader(io.StringIO(text))  # hyperpyyaml's
        node = loader.get_single_node()
        unfolded = _unfolded(node, {})
    except (ruamel.yaml.error.YAMLError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: cannot be loaded as YAML ({reason_of(error)}): copy it again"
        ) from error
    if not isinstance(node, ruamel.yaml.MappingNode):
        raise UserError(f"{file}: cannot be loaded, it holds no keys with values: copy it again")
    if unfolded > MOST_NODES:
        raise UserError(
            f"{file}: its aliases stand for {unfolded:.1g} values, but a model's YAML has "
            f"{MOST_NODES} at most: copy it again, from one whom you trust"
        )
    return node


def _depth(text):
    steps = (1 if c in "[{" else -1 for c in text if c in "[{]}")
    return max(itertools.accumulate(steps), default=0)


def _unfolded(node, counts):
    """How many nodes there are with each alias in full."""
    if id(node) not in counts:
        counts[id(node)] = float("inf")  # of what holds itself
        counts[id(node)] = 1 + sum(_unfolded(child, counts) for _, child in _children(node))
    return counts[id(node)]


def _children(node, key=""):
    """The nodes in a node, each with its key."""
    if isinstance(node, ruamel.yaml.MappingNode):
        for name, value in node.value:
            inner = f"{key}.{name.value}" if key else str(name.value)
            yield inner, name
            yield inner, value
    elif isinstance(node, ruamel.yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{key}[{index}]", value


def _check(root, file, danger, lines=True):
    left, seen = [("", root)], set()
    while left:
        key, node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if (found := danger(node)) is not None:
            line = f", line {node.start_mark.line + 1}" if lines else ""
            raise UserError(f"{file}{line}: {key or 'the whole file'} would {found}, {RULE}")
        left += reversed(list(_children(node, key)))


def _referred(node):
    """What a node would do while references are resolved, if that is not plain."""
    tag = str(node.tag)
    if tag.startswith("!include:"):
        return f"read another file, {tag.removeprefix('!include:')}"
    if tag.startswith("!applyref:"):
        return f"run {tag.removeprefix('!applyref:')} ({tag})"
    if tag == "!copy" or (tag == "!ref" and not REFERENCE.fullmatch(str(node.value).strip())):
        return f"take {node.value!r} ({tag})"
    return None


def _named(node):
    """What a node would do when it is made, if that is not listed."""
    tag = str(node.tag)
    if isinstance(node, ruamel.yaml.ScalarNode) and "!" in node.value:
        # a tuple, which is read as YAML of any Python, also where it is in quotation marks
        if tag == "!tuple" or node.value.lstrip().startswith("("):
            return f"run {node.value!r}"
    if tag in PLAIN or tag == "!ref":
        return None
    if tag == PRETRAINER:
        names = [key.value for key, _ in node.value] if isinstance(node.value, list) else []
        if isinstance(node, ruamel.yaml.MappingNode) and PRETRAINER_KEYS.issuperset(names):
            return None
        return f"load by {', '.join(map(str, names)) or 'a list'} of {tag}"
    if tag in LISTED or _makes_a_layer(tag):
        return None
    return f"run {tag.rpartition(':')[2] or tag} ({tag})"


def _makes_a_layer(tag):
    """Whether a tag names a class of layers, or nothing that exists."""
    kind, _, name = tag.partition(":")
    home = next((home for home in LAYERS if name.startswith(home)), None)
    if kind not in ("!new", "!name") or home is None:
        return False
    try:
        found = pydoc.locate(name)  # as hyperpyyaml finds it
    except pydoc.ErrorDuringImport:
        return True
    if found is None:
        return True
    defined = getattr(found, "__module__", None) or ""
    return (
        inspect.isclass(found)
        and issubclass(found, torch.nn.Module)
        and f"{defined}.".startswith(LAYERS[home])
    )
