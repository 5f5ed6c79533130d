"""Google Speech Commands' layout: <word>/<speaker>_nohash_<n>.wav and two official lists.

The class of an utterance is in the manifest's column wrd. With the ten commands there are twelve
classes: these, unknown (any other word) and silence (stretches of the background noises).
"""

import logging
from pathlib import Path
from random import Random

import soundfile

from speechbrain_summarymixing.audio import audio_info, read_audio
from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = "unknown", "silence"
NOISES = "_background_noise_"
SAMPLE_RATE = 16000  # Hz, of the corpus
PARTS = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}  # of each noise
SHORTEST_NOISE = 10.0  # seconds: a tenth of it, the smallest part, holds a silence


def prepare(
    data_folder,
    save_folder,
    *,
    splits=SPLITS,
    words="all",
    seed=1234,
    workers=None,
    progress=True,
):
    """Makes the manifests of a set of words.

    Arguments
    ---------
    data_folder : str or Path
        Holds a folder for each word, validation_list.txt and testing_list.txt, whose lines of words
        without a folder are left out.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned; the silences go there too, as audio of a second.
    splits : sequence of str
        Of train, valid and test.
    words : str
        "all" that have a folder (35 in the whole corpus), "commands" (the ten commands, unknown
        and silence), or two or more, such as "yes,no". Of unknown and silence there are as many as
        of a command on average, drawn by the seed, silences from noises of 10 s or more.
    seed : int

    Raises
    ------
    UserError
        If the folder is not the corpus, a split, a word, a listed file or noises are missing, or
        there are fewer than two classes.
    """
    folder, save_folder = Path(data_folder).absolute(), Path(save_folder).absolute()
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise UserError(f"Speech Commands has no split {', '.join(unknown)}: {', '.join(SPLITS)}")
    spoken = _spoken(folder)
    found = sorted({row[3] for rows in spoken.values() for row in rows})
    commands = words == "commands"
    named = dict.fromkeys(word.strip() for word in str(words).split(",") if word.strip())
    chosen = found if words == "all" else COMMANDS if commands else list(named)
    if missing := [word for word in chosen if word not in found]:
        raise UserError(
            f"{folder} has no folder {', '.join(missing)}, but {', '.join(found)}: "
            "change --words or give the whole corpus as --data_folder"
        )
    if len(chosen) < 2:
        raise UserError(
            f"--words is {words!r}, which makes classes of {', '.join(chosen) or 'no word'} alone, "
            f"but there must be 2 or more: give some of {', '.join(found)} with commas between "
            "them, or the whole corpus as --data_folder"
        )
    noises = _noises(folder) if commands else []
    manifests = {}
    for split in splits:
        rows = [row for row in spoken[split] if row[3] in chosen]
        silences = []
        if commands:
            others = [row for row in spoken[split] if row[3] not in chosen]
            share = round(len(rows) / len(COMMANDS))
            drawn = Random(f"{seed} {split}").sample(others, min(share, len(others)))
            rows += [(key, wav, speaker, UNKNOWN) for key, wav, speaker, _ in drawn]
            silences = _silences(noises, split, share, seed)

        def make(rows=rows, silences=silences, split=split):
            quiet = _write_silences(save_folder / SILENCE / split, silences)
            return probe(rows + quiet, workers=workers, progress=progress, description=split)

        manifests[split] = remade(
            save_folder / f"{split}.csv",
            [*(row[1] for row in rows), *noises, *(folder / name for name in LISTS.values())],
            make,
            {
                "rows": [(key, word) for key, _, _, word in rows],
                "silences": silences,
                "silence": str(save_folder / SILENCE),
            },
        )
    return manifests


def _spoken(folder):
    """(ID, path, speaker, word) of the utterances of each split."""
    places = {}
    for split, name in LISTS.items():
        file = folder / name
        if not file.is_file():
            raise UserError(
                f"{file}: no such file: give the folder of Speech Commands, which holds it and a "
                "folder for each word, as --data_folder"
            )
        places |= dict.fromkeys(file.read_text(encoding="utf-8").split(), split)
    rows = {split: [] for split in SPLITS}
    for wav in sorted(folder.glob("[!_]*/*.wav")):
        word, name = wav.parent.name, wav.name
        speaker = wav.stem.partition("_nohash_")[0]
        split = places.pop(f"{word}/{name}", "train")
        rows[split].append((f"{word}-{wav.stem}", str(wav), speaker, word))
    missing = sorted(name for name in places if (folder / name).parent.is_dir())
    if missing:
        raise UserError(
            listed(f"{folder}: {len(missing)} files of its lists are missing", missing)
            + "\nunpack the corpus again, or take the lines out of the lists"
        )
    if places:
        words = ", ".join(sorted({name.partition("/")[0] for name in places}))
        logger.info(
            "%s: no folder %s: %d lines of its lists are left out", folder, words, len(places)
        )
    if empty := [split for split, part in rows.items() if not part]:
        raise UserError(f"{folder}: no <word>/<name>.wav for {', '.join(empty)}: unpack it again")
    return rows


def _noises(folder):
    """Paths of the noises of which every split has a part that holds a silence."""
    noises = sorted(map(str, (folder / NOISES).glob("*.wav")))
    if not noises:
        raise UserError(
            f"{folder / NOISES}: no .wav, of which silence is made: give the whole corpus, or "
            "--words all"
        )
    seconds = {noise: audio_info(noise).seconds for noise in noises}
    short = [noise for noise in noises if seconds[noise] < SHORTEST_NOISE]
    rule = f"shorter than {SHORTEST_NOISE:g} s, of which a tenth holds no silence of a second"
    if len(short) == len(noises):
        raise UserError(
            listed(
                f"{folder / NOISES}: all {len(short)} noises are {rule}",
                [f"{noise}: {seconds[noise]:.1f} s" for noise in short],
            )
            + "\ngive the whole corpus, whose noises last a minute, or --words all"
        )
    if short:
        logger.info(listed(f"{len(short)} noises are left out: {rule}", short))
    return [noise for noise in noises if noise not in short]


def _silences(noises, split, count, seed):
    """(noise, place from 0 to 1 in the split's own part of it) of each silence."""
    random = Random(f"{seed} {SILENCE} {split}")
    return [(random.choice(noises), random.random()) for _ in range(count)]


def _write_silences(folder, silences):
    """Writes a second of noise for each silence, and returns its row."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, read = [], {}
    for index, (noise, place) in enumerate(silences):
        if noise not in read:
            read[noise] = read_audio(noise, SAMPLE_RATE)
        waveform = read[noise]
        first, last = (round(edge * len(waveform)) for edge in PARTS[folder.name])
        start = first + round(place * (last - SAMPLE_RATE - first))
        wav = folder / f"{index:05d}.wav"
        soundfile.write(wav, waveform[start : start + SAMPLE_RATE].numpy(), SAMPLE_RATE)
        rows.append((f"{SILENCE}-{folder.name}-{index:05d}", str(wav), "", SILENCE))
    return rows


CORPUS = Corpus("speechcommands", prepare, ["train"], ["valid"], ["test"], {"words": "words"})
