"""CMU AN4's official layout: etc/*.fileids, etc/*.transcription and wav/*/*/*.sph."""

import re
from pathlib import Path

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_lines

SPLITS = ("train", "valid", "test")
LINE = re.compile(r"^(?:<s>)?(?P<words>.*?)(?:</s>)?\s*\((?P<key>[^()\s]+)\)\s*$")


def prepare(
    data_folder, save_folder, *, splits=SPLITS, valid_speakers=8, workers=None, progress=True
):
    """Makes the manifests of AN4.

    AN4 has no validation set: speakers are taken out of the training part for it, evenly spread
    over the alphabetical list of speakers.

    Arguments
    ---------
    data_folder : str or Path
        Holds ``etc`` and ``wav`` (the sphere release).
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Of train, valid and test.
    valid_speakers : int
        Number of speakers for validation.

    Raises
    ------
    UserError
        If the folder is not AN4, a split is unknown, or audio and transcripts do not match.
    """
    folder = Path(data_folder).absolute()
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise UserError(f"AN4 has no split {', '.join(unknown)}: take {', '.join(SPLITS)}")
    official = _official(folder, "train")
    speakers = sorted({row[2] for row in official})
    if not 1 <= valid_speakers < len(speakers):
        raise UserError(
            f"valid_speakers is {valid_speakers}, but must be 1 to {len(speakers) - 1}: AN4's "
            f"training part has {len(speakers)} speakers"
        )
    held = {speakers[i * len(speakers) // valid_speakers] for i in range(valid_speakers)}
    rows = {
        "train": [row for row in official if row[2] not in held],
        "valid": [row for row in official if row[2] in held],
        "test": _official(folder, "test"),
    }
    texts = sorted((folder / "etc").iterdir())
    return {
        split: remade(
            Path(save_folder) / f"{split}.csv",
            [*texts, *(row[1] for row in rows[split])],
            lambda split=split: probe(
                rows[split], workers=workers, progress=progress, description=split
            ),
        )
        for split in splits
    }


def _official(folder, part):
    """(ID, path, speaker, transcript) of each utterance of the official train or test part."""
    names = folder / "etc" / f"an4_{part}.fileids"
    lines = folder / "etc" / f"an4_{part}.transcription"
    for path in (names, lines):
        if not path.is_file():
            raise UserError(
                f"{path}: no such file: give the folder of AN4 that holds etc and wav as "
                "--data_folder"
            )
    words = _transcripts(lines)
    rows, problems = [], []
    for name in filter(None, map(str.strip, read_lines(names))):
        key, wav = name.split("/")[-1], folder / "wav" / f"{name}.sph"
        if key not in words:
            problems.append(f"{key}: no transcript in {lines}")
        elif not wav.is_file():
            raw = wav.with_suffix(".raw").is_file()
            problems.append(f"{wav}: " + ("only .raw: take the sphere release" if raw else "gone"))
        else:
            rows.append((key, str(wav), name.split("/")[-2], words[key]))
    if problems:
        raise UserError(listed(f"AN4's {part} part: {len(problems)} utterances", problems))
    return rows


def _transcripts(path):
    words = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        match = LINE.match(line.strip())
        if match is None:
            raise UserError(f"{path}, line {number}: {line!r} is not 'WORDS (ID)': mend it")
        said = " ".join(match["words"].split())
        if words.setdefault(match["key"], said) != said:
            raise UserError(
                f"{path}, line {number}: {match['key']} has another transcript before: keep one"
            )
    return words


CORPUS = Corpus("an4", prepare, ["train"], ["valid"], ["test"])
