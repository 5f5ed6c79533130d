"""Data sets of Hugging Face's datasets, from its hub or a folder; their audio by our own reader."""

import json
import re
from functools import partial
from pathlib import Path

from tqdm import tqdm

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import made_once, placed, write_atomically

AUDIO = "audio"
TEXTS = ("text", "sentence", "transcription")
SPEAKERS = ("speaker_id", "speaker", "client_id")
UTTERANCES = "utterances.json"  # in a folder of audio that is whole
AT_ONCE = 100  # utterances in memory, with their audio


def prepare(data_folder, save_folder, *, splits, streaming=False, workers=None, progress=True):
    """Makes the manifests of a data set, through which it goes once, until the data set changes.

    Audio that the data set holds itself is written to files.

    Arguments
    ---------
    data_folder : str or Path
        A folder that ``save_to_disk`` wrote, or what ``load_dataset`` takes: a folder, or a name on
        the hub, where a configuration may follow after a colon.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned; audio goes to ``<split>-audio``.
    splits : sequence of str
        As the data set names them.
    streaming : bool
        Nothing of what ``load_dataset`` takes is kept but the files of audio.

    Raises
    ------
    UserError
        If datasets is not installed, a data set, split or column is missing, an utterance has no
        audio, or a stream breaks off.
    """
    manifests = {}
    for split in splits:
        data, version = _load(str(data_folder), split, streaming)
        where = f"{data_folder}, {split}"
        source = {"fingerprint": version, "columns": _columns(data, where)}
        name = re.sub(r"[^\w-]+", "-", split).strip("-")  # of files and IDs
        folder = Path(save_folder).absolute() / f"{name}-audio"
        take = partial(_take, data, source["columns"], folder, name, where, progress)
        made_once(folder / UTTERANCES, source, take)
        rows = [
            (key, str(folder / wav) if written else placed(wav), who, said)
            for key, written, wav, who, said in json.loads((folder / UTTERANCES).read_bytes())
        ]
        manifests[split] = remade(
            Path(save_folder) / f"{name}.csv",
            [row[1] for row in rows],
            partial(probe, rows, workers=workers, progress=progress, description=split),
            source,
        )
    return manifests


def _load(name, split, streaming):
    """A split, and a text that changes with it."""
    try:
        from datasets import Audio, load_dataset, load_dataset_builder, load_from_disk
    except ImportError as error:
        raise UserError(
            "--corpus huggingface needs datasets, which is not installed: "
            'pip install "speechbrain-summarymixing[datasets]"'
        ) from error
    saved = sorted(path.parent.name for path in Path(name).glob("*/state.json"))
    if saved and split not in saved:
        raise UserError(f"{name}: no split {split}; it holds {', '.join(saved)}: name one of them")
    try:
        place, configuration, version = name, None, None
        if not Path(name).is_dir():
            place, _, configuration = name.partition(":")
        if saved:
            data = load_from_disk(str(Path(name) / split))
        elif streaming:
            builder = load_dataset_builder(place, configuration or None)
            data, version = builder.as_streaming_dataset(split), builder.hash
        else:
            data = load_dataset(place, configuration or None, split=split)
        if AUDIO in (data.features or {}):  # its own decoder needs torchcodec
            data = data.cast_column(AUDIO, Audio(decode=False))
        return data, version or data._fingerprint
    except Exception as error:  # of the hub's client, pyarrow and datasets
        raise UserError(
            f"--data_folder {name}: split {split} cannot be loaded by datasets "
            f"({_cause(error)}): give a folder that save_to_disk wrote, or what load_dataset "
            "takes, as owner/name or owner/name:configuration"
        ) from error


def _cause(error):
    while error.__cause__ is not None:
        error = error.__cause__
    return reason_of(error)


def _columns(data, where):
    """Columns of audio, transcript and speaker, which is None where there is none."""
    if data.features is None:  # of a stream of text files
        raise UserError(
            f"{where}: its files do not tell their columns, as those of parquet do: give tables of "
            "paths as --train_csv, --valid_csv and --test_csv"
        )
    found = list(data.features)
    text = next((name for name in TEXTS if name in found), None)
    if AUDIO not in found or text is None:
        raise UserError(
            f"{where}: has the columns {', '.join(found)}, but must have {AUDIO} and one of "
            f"{', '.join(TEXTS)}: rename them (rename_column)"
        )
    return [AUDIO, text, next((name for name in SPEAKERS if name in found), None)]


def _take(data, columns, folder, name, where, progress):
    """Writes the audio that a data set holds, and then a list of its utterances.

    Each is its ID, whether its audio is written, the file's name or the path elsewhere, the speaker
    and the transcript.
    """
    import pyarrow.compute

    folder.mkdir(parents=True, exist_ok=True)
    audio, text, speaker = columns
    rows, without = [], []
    with tqdm(
        total=getattr(data, "num_rows", None), desc=name, unit="utt", disable=not progress
    ) as bar:
        for table in _tables(data.select_columns(list(filter(None, columns))), where):
            paths = pyarrow.compute.struct_field(table[audio], "path").to_pylist()
            contents = pyarrow.compute.struct_field(table[audio], "bytes")
            texts = table[text].to_pylist()
            speakers = table[speaker].to_pylist() if speaker is not None else [None] * len(texts)
            for path, content, said, who in zip(paths, contents, texts, speakers):
                key, wav = f"{name}-{len(rows):07d}", path
                if content.is_valid:
                    wav = f"{key}{Path(path or '').suffix or '.wav'}"
                    (folder / wav).write_bytes(content.as_py())
                elif path is None or "://" in path:
                    without.append(f"{key}: {path or 'nowhere'}")
                rows.append(
                    (key, content.is_valid, wav, "" if who is None else str(who), said or "")
                )
                bar.update()
    if without or not rows:
        raise UserError(
            listed(f"{where}: {len(without)} of {len(rows)} utterances have no audio", without)
            + "\nleave these out (filter), or take another split"
        )
    write_atomically(folder / UTTERANCES, json.dumps(rows))


def _tables(data, where):
    try:
        yield from data.with_format("arrow").iter(AT_ONCE)
    except Exception as error:  # as above, when it is streamed
        raise UserError(
            f"{where}: breaks off ({_cause(error)}): run the same command again, which begins it "
            "anew"
        ) from error


CORPUS = Corpus(
    "huggingface",
    prepare,
    *(["train"], ["validation"], ["test"]),
    {"streaming": "hf_streaming"},
)
