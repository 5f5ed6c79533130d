import hypothesis.strategies as st
import pytest
from hypothesis import given

from speechbrain_summarymixing.corpora.semantics import Semantics, parse, structure

texts = st.text(min_size=1, max_size=8).filter(str.strip)
names = texts.filter(lambda name: name != "entities")
meanings = st.builds(
    Semantics,
    st.dictionaries(names, texts, min_size=1, max_size=3),
    st.lists(st.tuples(texts, texts), max_size=4).map(tuple),
)


@given(meanings)
def test_text_and_back(meaning):
    text = meaning.text()
    assert "\n" not in text
    assert parse(text) == meaning == parse(text, names=meaning.labels)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is no JSON"),
        ("[" * 100000, "is no JSON"),
        ('{"intent":"\\ud800","entities":[]}', r"has half a character, '\\ud800'"),
        (
            '{"intent":"order","entities":[{"type":"drink","filler":"tea \\udc00"}]}',
            r"has half a character, '\\udc00'",
        ),
        ('{"intent":"order","entities":[', "is no JSON"),
        ("[]", "is no object with a list of entities"),
        ('{"intent":"order"}', "is no object with a list of entities"),
        ('{"intent":"order","entities":{}}', "is no object with a list of entities"),
        ('{"entities":[]}', "has the labels"),
        ('{"room":"hall","entities":[]}', r"has the labels \['room'\], not \['intent'\]"),
        ('{"intent":" ","entities":[]}', "has intent ' ', which is no text"),
        ('{"intent":3,"entities":[]}', "has intent 3, which is no text"),
        ('{"intent":"order","entities":["tea"]}', "without type and filler alone"),
        ('{"intent":"order","entities":[{"type":"drink"}]}', "without type and filler alone"),
        ('{"intent":"order","intent":"call","entities":[]}', "a key twice"),
        (
            '{"intent":"order","entities":[{"type":"drink","filler":"a","filler":"b"}]}',
            "a key twice",
        ),
        (
            '{"intent":"order","entities":[{"type":"drink","filler":"tea","span":1}]}',
            "without type and filler alone",
        ),
        (
            '{"intent":"order","entities":[{"type":"drink","filler":""}]}',
            "whose type or filler is no text",
        ),
    ],
)
def test_what_is_no_meaning(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse(text, names=["intent"])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy")), max_size=3).map(tuple))
def test_the_structure_is_all_that_stands_around_labels_types_and_fillers(entities):
    text = Semantics({"scenario": "S", "action": "A"}, entities).text()
    for piece in sorted(structure(["scenario", "action"]), key=len, reverse=True):
        text = text.replace(piece, " ")
    assert text.split() == ["S", "A", *(part for entity in entities for part in entity)]
