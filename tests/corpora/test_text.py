import json
import unicodedata
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from speechbrain_summarymixing.corpora import text
from speechbrain_summarymixing.corpora.text import described, normalize_text, settings
from speechbrain_summarymixing.errors import UserError

ZWNJ, ZWJ = "\u200c", "\u200d"
COMBINING = "\u0301\u0338\u0345\u094d"
TRICKY = "aZßẞıiİĳŉʼς'’´\"·-–.=1²½ \t\n\x00\x1f\u00a0\u00ad\u200b\ufe0f\U0001f600کيدनქᲥกé"
TEXTS = st.text(
    st.sampled_from(TRICKY + COMBINING + ZWNJ + ZWJ) | st.characters(exclude_categories=["Cs"]),
    max_size=30,
)
LOCALES = st.sampled_from([*text.LANGUAGES, "de", "hi", "ka", "sv-SE", "zh-CN"])
PLAIN = st.sampled_from(["ca", "de", "en", "fr", "hi", "it", "ja", "ka", "sv-SE", "zh-CN"])


def is_ignorable(char):
    category = unicodedata.category(char)[0]
    return "\ufe00" <= char <= "\ufe0f" or category == "C" and not char.isspace()


def letters(written):
    decomposed = unicodedata.normalize("NFD", written.casefold())
    return Counter(char for char in decomposed if unicodedata.category(char)[0] == "L")


@pytest.mark.parametrize(
    "language, sentence, words",
    [
        ("nl", "Zo’n auto's, 's ochtends — in ‘t IJ!", "ZO'N AUTO'S 'S OCHTENDS IN 'T IJ"),
        ("nl", "Hij zei: 'ja', vanuit 's-Gravenhage.", "HIJ ZEI JA VANUIT 'S GRAVENHAGE"),
        ("nl", "ĳs en Ĳsland", "IJS EN IJSLAND"),
        ("fr", "« L’œuvre d'art » : est-ce aujourd´hui ?", "L'ŒUVRE D'ART EST CE AUJOURD'HUI"),
        ("fr", "l' homme, ‘bien’", "L' HOMME BIEN"),
        ("it", "Un po’ d'acqua, perché no? 'Sì'", "UN PO' D'ACQUA PERCHÉ NO SÌ"),
        ("en", "Rock 'n' roll o’clock, the dogs' 'em", "ROCK N ROLL O'CLOCK THE DOGS 'EM"),
        ("de", "Die Straße, STRAẞE – »geht's«?", "DIE STRASSE STRASSE GEHT'S"),
        ("tr", "İstanbul'da ılık iğne", "İSTANBUL'DA ILIK İĞNE"),
        ("sv-SE", "Ångström + 3,5 km²", "ÅNGSTRÖM 3 5 KM²"),
        ("el", "Ο ΐδιος λόγος·", "Ο Ϊ́ΔΙΟΣ ΛΌΓΟΣ"),
        ("ca", "col·legi · l’avi", "COL·LEGI L'AVI"),
        ("ru", "Ещё   чай?..\tДа!", "ЕЩЁ ЧАЙ ДА"),
        ("uk", "м’ята, пʼять, ім'я", "М'ЯТА П'ЯТЬ ІМ'Я"),
        ("hi", f"हिन्दी में, “क्{ZWJ}या” है।", f"हिन्दी में क्{ZWJ}या है"),
        ("ka", "გამარჯობა, ᲥᲐᲠᲗᲣᲚᲘ!", "გამარჯობა ქართული"),
        ("th", "สวัสดี “ครับ” น้ำ๒ๆ", "สวัสดี ครับ น้ำ๒ๆ"),
        ("zh-CN", "他说‘好’吗?", "他说 好 吗"),
        ("hy-AM", "Ինչո՞ւ, այո՛։", "ԻՆՉՈՒ ԱՅՈ"),
        ("fa", f"مي{ZWNJ}خواهم كتاب، «۲۰{ZWNJ}ساله»؟", f"می{ZWNJ}خواهم کتاب ۲۰{ZWNJ}ساله"),
        ("de", "…!? \u200b", ""),
        ("de", "", ""),
    ],
)
def test_sentences(language, sentence, words):
    assert normalize_text(sentence, language)[0] == unicodedata.normalize("NFC", words)


def test_what_is_dropped_is_counted():
    words, dropped = normalize_text("‘Well’ - it’s «two-fold»... \u200bso\u00adso ❤\ufe0f!", "en")
    assert words == "WELL IT'S TWO FOLD SOSO"
    assert dropped == Counter("‘’--«»...\u200b\u00ad❤\ufe0f!")


@pytest.mark.parametrize("joiner", [ZWNJ, ZWJ])
def test_joiners_stay_between_letters_alone(joiner):
    words, dropped = normalize_text(
        f"{joiner}می{joiner}{ZWNJ}{ZWJ}خ{joiner} {joiner}. x{joiner}", "fa"
    )
    assert words == f"می{joiner}خ X"
    assert dropped[joiner] == 5 and dropped.total() == 7
    assert normalize_text(f"क्{joiner}ष", "hi") == (f"क्{joiner}ष", Counter())


@given(TEXTS, LOCALES)
def test_words_are_their_own_normal_form(sentence, language):
    words, _ = normalize_text(sentence, language)
    assert normalize_text(words, language) == (words, Counter())


@given(TEXTS, LOCALES)
def test_words_have_single_spaces_and_are_in_capitals(sentence, language):
    words, dropped = normalize_text(sentence, language)
    assert words == " ".join(words.split())
    assert unicodedata.is_normalized("NFC", words)
    assert not any(unicodedata.category(char) in ("Ll", "Lt") and char != char.upper()
                   for char in words if not "\u10d0" <= char <= "\u10ff")  # fmt: skip
    kept = set(words) - set(" '·") - {ZWNJ, ZWJ}
    assert {unicodedata.category(char)[0] for char in kept} <= set("LMN")


@given(TEXTS, PLAIN)
def test_no_letter_is_lost(sentence, language):
    words, dropped = normalize_text(sentence, language)
    assert letters(words) == letters(unicodedata.normalize("NFC", sentence).upper())
    lost = [char for char in dropped if unicodedata.category(char)[0] in "LMN"]
    assert all(is_ignorable(char) or 0xE0100 <= ord(char) <= 0xE01EF for char in lost)


@given(TEXTS.map(lambda s: unicodedata.normalize("NFC", s.upper())), PLAIN)
def test_every_character_is_kept_or_counted(sentence, language):
    # taking out an invisible character may compose those beside it
    visible = "".join(char for char in sentence if not is_ignorable(char))
    assume(unicodedata.is_normalized("NFC", visible))
    words, dropped = normalize_text(sentence, language)

    def folded(characters):
        for apostrophe in text.APOSTROPHES:
            characters = characters.replace(apostrophe, "'")
        return Counter(char for char in characters.casefold() if not char.isspace())

    assert folded(words + "".join(dropped.elements())) == folded(sentence)


@pytest.mark.parametrize("language", ["", "NL", "dutch", "sv_SE", "sv-", "n", "nl\n", None, False])
def test_no_locale(language):
    with pytest.raises(UserError, match="^language is .*, but must be a locale: .* sv-SE$"):
        normalize_text("a", language)
    with pytest.raises(UserError, match="but must be a locale"):
        settings(language)


def test_settings_are_those_of_the_language(monkeypatch):
    assert len({json.dumps(settings(name)) for name in ("nl", "it", "de", "sv-SE")}) == 4
    before = settings("de")
    monkeypatch.setattr(text, "VERSION", text.VERSION + 1)
    assert settings("de") != before


def test_characters_are_described_most_frequent_first():
    assert described(Counter({"\x07": 1, "!": 2, "…": 2})) == [
        {"character": "!", "code": "U+0021", "name": "EXCLAMATION MARK", "count": 2},
        {"character": "…", "code": "U+2026", "name": "HORIZONTAL ELLIPSIS", "count": 2},
        {"character": "\x07", "code": "U+0007", "name": "<Cc>", "count": 1},
    ]
