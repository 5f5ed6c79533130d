"""AISHELL-1's layout: wav/<split>/<speaker>/<ID>.wav and transcript/aishell_transcript_v0.8.txt.

A transcript is written without its spaces, which stand between words that somebody has told apart:
it has characters alone.
"""

import logging
from pathlib import Path

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_lines

logger = logging.getLogger(__name__)

SPLITS = ("train", "dev", "test")
TRANSCRIPTS = Path("transcript", "aishell_transcript_v0.8.txt")


def prepare(data_folder, save_folder, *, splits=SPLITS, workers=None, progress=True):
    """Makes the manifests of AISHELL-1.

    Audio without a transcript and transcripts without audio, which the corpus has, are left out;
    the log tells how many.

    Arguments
    ---------
    data_folder : str or Path
        ``data_aishell``, which holds ``wav`` and ``transcript``.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Of train, dev and test.

    Raises
    ------
    UserError
        If the folder is not AISHELL-1, speakers are still packed, a split has no audio with a
        transcript, or a line of the transcripts cannot be used.
    """
    folder = Path(data_folder).absolute()
    if not (folder / "wav").is_dir():
        raise UserError(
            f"{folder / 'wav'}: no such folder: give AISHELL-1's folder data_aishell, with wav and "
            "transcript in it, as --data_folder"
        )
    audio = {path.name: sorted(path.glob("*/*.wav")) for path in sorted(folder.glob("wav/*/"))}
    _check_unpacked(folder / "wav", audio)
    words = _transcripts(folder / TRANSCRIPTS)
    silent = words.keys() - {path.stem for paths in audio.values() for path in paths}
    if silent:
        lines = sorted(silent)
        title = f"{folder / TRANSCRIPTS}: {len(lines)} of {len(words)} lines have no audio"
        logger.info(listed(title, lines))
    manifests = {}
    for split in splits:
        rows = _rows(folder / "wav", split, audio, words)
        manifests[split] = remade(
            Path(save_folder) / f"{split}.csv",
            [folder / TRANSCRIPTS, *(row[1] for row in rows)],
            lambda rows=rows, split=split: probe(
                rows, workers=workers, progress=progress, description=split
            ),
        )
    return manifests


def _check_unpacked(folder, audio):
    """Each speaker is a .tar.gz of its own within the corpus's archive."""
    there = {path.parent.name for paths in audio.values() for path in paths}
    packed = [path.name for path in sorted(folder.glob("*.tar.gz"))]
    if packed := [name for name in packed if name.removesuffix(".tar.gz") not in there]:
        raise UserError(
            listed(f"{folder}: {len(packed)} speakers are still packed", packed)
            + f"\nunpack them: cd {folder} && for f in *.tar.gz; do tar xzf $f; done"
        )


def _transcripts(path):
    """From each ID to its characters."""
    words = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        key, *said = line.split()
        said = "".join(said)
        if not said:
            raise UserError(
                f"{path}, line {number}: {line!r} has no words behind its ID: add them, or take "
                "the line out"
            )
        if words.setdefault(key, said) != said:
            raise UserError(f"{path}, line {number}: {key} has another transcript before: keep one")
    return words


def _rows(folder, split, audio, words):
    """(ID, path, speaker, transcript) of each utterance of a split."""
    paths = audio.get(split, [])
    rows = [(p.stem, str(p), p.parent.name, words[p.stem]) for p in paths if p.stem in words]
    if not rows:
        found = [name for name, there in audio.items() if there]
        raise UserError(
            f"{folder / split}: {len(paths)} wav files, none with a transcript; audio is in "
            f"{', '.join(found) or 'no folder'}: ask for splits of these, or unpack the corpus anew"
        )
    if lacking := [path.stem for path in paths if path.stem not in words]:
        title = f"{folder / split}: {len(lacking)} of {len(paths)} wav files have no transcript"
        logger.info(listed(f"{title} and are left out", lacking))
    return rows


CORPUS = Corpus("aishell", prepare, ["train"], ["dev"], ["test"])
