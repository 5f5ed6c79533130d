"""SLURP's sentences spoken by espeak-ng, where SLURP's audio is not at hand.

    python -m speechbrain_summarymixing.corpora.slurp_voices SLURP_FOLDER OUTPUT_FOLDER

From dataset/slurp/{devel,test}.jsonl a corpus in SLURP's layout is made, which `slurp` prepares.
No voice variant of train occurs in devel or in the tests, nor one of devel in the tests:

    train        devel.jsonl's lines, several recordings of each
    devel        every fourth of these lines: sentences of train, unseen voices
    test_voices  devel.jsonl's lines: sentences of train, unseen voices
    test         test.jsonl's lines: unseen sentences and voices

With all_sentences, train has test.jsonl's lines too, and test, as test_voices, only unseen voices.
What is measured on it cannot be compared with results on SLURP's own recordings.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

from speechbrain_summarymixing.corpora import mini, slurp
from speechbrain_summarymixing.errors import UserError

VERSION = 1  # of what the same seed and lines make
STAMP = "slurp_voices.json"
LONGEST = 12.0  # seconds of an utterance
SOURCES = ("devel", "test")  # published lines
SPLITS = {"train": "train", "devel": "dev", "test_voices": "test", "test": "test"}  # whose voices
DEVEL_EVERY = 4  # lines


def build(
    slurp_folder,
    output_folder,
    *,
    seed=1234,
    recordings=4,
    all_sentences=False,
    workers=None,
    progress=True,
):
    """Makes the corpus, unless it is there and whole.

    Arguments
    ---------
    slurp_folder : str or Path
        Holds ``dataset/slurp/devel.jsonl`` and ``test.jsonl``; no audio is needed.
    output_folder : str or Path
        Where the corpus goes; a folder that holds anything else is refused.
    seed : int
        The same seed and lines give the same bytes.
    recordings : int
        Of each line of train, each by another voice.
    all_sentences : bool
        Train on test.jsonl's lines too.
    workers : int or None
        Processes at a time; None: one for each core.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        output_folder.

    Raises
    ------
    UserError
        If lines are missing or unfit, recordings is no number of them, or as `mini.build`.
    """
    if not isinstance(recordings, int) or not 1 <= recordings <= 100:
        raise UserError(f"recordings is {recordings}, but must be 1 to 100 of each line")
    paths = {name: Path(slurp_folder) / slurp.TEXTS / f"{name}.jsonl" for name in SOURCES}
    lines = {name: [line for line, _ in slurp.read_lines(path)] for name, path in paths.items()}
    settings = {
        "version": VERSION,
        "seed": seed,
        "recordings": recordings,
        "all_sentences": all_sentences,
        "lines": {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()
        },
    }
    return mini.make_corpus(
        output_folder,
        settings,
        lambda: plan(lines, seed=seed, recordings=recordings, all_sentences=all_sentences),
        _write_texts,
        name="SLURP's sentences",
        stamp=STAMP,
        elsewhere="give another output folder",
        workers=workers,
        progress=progress,
    )


def plan(lines, *, seed=1234, recordings=4, all_sentences=False):
    """Chooses the voice of every recording.

    Arguments
    ---------
    lines : dict
        The lines of devel and of test.
    seed, recordings, all_sentences
        As in `build`.

    Returns
    -------
    list of dict
        As `mini.make_corpus` wants them, with split and line, in the order of splits and lines.

    Raises
    ------
    UserError
        If lines lack a sentence or a slurp_id, or espeak-ng is missing.
    """
    unfit = [line for rows in lines.values() for line in rows if not _can_be_spoken(line)]
    if unfit:
        raise UserError(
            f"{len(unfit)} lines have no sentence or no slurp_id, such as {str(unfit[0])[:80]}: "
            "download SLURP's lines again"
        )
    spoken = {
        "train": lines["devel"] + (lines["test"] if all_sentences else []),
        "devel": lines["devel"][::DEVEL_EVERY],
        "test_voices": lines["devel"],
        "test": lines["test"],
    }
    voices, utterances = mini.voices(seed), []
    for number, (split, whose) in enumerate(SPLITS.items()):
        count = recordings if split == "train" else 1
        takes = [(line, take) for line in spoken[split] for take in range(count)]
        for index, (line, take) in enumerate(takes):
            variant, accent = voices[whose][index % len(voices[whose])]
            name = f"audio-{line['slurp_id']}-{split}-{take}.flac"
            utterances.append(
                {
                    "split": split,
                    "line": line,
                    "variant": variant,
                    "accent": accent,
                    "text": line["sentence"],
                    "seed": [seed, number, index],
                    "longest": LONGEST,
                    "file": str(slurp.AUDIO / name),
                }
            )
    return utterances


def _can_be_spoken(line):
    sentence = line.get("sentence")
    return isinstance(sentence, str) and sentence.strip() and isinstance(line.get("slurp_id"), int)


def _write_texts(folder, utterances):
    """Writes the splits' lines with their new recordings, and who speaks."""
    texts, metadata = {split: {} for split in SPLITS}, {}
    for u in utterances:
        key, name = u["line"]["slurp_id"], Path(u["file"]).name
        line = texts[u["split"]].setdefault(key, {**u["line"], "recordings": []})
        exact = 0.0 if line["entities"] else None
        line["recordings"].append({"file": name, "wer": 0.0, "ent_wer": exact, "status": "correct"})
        speaker = {"usrid": f"{u['accent']}+{u['variant']}", "status": "correct"}
        metadata.setdefault(key, {"recordings": {}})["recordings"][name] = speaker
    (folder / slurp.AUDIO).mkdir(parents=True)
    (folder / slurp.TEXTS).mkdir(parents=True)
    for split, lines in texts.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
        (folder / slurp.TEXTS / f"{split}.jsonl").write_text(text, encoding="utf-8")
    (folder / slurp.TEXTS / slurp.METADATA).write_text(json.dumps(metadata))


def main(arguments=None):
    """Makes the corpus that the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m speechbrain_summarymixing.corpora.slurp_voices",
        description="Speaks SLURP's published sentences of devel.jsonl and test.jsonl by espeak-ng "
        "into a corpus in SLURP's layout, with the extra split test_voices.",
    )
    parser.add_argument("slurp_folder", help="holds dataset/slurp/devel.jsonl and test.jsonl")
    parser.add_argument("output_folder", help="where the corpus goes")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument(
        "--recordings", type=int, default=4, help="of each sentence of train (default: 4)"
    )
    parser.add_argument(
        "--all_sentences",
        action="store_true",
        help="train on test.jsonl's sentences too: then test has unseen voices only",
    )
    parser.add_argument("--workers", type=int, help="processes at a time (default: one a core)")
    try:
        print(build(**vars(parser.parse_args(arguments))))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
