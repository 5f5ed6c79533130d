"""Cut sets of lhotse: <split>.jsonl.gz, read by lhotse itself; their audio by our own reader."""

import math
from functools import partial
from pathlib import Path

from speechbrain_summarymixing.corpora.corpus import Corpus
from speechbrain_summarymixing.corpora.manifest import listed, probe, remade
from speechbrain_summarymixing.errors import UserError, reason_of
from speechbrain_summarymixing.files import placed

ENDINGS = (".jsonl.gz", ".jsonl")
RATE_ONLY = "Resample"  # of lhotse's transforms: our reader gives any rate


def prepare(data_folder, save_folder, *, splits, workers=None, progress=True):
    """Makes the manifests of cut sets.

    Arguments
    ---------
    data_folder : str or Path
        Holds ``<split>.jsonl.gz`` or ``<split>.jsonl``.
    save_folder, workers, progress
        As in `Corpus`, and so is what is returned.
    splits : sequence of str
        Names of cut sets, such as "train".

    Raises
    ------
    UserError
        If lhotse is not installed, a cut set is missing or cannot be read, or a cut is not one
        supervision, of one channel, in a file.
    """
    folder = Path(data_folder).absolute()
    manifests = {}
    for split in splits:
        paths = [folder / f"{split}{ending}" for ending in ENDINGS]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise UserError(
                f"{folder}: no {split}{ENDINGS[0]}: give a folder of lhotse's cut sets as "
                "--data_folder, and their names as --train_splits, --valid_splits and "
                "--test_splits"
            )
        rows = _rows(path)
        manifests[split] = remade(
            Path(save_folder) / f"{split}.csv",
            [path, *(row[1] for row in rows)],
            partial(probe, rows, workers=workers, progress=progress, description=split),
        )
    return manifests


def _rows(path):
    """(ID, path, speaker, transcript, start, stop, channel) of each cut."""
    rows, unfit = [], []
    for cut in _cuts(path):
        if (reason := _unfit(cut)) is not None:
            unfit.append(f"{cut.id}: {reason}")
            continue
        [supervision], [source] = cut.supervisions, cut.recording.sources
        whole = cut.start == 0 and cut.duration >= cut.recording.duration
        of_several = len(source.channels) > 1
        rows.append(
            (
                cut.id,
                placed(source.source, path.parent),
                supervision.speaker or "",
                supervision.text or "",
                cut.start,
                math.inf if whole else cut.end,
                source.channels.index(cut.channel) if of_several else None,
            )
        )
    if unfit:
        raise UserError(
            listed(f"{path}: {len(unfit)} cuts cannot be used", unfit)
            + "\na cut must be a MonoCut of one supervision, whose audio is that of a channel of a "
            "file: CutSet.trim_to_supervisions and CutSet.save_audios make such"
        )
    if not rows:
        raise UserError(f"{path}: has no cut: give a cut set with at least one")
    return rows


def _cuts(path):
    try:
        from lhotse import CutSet
    except ImportError as error:
        raise UserError(
            "--corpus lhotse needs lhotse, which is not installed: "
            'pip install "speechbrain-summarymixing[lhotse]"'
        ) from error
    try:
        return list(CutSet.from_file(path))
    except Exception as error:  # gzip, JSON and lhotse have many kinds
        raise UserError(
            f"{path}: cannot be read as a cut set ({reason_of(error)}): write it anew with lhotse"
        ) from error


def _unfit(cut):
    """Why a cut cannot be used, or None."""
    if (kind := type(cut).__name__) != "MonoCut":
        return f"is a {kind}"
    if not cut.has_recording:
        return "has no recording"
    if len(cut.supervisions) != 1:
        return f"has {len(cut.supervisions)} supervisions"
    kinds = [source.type for source in cut.recording.sources]
    if kinds != ["file"]:
        return f"its audio is of {', '.join(kinds) or 'nothing'}"
    channels, [supervision] = cut.recording.channel_ids, cut.supervisions
    if len(channels) > 1 and not cut.channel == supervision.channel in channels:
        return (
            f"is of channel {cut.channel}, and its supervision of {supervision.channel}, of a "
            f"recording with {', '.join(map(str, channels))}"
        )
    transforms = [_name(transform) for transform in cut.recording.transforms or []]
    if changes := [name for name in transforms if name != RATE_ONLY]:
        return f"its audio is changed by {', '.join(changes)}"
    return None


def _name(transform):
    return transform["name"] if isinstance(transform, dict) else type(transform).__name__


CORPUS = Corpus("lhotse", prepare, ["train"], ["dev"], ["test"])
