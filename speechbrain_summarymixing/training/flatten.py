"""A system as one plain YAML file, without includes."""

import re
import tempfile
import textwrap

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training.config import INCLUDE, REFERENCE, load_hyperparams

KEY = re.compile(r"(\w+):")
PART_KEY = re.compile(r"<\w+(?:\[\w+\])*\[(\w+)\]>")  # <part[key]>


def flatten(path):
    """Returns the text of a system's YAML file with all that it includes in their place.

    Comments and references stay; what an include gives to a part stands in place of the part's own.

    Arguments
    ---------
    path : str or Path
        The system's YAML file.

    Raises
    ------
    UserError
        If the file cannot be read or built, or a key has one value in it and another in a part.
    """
    with tempfile.TemporaryDirectory() as folder:  # the checkpointer makes one
        load_hyperparams(path, {"output_folder": folder})  # tells what is wrong with the file
    blocks = _flat(_blocks(path.read_text(encoding="utf-8")), {}, path)
    return PART_KEY.sub(r"<\1>", "".join(above + lines for above, lines in blocks.values()))


def _flat(own, given, path):
    """The blocks of a file and of its parts; the given ones stand in place of the file's own."""
    handed_on = {key: block for key, block in given.items() if key not in own}
    flat = dict(handed_on)
    for key, (above, lines) in own.items():
        head, _, body = lines.partition("\n")
        if INCLUDE in head:
            inner = handed_on | _blocks(textwrap.dedent(body))
            if key in given:  # for a part of this part
                inner = _overridden(
                    inner, _blocks(textwrap.dedent(given[key][1].partition("\n")[2]))
                )
            part = path.parent / head.split(INCLUDE)[1].strip()
            blocks = _blocks(part.read_text(encoding="utf-8"))
            first = next(iter(blocks))
            blocks[first] = (above, blocks[first][1])  # in place of what the part's file is for
            found = _without_replaced(_flat(blocks, inner, part), own)
        else:
            found = {key: (above, given[key][1] if key in given else lines)}
        _merge(flat, found, path)
    return flat


def _overridden(blocks, given):
    """Blocks with the given ones in their place; HyperPyYAML merges mappings, and so does this."""
    merged = dict(blocks)
    for key, (above, lines) in given.items():
        inside = [_inside(lines), _inside(blocks[key][1])] if key in blocks else [{}]
        if all(inside):
            body = "".join(a + b for a, b in _overridden(inside[1], inside[0]).values())
            lines = f"{key}:\n{textwrap.indent(body, '    ')}"
        merged[key] = above, lines
    return merged


def _inside(block):
    """The blocks of a plain mapping; of anything else none."""
    head, _, body = block.partition("\n")
    return _blocks(textwrap.dedent(body)) if head.split("#")[0].strip().endswith(":") else {}


def _without_replaced(part, own):
    """A part's blocks without those in whose place the file has others, if no other needs them."""
    replaced = {
        key
        for key in part.keys() & own.keys()
        if _value(part[key][1]) not in (f"{key}: !ref <{key}>", _value(own[key][1]))
    }
    used = {name for _, lines in own.values() for name in PART_KEY.findall(lines)}
    for key in part.keys() - replaced:
        used.update(REFERENCE.findall(part[key][1]))
    return {key: block for key, block in part.items() if key not in replaced or key in used}


def _blocks(text):
    """From each key of a YAML text to the comments above it, and its lines."""
    found, above, key = {}, "", None
    for line in text.splitlines(keepends=True):
        if match := KEY.match(line):
            key = match[1]
            found[key], above = (above, line), ""
        elif line[0] in "#\n":
            above += line
        else:
            found[key], above = (found[key][0], found[key][1] + above + line), ""
    return found


def _merge(flat, found, path):
    for key, (above, lines) in found.items():
        value, known = _value(lines), _value(flat[key][1]) if key in flat else None
        itself = f"{key}: !ref <{key}>"  # an include that hands on the file's own
        if known is None:
            flat[key] = (above, lines)
        elif known == itself:
            flat[key] = (flat[key][0], lines)
        elif value not in (itself, known):
            raise UserError(
                f"{path}: {key} is {known!r} here and {value!r} in a part, which one file cannot "
                "have: rename one"
            )


def _value(lines):
    return re.sub(r"\s+#.*", "", lines).strip()
