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
from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.mini_text import sentence, split_of
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import locked

VERSION = 1  # of what the same seed makes
SPLITS = ("train", "dev", "test")
LARGE = "test-large"  # begins with the words and voices of "test"; IDs are of a chapter of its own
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
            "the corpora made here are spoken by espeak-ng (GPL), which is not installed: "
            'pip install "speechbrain-summarymixing[mini]", or in a checkout '
            "pip install -e '.[mini]'; or train on your own speech (--train_csv, --corpus)"
        )
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if " " not in path.name)


def voices(seed):
    """Deals espeak-ng's voices out to the splits: no variant of one occurs in another.

    Arguments
    ---------
    seed : int

    Returns
    -------
    dict
        From "train", "dev" and "test" to their (variant, accent) pairs, shuffled.

    Raises
    ------
    UserError
        If espeak-ng is missing.
    """
    names, dealt = variants(), {}
    Random(seed).shuffle(names)
    for split in SPLITS:
        held = HELD_OUT.get(split, len(names) - sum(HELD_OUT.values()))
        mine, names = names[:held], names[held:]
        dealt[split] = [(variant, accent) for variant in mine for accent in ACCENTS]
        Random(f"{seed} {split}").shuffle(dealt[split])
    return dealt


def plan(*, seed=1234, train=4000, dev=120, test=200, test_large=2000):
    """Chooses the words and the voice of every utterance.

    Arguments
    ---------
    seed : int
    train, dev, test, test_large : int
        Numbers of utterances; the first of "test-large" have the words and voices of "test".

    Returns
    -------
    list of dict
        With split, speaker, variant, accent, text, seed and file, relative to the corpus.

    Raises
    ------
    UserError
        If a number is not positive, or espeak-ng is missing.
    """
    counts = {"train": train, "dev": dev, "test": test, LARGE: test_large}
    for split, count in counts.items():
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise UserError(f"mini corpus: {split} is {count}, but must be 1 to 100000 utterances")
    dealt, utterances = voices(seed), []
    for split, count in counts.items():
        like, chapter = ("test", 2) if split == LARGE else (split, 1)
        number, pairs = SPLITS.index(like), dealt[like]
        for index in range(count):
            voice = index % len(pairs)
            speaker = 1000 * (number + 1) + voice
            key = f"{speaker}-{chapter}-{index // len(pairs):04d}"
            utterances.append(
                {
                    "split": split,
                    "speaker": speaker,
                    "variant": pairs[voice][0],
                    "accent": pairs[voice][1],
                    "text": _draw(like, f"{seed} {like} {index}"),
                    "seed": [seed, number, index],
                    "file": f"{split}/{speaker}/{chapter}/{key}.flac",
                }
            )
    return utterances


def _draw(split, seed):
    random = Random(seed)
    while split_of(text := sentence(random)) != split:
        pass
    return text


def build(
    data_folder,
    *,
    seed=1234,
    train=4000,
    dev=120,
    test=200,
    test_large=2000,
    workers=None,
    progress=True,
):
    """Makes the corpus, unless it is there and whole.

    Arguments
    ---------
    data_folder : str or Path
        Where it lies; a folder that holds anything else is refused.
    seed, train, dev, test, test_large : int
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
    sizes = {"train": train, "dev": dev, "test": test, "test_large": test_large}
    return make_corpus(
        data_folder,
        {"version": VERSION, "seed": seed, **sizes},
        lambda: plan(seed=seed, **sizes),
        _write_texts,
        name="the mini corpus",
        stamp=STAMP,
        elsewhere="give another --data_folder, or name its corpus (--corpus)",
        workers=workers,
        progress=progress,
    )


def make_corpus(
    folder, settings, plan, write_texts, *, name, stamp, elsewhere, workers=None, progress=True
):
    """Makes a corpus that espeak-ng speaks, whole or not at all, unless it is there and whole.

    Arguments
    ---------
    folder : str or Path
        Where it lies; a folder that holds anything else is refused.
    settings : dict
        What it is made from, of JSON's types: other settings make it anew.
    plan : callable
        Returns the utterances: dicts with text, accent, variant, seed and file, relative to the
        folder, and perhaps longest (see `espeak.utter`).
    write_texts : callable
        Given a folder and the utterances, writes what goes beside the audio, and makes the
        audio's folders.
    name : str
        What messages call the corpus.
    stamp : str
        File that tells, once the corpus is whole, what it is made from.
    elsewhere : str
        What to do where the folder holds something else.
    workers, progress
        As in `build`.

    Returns
    -------
    Path
        folder.

    Raises
    ------
    UserError
        As in `build`.
    """
    folder = Path(folder)
    if _is_whole(folder, stamp, settings):
        return folder
    with locked(folder.with_name(f".{folder.name}.lock")):  # another may be making it
        if not _is_whole(folder, stamp, settings):
            _make(folder, settings, plan, write_texts, name, stamp, elsewhere, workers, progress)
    return folder


def _make(folder, settings, plan, write_texts, name, stamp, elsewhere, workers, progress):
    if folder.exists() and not (folder / stamp).is_file() and any(folder.iterdir()):
        raise UserError(
            f"{folder} holds files that are not {name}, and nothing is overwritten: {elsewhere}"
        )
    utterances = plan()
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    try:
        write_texts(new, utterances)
        _speak(new, utterances, workers, progress, name)
        made = {
            **settings,
            "espeak": importlib.metadata.version("espeakng-loader"),
            "bytes": {u["file"]: (new / u["file"]).stat().st_size for u in utterances},
        }
        (new / stamp).write_text(json.dumps(made, indent=0))
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"no space left for {name} in {folder.parent}: about "
            f"{len(utterances) * 0.08:.0f} MB are needed; free some, or take another disk"
        ) from error
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(new, folder)


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


def _is_whole(folder, stamp, settings):
    """Whether a folder holds a corpus of these settings with files of the recorded sizes."""
    try:
        made = json.loads((folder / stamp).read_text())
        return all(made[key] == value for key, value in settings.items()) and all(
            os.stat(folder / file).st_size == size for file, size in made["bytes"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _write_texts(folder, utterances):
    """Writes LibriSpeech's transcripts, and SPEAKERS.TXT."""
    chapters, speakers = {}, {}
    for u in utterances:
        chapters.setdefault(Path(u["file"]).parent, []).append(u)
        whose = "test" if u["split"] == LARGE else u["split"]
        speakers[u["speaker"]] = f"{u['speaker']} | {whose} | {u['variant']} | {u['accent']}"
    for chapter, rows in chapters.items():
        (folder / chapter).mkdir(parents=True)
        name = "-".join(chapter.parts[1:])
        lines = [f"{Path(u['file']).stem} {u['text']}\n" for u in rows]
        (folder / chapter / f"{name}.trans.txt").write_text("".join(lines))
    text = "".join(line + "\n" for _, line in sorted(speakers.items()))
    (folder / "SPEAKERS.TXT").write_text(text)


def _speak(folder, utterances, workers, progress, name):
    """Speaks all utterances, each chunk in a fresh process."""
    chunks = [utterances[i : i + CHUNK] for i in range(0, len(utterances), CHUNK)]
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        tqdm(total=len(utterances), unit="utt", desc=f"making {name}", disable=not progress) as bar,
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


CORPUS = Corpus(
    "mini",
    prepare,
    ["train"],
    ["dev"],
    ["test"],
    {"train": "mini_train_utterances", "test_large": "mini_test_large_utterances"},
)
