"""Normalisation of transcripts: what becomes of each character of a sentence, in any language.

1. Control, format, private and unassigned characters (C*), variation selectors and the tatweel,
   which stretches Arabic words, are dropped. The joiners ZWNJ and ZWJ stay between the letters of a
   word, where Persian and the scripts of India need them; of several in a row the first stays.
2. Letters become capitals by ``str.upper``, in NFC: ß and ẞ become SS, ς becomes Σ, accents stay.
   In tr, az, crh i and i̇ become İ and ı becomes I; in ca ŀ becomes L·. Scripts without case stay
   as they are; Georgian is one of them (its capitals, Mtavruli, are for headlines).
3. Letters (L*), combining marks (M*) and numbers (N*) stay. Symbols made of letters, such as ㎏, №
   and Ⓐ, are read as these (by NFKC), but for raised ones: nobody says ™.
4. An apostrophe of any shape becomes ' between the letters of a word, and in words of which
   `LANGUAGES` says that they begin or end with one. In he and yi it is the geresh too, and the
   gershayim becomes " between letters. In uz an apostrophe after O or G is part of the letter and
   becomes ʻ.
5. All else, punctuation (P*), hyphens and dashes among it, and symbols (S*), parts words as a
   space does. White space becomes one space.

What is dropped by rules 1 and 5 is counted.
"""

import json
import logging
import re
import unicodedata
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import write_atomically

logger = logging.getLogger(__name__)

VERSION = 2  # raised with every change of the rules: manifests are made anew
APOSTROPHES = "'’‘‛`´＇׳"
# written ' and " in Hebrew too: keyboards have these, and rule 4 needs no exception; not “ and „,
# which open a quotation after a prefix
GERSHAYIM = '"״”'
ONE_SIGN = str.maketrans({**dict.fromkeys(APOSTROPHES, "'"), **dict.fromkeys(GERSHAYIM, '"')})
HOOK = "\N{MODIFIER LETTER TURNED COMMA}"
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
        Signs that stay between letters; "'" stands for every apostrophe, '"' for every gershayim.
    words : tuple of str
        Words that begin or end with an apostrophe, in capitals.
    silent : str
        Signs that stand inside words and are dropped without parting them.
    letters : tuple of tuple of str
        Letters, and what is written for them, in this order.
    hooked : str
        Capitals that take an apostrophe as part of the letter.
    """

    inside: str = "'"
    words: tuple = ()
    silent: str = "\N{ARABIC TATWEEL}"
    letters: tuple = ()
    hooked: str = ""


LANGUAGES = {
    "nl": Language(
        words=("'K", "'M", "'N", "'NS", "'R", "'S", "'T"), letters=(("ĳ", "ij"), ("Ĳ", "IJ"))
    ),
    "fr": Language(
        words=("C'", "D'", "J'", "L'", "M'", "N'", "QU'", "S'", "T'", "JUSQU'", "LORSQU'")
        + ("PRESQU'", "PUISQU'", "QUELQU'", "QUOIQU'")
    ),
    "it": Language(
        words=("BE'", "CA'", "D'", "DA'", "DE'", "DI'", "FA'", "L'", "MO'", "NE'", "PO'", "STA'")
        + ("TO'", "UN'", "VA'", "VE'")
    ),
    "en": Language(words=("'CAUSE", "'EM", "'TIL", "'TIS", "'TWAS", "O'")),
    "ca": Language(inside="'·", letters=(("ŀ", "l·"), ("Ŀ", "L·"))),
    "hy": Language(silent="՛՜՞\N{ARABIC TATWEEL}"),
    "fa": Language(letters=(("ي", "ی"), ("ك", "ک"))),  # keys of Arabic keyboards
    **dict.fromkeys(
        ("az", "crh", "tr"), Language(letters=(("i\u0307", "i"), ("i", "İ"), ("ı", "I")))
    ),
    **dict.fromkeys(("be", "br", "uk"), Language(letters=(("ʼ", "'"),))),
    "uz": Language(letters=((HOOK, "'"), ("ʼ", "'")), hooked="OG"),
    **dict.fromkeys(("he", "yi"), Language(inside="'\"")),
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
    text = "".join(map(_in_letters, text))
    dropped = Counter(char for char in text if _is_ignored(char, rules))
    text = _in_capitals("".join(char for char in text if not _is_ignored(char, rules)), rules)

    kinds = "".join(_kind(char, rules) for char in text)
    joining = {match.start() for match in re.finditer("(?<=w)j(?=j*w)", kinds)}
    lone = {i for i, kind in enumerate(kinds) if kind == "j"} - joining
    dropped.update(text[i] for i in lone)
    text = "".join(char for i, char in enumerate(text) if i not in lone)
    if rules.hooked:
        text = re.sub(f"(?<=[{rules.hooked}])[{APOSTROPHES}]", HOOK, text)
    kinds = "".join(_kind(char, rules) for char in text).replace("j", "w")

    signs = {
        match.start() + match[0].index("a")
        for match in SIGNS.finditer(kinds)
        if match[0] == "a" or text[slice(*match.span())].translate(ONE_SIGN) in rules.words
    }
    written = []
    for i, (char, kind) in enumerate(zip(text, kinds)):
        if kind == "w" or i in signs:
            written.append(char.translate(ONE_SIGN))
        else:
            written.append(" ")
            if kind != " ":
                dropped[char] += 1
    return " ".join("".join(written).split()), dropped


def normalized_manifests(tables, save_folder, language, **options):
    """Makes each split's manifest, of normalised transcripts, if its source or audio has changed.

    Arguments
    ---------
    tables : iterable of (str, Path, callable)
        Of each split its name, the file with the transcripts, and what reads their rows, as
        `normalized` takes them.
    save_folder : str or Path
        Gets the manifests, and what was dropped.
    language : str
        As for `normalized`.
    **options
        As for `manifest.probe`.

    Returns
    -------
    dict
        From split to Path.
    """
    settings(language)  # tells of a wrong one, before tables are read
    folder = Path(save_folder)

    def manifest(split, source, rows):
        def make():
            report = folder / f"{split}.dropped.json"
            words = normalized(rows, language, source=source, report=report)
            return probe(words, description=split, **options)

        files = [source, *(row[1] for row in rows)]
        return remade(folder / f"{split}.csv", files, make, settings(language))

    return {split: manifest(split, source, read()) for split, source, read in tables}


def normalized(rows, language, *, source, report):
    """Normalises transcripts; what is dropped, and what is left out, is told.

    Arguments
    ---------
    rows : list of tuple
        As of `manifest.probe`: ID, path, speaker and transcript, and what else a row has.
    language : str
        As in `normalize_text`.
    source : Path
        What the log and errors call the corpus's file or folder.
    report : Path
        JSON file that gets the characters that were dropped, and the rows left out.

    Returns
    -------
    list of tuple
        The rows of which words are left.

    Raises
    ------
    UserError
        If there are none, or language is no locale.
    """
    kept, left_out, dropped = [], [], Counter()
    for key, wav, speaker, sentence, *part in rows:
        words, lost = normalize_text(sentence, language)
        dropped += lost
        if words:
            kept.append((key, wav, speaker, words, *part))
        else:
            left_out.append(f"{key}: {sentence!r}")
    characters = described(dropped)
    content = {"left_out": left_out, "characters": characters}
    write_atomically(report, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    if left_out:
        title = f"{source}: {len(left_out)} of {len(rows)} utterances are left out: no word in them"
        logger.info(listed(title, left_out))
    if characters:
        lines = [f"{c['code']} {c['name']} {c['character']!r}: {c['count']}" for c in characters]
        title = f"{source}: {dropped.total()} characters are dropped (all in {report})"
        logger.info(listed(title, lines))
    if not kept:
        raise UserError(
            f"{source}: none of its {len(rows)} sentences has a word: leave this split out, or "
            "unpack the corpus again"
        )
    return kept


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


def _in_letters(char):
    """A symbol made of letters becomes these, all else stays."""
    if unicodedata.category(char)[0] == "S" and "<super>" not in unicodedata.decomposition(char):
        letters = unicodedata.normalize("NFKC", char)
        if any(unicodedata.category(letter)[0] == "L" for letter in letters):
            return letters
    return char


def _in_capitals(text, rules):
    text = _spelled(unicodedata.normalize("NFC", text), rules).upper()
    text = _spelled(text.translate(str.maketrans(ONE_CASE)), rules)
    return unicodedata.normalize("NFC", text)


def _spelled(text, rules):
    for letter, written in rules.letters:
        text = text.replace(letter, written)
    return text


def _kind(char, rules):
    """Part of a word, joiner, sign that may stand in a word (as an apostrophe), space or other."""
    if unicodedata.category(char)[0] in "LMN":
        return "w"
    if char in JOINERS:
        return "j"
    if char.translate(ONE_SIGN) in rules.inside:
        return "a"
    return " " if char.isspace() else "-"
