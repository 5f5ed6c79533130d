"""Normalisation of transcripts: what becomes of each character of a sentence, in any language.

1. Control, format, private and unassigned characters (C*) and variation selectors are dropped. The
   joiners ZWNJ and ZWJ stay between the letters of a word, where Persian and the scripts of India
   need them; of several in a row the first stays.
2. Letters become capitals by ``str.upper``, in NFC: ß and ẞ become SS, ς becomes Σ, accents stay.
   In tr, az, crh i becomes İ and ı becomes I. Scripts without case stay as they are; Georgian is
   one of them (its capitals, Mtavruli, are for headlines).
3. Letters (L*), combining marks (M*) and numbers (N*) stay.
4. An apostrophe of any shape becomes ' between the letters of a word, and in words of which
   `LANGUAGES` says that they begin or end with one.
5. All else, punctuation (P*), hyphens and dashes among it, and symbols (S*), parts words as a
   space does. White space becomes one space.

What is dropped by rules 1 and 5 is counted.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass

from speechbrain_summarymixing.errors import UserError

VERSION = 1  # raised with every change of the rules: manifests are made anew
APOSTROPHES = "'’‘‛`´＇"
ONE_APOSTROPHE = str.maketrans(dict.fromkeys(APOSTROPHES, "'"))
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
LOCALE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
ONE_CASE = {  # for what str.upper would make, or leave
    "ẞ": "SS",
    **{chr(code): chr(code - 0x1C90 + 0x10D0) for code in range(0x1C90, 0x1CC0)},  # Georgian
}


@dataclass(frozen=True)
class Language:
    """How the spelling of a language differs from that of most.

    Arguments
    ---------
    inside : str
        Signs that stay between letters; "'" stands for every apostrophe.
    words : tuple of str
        Words that begin or end with an apostrophe, in capitals.
    silent : str
        Signs that stand inside words and are dropped without parting them.
    letters : tuple of tuple of str
        Letters, and what is written for them.
    """

    inside: str = "'"
    words: tuple = ()
    silent: str = ""
    letters: tuple = ()


LANGUAGES = {
    "nl": Language(
        words=("'K", "'M", "'N", "'NS", "'R", "'S", "'T"), letters=(("ĳ", "ij"), ("Ĳ", "IJ"))
    ),
    "fr": Language(words=("C'", "D'", "J'", "L'", "M'", "N'", "QU'", "S'", "T'")),
    "it": Language(
        words=("BE'", "CA'", "D'", "DA'", "DE'", "DI'", "FA'", "L'", "MO'", "NE'", "PO'", "STA'")
        + ("TO'", "UN'", "VA'", "VE'")
    ),
    "en": Language(words=("'CAUSE", "'EM", "'TIL", "'TIS", "'TWAS", "O'")),
    "ca": Language(inside="'·"),
    "hy": Language(silent="՛՜՞"),
    "fa": Language(letters=(("ي", "ی"), ("ك", "ک"))),  # keys of Arabic keyboards
    **dict.fromkeys(("az", "crh", "tr"), Language(letters=(("i", "İ"), ("ı", "I")))),
    **dict.fromkeys(("be", "br", "uk"), Language(letters=(("ʼ", "'"),))),
    # without spaces between words, quotation marks stand between letters
    **dict.fromkeys(("ja", "km", "lo", "my", "nan", "th", "yue", "zh"), Language(inside="")),
}
MOST = Language()

# of a text's kinds (see _kind): a sign between letters; a whole word with one at its edge
SIGNS = re.compile("(?<=w)a(?=w)|(?<![wa])(?:aw+|w+a)(?![wa])")


def normalize_text(text, language):
    """Writes a sentence in capitals and without punctuation, as this module's head describes.

    Arguments
    ---------
    text : str
    language : str
        Locale such as "nl", "fa" or "sv-SE".

    Returns
    -------
    str
        Words, one space between them; "" if none is left.
    collections.Counter
        The characters that were dropped.

    Raises
    ------
    UserError
        If language is no locale.
    """
    rules = _rules(language)
    dropped = Counter(char for char in text if _is_ignored(char, rules))
    text = _in_capitals("".join(char for char in text if not _is_ignored(char, rules)), rules)

    kinds = "".join(_kind(char, rules) for char in text)
    joining = {match.start() for match in re.finditer("(?<=w)j(?=j*w)", kinds)}
    lone = {i for i, kind in enumerate(kinds) if kind == "j"} - joining
    dropped.update(text[i] for i in lone)
    text = "".join(char for i, char in enumerate(text) if i not in lone)
    kinds = "".join(k for i, k in enumerate(kinds) if i not in lone).replace("j", "w")

    signs = {
        match.start() + match[0].index("a")
        for match in SIGNS.finditer(kinds)
        if match[0] == "a" or text[slice(*match.span())].translate(ONE_APOSTROPHE) in rules.words
    }
    written = []
    for i, (char, kind) in enumerate(zip(text, kinds)):
        if kind == "w" or i in signs:
            written.append(char.translate(ONE_APOSTROPHE))
        else:
            written.append(" ")
            if kind != " ":
                dropped[char] += 1
    return " ".join("".join(written).split()), dropped


def settings(language):
    """Returns what the normalisation of a language depends on, to be written as JSON.

    Arguments
    ---------
    language : str
        As in `normalize_text`.

    Returns
    -------
    dict

    Raises
    ------
    UserError
        If language is no locale.
    """
    return {
        "version": VERSION,
        "language": language,
        "rules": asdict(_rules(language)),
        "unicode": unicodedata.unidata_version,
    }


def described(characters):
    """Names characters for people.

    Arguments
    ---------
    characters : collections.Counter

    Returns
    -------
    list of dict
        character, code, name and count of each, the most frequent first.
    """
    return [
        {
            "character": char,
            "code": f"U+{ord(char):04X}",
            "name": unicodedata.name(char, f"<{unicodedata.category(char)}>"),
            "count": count,
        }
        for char, count in sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    ]


def _rules(language):
    if not isinstance(language, str) or LOCALE.fullmatch(language) is None:
        raise UserError(
            f"language is {language!r}, but must be a locale: two or three small letters and "
            "perhaps a region, such as nl, fa or sv-SE"
        )
    return LANGUAGES.get(language.split("-")[0], MOST)


def _is_ignored(char, rules):
    if char.isspace() or char in JOINERS:
        return False
    selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    return selector or char in rules.silent or unicodedata.category(char)[0] == "C"


def _in_capitals(text, rules):
    letters = str.maketrans(dict(rules.letters))
    text = unicodedata.normalize("NFC", text).translate(letters).upper()
    return unicodedata.normalize("NFC", text.translate(str.maketrans(ONE_CASE) | letters))


def _kind(char, rules):
    """Part of a word, joiner, sign that may stand in a word (as an apostrophe), space or other."""
    if unicodedata.category(char)[0] in "LMN":
        return "w"
    if char in JOINERS:
        return "j"
    if char.translate(ONE_APOSTROPHE) in rules.inside:
        return "a"
    return " " if char.isspace() else "-"
