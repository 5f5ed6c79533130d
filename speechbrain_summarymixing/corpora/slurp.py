"""SLURP's official layout: dataset/slurp/<split>.jsonl, audio/slurp_real and audio/slurp_synth.

The target of an utterance is its meaning (see `semantics`), in the manifest's column wrd.
"""

import json
from pathlib import Path

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.corpora.semantics import Semantics, parse
from speechbrain_summarymixing.errors import UserError

SPLITS = ("train", "devel", "test")
SYNTHETIC = "train_synthetic"  # the split whose audio lies in slurp_synth
LABELS = ("scenario", "action")
TEXTS = Path("dataset", "slurp")
AUDIO = Path("audio", "slurp_real")
SYNTHETIC_AUDIO = Path("audio", "slurp_synth")
METADATA = "metadata.json"  # beside the splits: who speaks


def prepare(data_folder, save_folder, *, splits=SPLITS, workers=None, progress=True):
    """Makes the manifests of splits: an utterance for each recording.

    Arguments
    ---------
    data_folder : str or Path
        Holds ``dataset/slurp`` and ``audio``.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Names of ``dataset/slurp/<split>.jsonl``: train, devel, test, train_synthetic.

    Raises
    ------
    UserError
        If the folder is not SLURP, a split or audio is missing, a split has no recording, or a line
        cannot be used.
    """
    folder = Path(data_folder).absolute()
    speakers = _speakers(folder / TEXTS / METADATA)
    sources = [folder / TEXTS / METADATA] if speakers else []
    manifests = {}
    for split in splits:
        lines = folder / TEXTS / f"{split}.jsonl"
        audio = folder / (SYNTHETIC_AUDIO if split == SYNTHETIC else AUDIO)
        rows = [
            (Path(name).stem, str(audio / name), speakers.get(name, ""), meaning.text())
            for content, meaning in read_lines(lines)
            for name in (recording["file"] for recording in content["recordings"])
        ]
        if not rows:
            raise UserError(
                f"{lines}: none of its lines has a recording, and each recording is an utterance: "
                f"download the file again, or leave the split {split} out"
            )
        if missing := [row[1] for row in rows if not Path(row[1]).is_file()]:
            raise UserError(
                listed(f"{lines}: {len(missing)} of {len(rows)} recordings are missing", missing)
                + f"\nunpack SLURP's audio into {audio}, or leave the split {split} out"
            )
        manifests[split] = remade(
            Path(save_folder) / f"{split}.csv",
            [lines, *sources, *(row[1] for row in rows)],
            lambda rows=rows, split=split: probe(
                rows, workers=workers, progress=progress, description=split
            ),
        )
    return manifests


def read_lines(path):
    """Reads a split's lines.

    Arguments
    ---------
    path : str or Path
        ``<split>.jsonl``.

    Returns
    -------
    list of tuple
        The content, a dict, and the `Semantics` of each line that is not blank.

    Raises
    ------
    UserError
        If the file is missing, or a line is not as SLURP's are; it tells which.
    """
    path = Path(path)
    if not path.is_file():
        found = sorted(file.stem for file in path.parent.glob("*.jsonl"))
        raise UserError(
            f"{path}: no such file; the folder holds "
            f"{', '.join(f'{name}.jsonl' for name in found) or 'no .jsonl'}: "
            + (f"ask for splits of these ({', '.join(found)}), or " if found else "")
            + "give the folder of SLURP that holds dataset/slurp and audio as --data_folder"
        )
    lines = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    content = json.loads(line)
                    lines.append((content, _meaning(content)))
                except (ValueError, RecursionError) as error:
                    if isinstance(error, UnicodeDecodeError):
                        raise
                    no_json = isinstance(error, (json.JSONDecodeError, RecursionError))
                    reason = "is no JSON" if no_json else error
                    raise UserError(
                        f"{path}, line {number}: {line.strip()[:80]!r} {reason}: mend the line, or "
                        "download the file again"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{path}: cannot read this file ({reason})") from error
    if not lines:
        raise UserError(f"{path}: has no line: download the file again")
    return lines


def _meaning(content):
    """Semantics of a line; a ValueError tells what is wrong with it."""
    try:
        labels = {name: content[name] for name in LABELS}
        words = [token["surface"].lower() for token in content["tokens"]]
        spans = [(entity["type"], entity["span"]) for entity in content["entities"]]
        unfit = [row["file"] for row in content["recordings"] if "/" in row["file"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "is no object with scenario, action, tokens (surface), entities (type, span) and "
            "recordings (file)"
        ) from error
    if unfit:
        raise ValueError(f"has the recording {unfit[0]!r}, which is no file's bare name")
    entities = []
    for kind, span in spans:
        if not isinstance(span, list) or not span or any(i not in range(len(words)) for i in span):
            raise ValueError(
                f"has an entity {kind!r} of the tokens {span}, but its tokens are 0 to "
                f"{len(words) - 1}"
            )
        entities.append((kind, " ".join(words[i] for i in span)))
    return parse(Semantics(labels, tuple(entities)).text())


def _speakers(path):
    """From each recording's file to who speaks; empty without the metadata."""
    if not path.is_file():
        return {}
    try:
        lines = json.loads(path.read_text(encoding="utf-8")).values()
        return {
            file: recording.get("usrid") or ""
            for line in lines
            for file, recording in line.get("recordings", {}).items()
        }
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: is not SLURP's metadata (JSON that has, for each slurp_id, recordings with "
            "usrid): download the file again, or remove it"
        ) from error


CORPUS = Corpus("slurp", prepare, ["train"], ["devel"], ["test"])
