"""TED-LIUM 2's layout: <split>/stm/<talk>.stm and <split>/sph/<talk>.sph, a talk each."""

import logging
import re
from collections import Counter
from pathlib import Path

from speechbrain_summarymixing.corpora import text
from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, part_of, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_lines

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
VERSION = 1  # raised when transcripts are written in another way: manifests are made anew
LINE = re.compile(r"(\S+)\s+\S+\s+(\S+)\s+(\S+)\s+(\S+)\s+<[^<>\s]*>\s*(.*)")
NO_SPEECH = "ignore_time_segment_in_scoring"
NAME = re.compile(r"\(\S*\)\s*$")  # of the utterance, behind its words
VARIANT = re.compile(r"\(\d\)")  # of a word's pronunciation
TAG = re.compile(r"\{[^{}\s]*\}|<[^<>\s]*>")
# what stands as words: it 's, and y 'all, but not i 'cause
PARTED = re.compile(r"(?<=\w) +'(?=(?:s|t|d|m|ll|re|ve)\b)|(?<=\b[b-hj-z]) +'(?=\w)")
# of which the transcript is not what is said; SpeechBrain's recipe leaves it out too
MISHEARD = "JillSobuleMANHATTANINJANUARY_2006"


def prepare(data_folder, save_folder, *, splits=SPLITS, workers=None, progress=True):
    """Makes the manifests of TED-LIUM 2: an utterance for each segment of a talk with words.

    Tags such as {NOISE} and <unk> are left out of transcripts, and their number is told; words that
    stand parted, such as it 's, are joined; the rest is normalised (see `text`). Segments that are
    not in their talk's audio are left out, and told.

    Arguments
    ---------
    data_folder : str or Path
        ``TEDLIUM_release2``, which holds train, dev and test.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned; ``<split>.dropped.json`` has the characters
        that were dropped.
    splits : sequence of str
        Of train, dev and test.

    Raises
    ------
    UserError
        If a split, a talk's audio or all words are missing, a line cannot be used, or audio cannot
        be read.
    """
    folder, save_folder = Path(data_folder).absolute(), Path(save_folder)
    settings = {**text.settings("en"), "stm": VERSION}
    manifests = {}
    for split in splits:
        source = folder / split / "stm"
        talks = sorted(source.glob("*.stm"))
        if not talks:
            found = sorted(path.parent.name for path in folder.glob("*/stm/"))
            raise UserError(
                f"{source}: no .stm file; the corpus's folder has the splits "
                f"{', '.join(found) or '(none)'}: ask for these, or give TEDLIUM_release2, with "
                "train, dev and test in it, as --data_folder"
            )
        rows = _rows(folder / split, talks)

        def make(split=split, source=source, rows=rows):
            report = save_folder / f"{split}.dropped.json"
            words = text.normalized(_plain(rows, source), "en", source=source, report=report)
            return probe(
                words,
                workers=workers,
                progress=progress,
                description=split,
                outside_left_out=True,
            )

        files = {row[1] for row in rows}
        manifests[split] = remade(save_folder / f"{split}.csv", [*talks, *files], make, settings)
    return manifests


def _rows(folder, talks):
    """(ID, path, speaker, what the line has for words, start, stop) of each segment of speech."""
    rows = []
    for stm in talks:
        if stm.stem == MISHEARD:
            continue
        for number, line in enumerate(read_lines(stm), 1):
            if not line.strip() or line.startswith(";;"):
                continue
            where = f"{stm}, line {number}"
            match = LINE.fullmatch(line.strip())
            if match is None:
                raise UserError(
                    f"{where}: {line.strip()[:80]!r} is not 'TALK CHANNEL SPEAKER BEGIN END "
                    "<LABEL> WORDS': mend it, or unpack the corpus again"
                )
            talk, speaker, begin, end, words = match.groups()
            if words.strip() == NO_SPEECH:
                continue
            start, stop, _ = part_of(where, talk, begin, end)
            key = f"{talk}-{round(100 * start):07d}-{round(100 * stop):07d}"
            rows.append((key, str(folder / "sph" / f"{talk}.sph"), speaker, words, start, stop))
    if missing := [path for path in sorted({row[1] for row in rows}) if not Path(path).is_file()]:
        raise UserError(
            listed(f"{folder}: the audio of {len(missing)} of {len(talks)} talks is gone", missing)
            + "\nthe corpus is not whole: unpack it again"
        )
    return rows


def _plain(rows, source):
    """The rows with words alone; what else the lines had is counted for the log."""
    tags, plain = Counter(), []
    for key, wav, speaker, words, *part in rows:
        words = VARIANT.sub("", NAME.sub("", words))
        tags.update(TAG.findall(words))
        words = PARTED.sub("'", " ".join(TAG.sub(" ", words).split()))
        plain.append((key, wav, speaker, words, *part))
    if tags:
        lines = [f"{tag}: {count}" for tag, count in tags.most_common()]
        logger.info(listed(f"{source}: {tags.total()} tags are left out of its words", lines))
    return plain


CORPUS = Corpus("tedlium2", prepare, ["train"], ["dev"], ["test"])
