"""The mini corpus: spoken digits, times and commands that the project makes for itself.

Text from `mini_text`, voices of espeak-ng (`espeak`), in LibriSpeech's layout. No voice variant
and no sentence of one split occurs in another.
"""

import errno
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from tqdm import tqdm

from speechbrain_summarymixing.corpora import librispeech
from speechbrain_summarymixing.corpora.mini_text import sentence, split_of
from speechbrain_summarymixing.errors import UserError

VERSION = 1  # of what the same seed makes
SPLITS = ("train", "dev", "test")
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-029")
CHUNK = 80  # utterances spoken by one process
STAMP = "mini.json"
# Of espeak-ng's variants, "Mr serious" has a space in its name, which voice names cannot have.
HELD_OUT = {"test": 24, "dev": 10}  # variants; the others are for training


def variants():
    """Returns the names of espeak-ng's voice variants.

    Raises
    ------
    UserError
        If the extra ``mini`` is not installed.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError(
            "the mini corpus is spoken by espeak-ng (GPL), which is not installed: "
            'pip install "speechbrain-summarymixing[mini]", or in a checkout '
            "pip install -e '.[mini]'; or train on your own speech (--train_csv, --corpus)"
        )
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if " " not in path.name)


def plan(*, seed=1234, train=4000, dev=120, test=200):
    """Chooses the words and the voice of every utterance.

    Arguments
    ---------
    seed : int
    train, dev, test : int
        Numbers of utterances.

    Returns
    -------
    list of dict
        With split, speaker, variant, accent, text, seed and file, relative to the corpus.

    Raises
    ------
    UserError
        If a number is not positive, or espeak-ng is missing.
    """
    counts = {"train": train, "dev": dev, "test": test}
    for split, count in counts.items():
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise UserError(f"mini corpus: {split} is {count}, but must be 1 to 100000 utterances")
    names = variants()
    Random(seed).shuffle(names)
    utterances = []
    for number, split in enumerate(SPLITS):
        held = HELD_OUT.get(split, len(names) - sum(HELD_OUT.values()))
        mine, names = names[:held], names[held:]
        voices = [(variant, accent) for variant in mine for accent in ACCENTS]
        Random(f"{seed} {split}").shuffle(voices)
        for index in range(counts[split]):
            voice = index % len(voices)
            speaker = 1000 * (number + 1) + voice
            key = f"{speaker}-1-{index // len(voices):04d}"
            utterances.append(
                {
                    "split": split,
                    "speaker": speaker,
                    "variant": voices[voice][0],
                    "accent": voices[voice][1],
                    "text": _draw(split, f"{seed} {split} {index}"),
                    "seed": [seed, number, index],
                    "file": f"{split}/{speaker}/1/{key}.flac",
                }
            )
    return utterances


def _draw(split, seed):
    random = Random(seed)
    while split_of(text := sentence(random)) != split:
        pass
    return text


def build(data_folder, *, seed=1234, train=4000, dev=120, test=200, workers=None, progress=True):
    """Makes the corpus, unless it is there and whole.

    Arguments
    ---------
    data_folder : str or Path
        Where it lies; a folder that holds anything else is refused.
    seed, train, dev, test : int
        As in `plan`; the same give the same bytes.
    workers : int or None
        Processes at a time; None: one for each core.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        data_folder.

    Raises
    ------
    UserError
        If espeak-ng is missing or fails, the folder holds something else, or the disk is full.
    """
    folder = Path(data_folder)
    settings = {"version": VERSION, "seed": seed, "train": train, "dev": dev, "test": test}
    if _is_whole(folder, settings):
        return folder
    if folder.exists() and not (folder / STAMP).is_file() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files that are not the mini corpus, and nothing is overwritten: "
            "give another --data_folder, or name its corpus (--corpus)"
        )
    utterances = plan(seed=seed, train=train, dev=dev, test=test)
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        _write_texts(new, utterances)
        _speak(new, utterances, workers, progress)
        settings["espeak"] = importlib.metadata.version("espeakng-loader")
        settings["bytes"] = {u["file"]: (new / u["file"]).stat().st_size for u in utterances}
        (new / STAMP).write_text(json.dumps(settings, indent=0))
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left for the mini corpus in {folder.parent}: about "
            f"{len(utterances) * 0.08:.0f} MB are needed; free some, or give another --data_folder"
        ) from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(new, folder)
    return folder


def prepare(data_folder, save_folder, *, splits=SPLITS, workers=None, progress=True, **options):
    """Makes the corpus if needed, and CSV manifests of its splits.

    Arguments
    ---------
    data_folder : str or Path
        As in `build`.
    save_folder : str or Path
        Where the manifests go.
    splits : sequence of str
    workers, progress, **options
        As in `build`.

    Returns
    -------
    dict
        From each split to its manifest's path.
    """
    folder = build(data_folder, workers=workers, progress=progress, **options)
    return librispeech.prepare(
        folder, save_folder, splits=splits, workers=workers, progress=progress
    )


def _is_whole(folder, settings):
    """Whether a folder holds a corpus of these settings with files of the recorded sizes."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        return all(stamp[key] == value for key, value in settings.items()) and all(
            os.stat(folder / file).st_size == size for file, size in stamp["bytes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _write_texts(folder, utterances):
    """Writes LibriSpeech's transcripts, and SPEAKERS.TXT."""
    chapters, speakers = {}, {}
    for u in utterances:
        chapters.setdefault(Path(u["file"]).parent, []).append(u)
        speakers[u["speaker"]] = f"{u['speaker']} | {u['split']} | {u['variant']} | {u['accent']}"
    for chapter, rows in chapters.items():
        (folder / chapter).mkdir(parents=True)
        name = "-".join(chapter.parts[1:])
        lines = [f"{Path(u['file']).stem} {u['text']}\n" for u in rows]
        (folder / chapter / f"{name}.trans.txt").write_text("".join(lines))
    text = "".join(line + "\n" for _, line in sorted(speakers.items()))
    (folder / "SPEAKERS.TXT").write_text(text)


def _speak(folder, utterances, workers, progress):
    """Speaks all utterances, each chunk in a fresh process."""
    chunks = [utterances[i : i + CHUNK] for i in range(0, len(utterances), CHUNK)]
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        tqdm(
            total=len(utterances), unit="utt", desc="making the mini corpus", disable=not progress
        ) as bar,
    ):
        for count in pool.map(lambda chunk: _speak_chunk(folder, chunk), chunks):
            bar.update(count)


def _speak_chunk(folder, chunk):
    rows = [{**u, "file": str(folder / u["file"])} for u in chunk]
    process = subprocess.run(
        [sys.executable, "-m", "speechbrain_summarymixing.corpora.espeak"],
        input=json.dumps(rows),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if process.returncode != 0:
        reason = (process.stderr.strip().splitlines() or ["killed"])[-1]
        if "No space left" in process.stderr:
            raise OSError(errno.ENOSPC, reason)
        raise UserError(
            f"espeak-ng failed while it spoke {rows[0]['file']} and following ({reason}): run the "
            "same command again; if it stays, reinstall espeakng-loader"
        )
    return len(rows)
