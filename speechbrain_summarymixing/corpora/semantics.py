"""What an utterance means, as one line of JSON: labels, then entities in the order they are said.

{"scenario":"alarm","action":"set","entities":[{"type":"time","filler":"five am"}]}
"""

import json
from dataclasses import dataclass

ENTITIES = "entities"


@dataclass(frozen=True)
class Semantics:
    """Labels of an utterance and its entities.

    Arguments
    ---------
    labels : dict
        From names, such as scenario and action, to values.
    entities : tuple of tuple
        (type, filler) of each entity.

    Example
    -------
    >>> meaning = Semantics({"intent": "order"}, (("drink", "iced tea"),))
    >>> meaning.text()
    '{"intent":"order","entities":[{"type":"drink","filler":"iced tea"}]}'
    >>> parse(meaning.text()) == meaning
    True
    """

    labels: dict
    entities: tuple = ()

    def text(self):
        """Returns the line of JSON."""
        entities = [{"type": kind, "filler": filler} for kind, filler in self.entities]
        content = {**self.labels, ENTITIES: entities}
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def parse(text, names=None):
    """Reads semantics from a line of JSON.

    Arguments
    ---------
    text : str
    names : sequence of str or None
        Labels that there must be, and no others; None: any.

    Returns
    -------
    Semantics

    Raises
    ------
    ValueError
        If it is no JSON, or has other keys or values; it tells which.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get(ENTITIES), list):
        raise ValueError(f"is no object with a list of {ENTITIES}")
    labels = {name: value for name, value in content.items() if name != ENTITIES}
    if not labels or (names is not None and set(labels) != set(names)):
        raise ValueError(f"has the labels {sorted(labels)}, not {sorted(names or ['any'])}")
    for name, value in labels.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"has {name} {value!r}, which is no text")
    entities = []
    for entity in content[ENTITIES]:
        if not isinstance(entity, dict) or set(entity) != {"type", "filler"}:
            raise ValueError(f"has an entity {entity!r} without type and filler alone")
        if not all(isinstance(value, str) and value.strip() for value in entity.values()):
            raise ValueError(f"has an entity {entity!r} whose type or filler is no text")
        entities.append((entity["type"], entity["filler"]))
    meaning = Semantics(labels, tuple(entities))
    try:
        meaning.text().encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a character, {error.object[error.start]!r}") from error
    return meaning


def _without_repeats(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"has a key twice among {[key for key, _ in pairs]}")
    return content


def structure(names):
    """Returns what stands around labels, types and fillers: each wants to be one token.

    Arguments
    ---------
    names : sequence of str
        Of the labels, in their order.

    Example
    -------
    >>> structure(["intent"])[:2]
    ['{"intent":"', '","entities":[]}']
    """
    first, *others = names
    return [
        f'{{"{first}":"',
        *(f'","{name}":"' for name in others),
        f'","{ENTITIES}":[]}}',
        f'","{ENTITIES}":[{{"type":"',
        '","filler":"',
        '"},{"type":"',
        '"}]}',
    ]
