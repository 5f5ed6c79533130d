"""LibriSpeech's layout: split/speaker/chapter/*.flac with a *.trans.txt in each chapter."""

from pathlib import Path

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import read_lines


def prepare(data_folder, save_folder, *, splits, workers=None, progress=True):
    """Makes the manifests of splits, or takes those already made from the same files.

    Arguments
    ---------
    data_folder : str or Path
        Holds a folder for each split.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Such as "train-clean-100".

    Raises
    ------
    UserError
        If a split is missing, a file of transcripts cannot be read, an ID has several audio files
        or transcripts, or audio and transcripts do not match.
    """
    data_folder = Path(data_folder).absolute()
    manifests = {}
    for split in splits:
        folder = data_folder / split
        if not folder.is_dir():
            found = sorted(p.name for p in data_folder.glob("*/") if p.is_dir())
            raise UserError(
                f"{data_folder}: no split {split}; it holds {', '.join(found) or 'no folder'}: "
                "give LibriSpeech's folder as --data_folder and its splits as --train_splits, "
                "--valid_splits and --test_splits"
            )
        audio = sorted(folder.glob("*/*/*.flac"))
        texts = sorted(folder.glob("*/*/*.trans.txt"))

        def make(split=split, audio=audio, texts=texts):
            rows = _matched(split, _by_id(audio), _transcripts(texts))
            return probe(rows, workers=workers, progress=progress, description=split)

        manifests[split] = remade(Path(save_folder) / f"{split}.csv", [*audio, *texts], make)
    return manifests


def _by_id(audio):
    paths = {}
    for path in audio:
        paths.setdefault(path.stem, []).append(path)
    return paths


def _transcripts(files):
    """From each ID to its transcripts, and from these to a file that has them."""
    words = {}
    for file in files:
        for line in read_lines(file):
            key, _, text = line.strip().partition(" ")
            if key:
                words.setdefault(key, {})[text.strip()] = file
    return words


def _matched(split, audio, words):
    """(ID, path, speaker, transcript) of each utterance."""
    double = [
        f"{key}: {', '.join(map(str, paths))}" for key, paths in audio.items() if len(paths) > 1
    ] + [
        f"{key}: " + ", ".join(f"{text!r} in {file}" for text, file in texts.items())
        for key, texts in words.items()
        if len(texts) > 1
    ]
    if double:
        raise UserError(
            listed(f"{split}: IDs with several audio files or transcripts", double)
            + "\nan ID must have one of each: take out the others, or unpack the corpus again"
        )
    lone = [f"{key}: no transcript" for key in sorted(audio.keys() - words.keys())]
    lone += [f"{key}: no audio" for key in sorted(words.keys() - audio.keys())]
    if lone or not audio:
        raise UserError(
            listed(f"{split}: {len(audio)} audio files and {len(words)} transcripts", lone)
            + "\nthe corpus is not whole: unpack it again"
        )
    return [
        (key, str(path), key.split("-")[0], next(iter(words[key])))
        for key, (path,) in audio.items()
    ]


CORPUS = Corpus(
    "librispeech",
    prepare,
    ["train-clean-100", "train-clean-360", "train-other-500"],
    ["dev-clean"],
    ["test-clean", "test-other"],
)
