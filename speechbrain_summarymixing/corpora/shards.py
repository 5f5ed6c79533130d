"""Shards: a corpus as tar files, read from end to end instead of file by file.

The layout is webdataset's: an utterance's audio, as it is, and its JSON stand one after the other
under the same name, its ID.
"""

import io
import json
import random
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from speechbrain.dataio.dataloader import WDS_AVAILABLE
from tqdm import tqdm

from speechbrain_summarymixing.audio import audio_info, flac_of, read_audio
from speechbrain_summarymixing.corpora.checks import read_checked
from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import new_folder

if WDS_AVAILABLE:
    import webdataset
    from webdataset.shardlists import expand_urls
    from webdataset.tariterators import group_by_keys

SHUFFLING = 0  # seed: manifests are sorted by speaker, training wants them mixed


def write_shards(
    manifest,
    folder,
    *,
    shard_seconds=3600.0,
    utterances_per_shard=None,
    data_root=None,
    progress=True,
):
    """Writes the utterances of a manifest, shuffled, into tar files; all or none.

    The same manifest and audio make the same bytes.

    Arguments
    ---------
    manifest : str or Path
        As for `corpora.manifest.read_manifest`; a segment is cut out, as flac.
    folder : str or Path
        Made anew: ``shard-000000.tar``, … and ``shards.json``, which counts them.
    shard_seconds : float
        A shard is full when its audio has so many seconds.
    utterances_per_shard : int or None
        If given, a shard is full when it has so many utterances, whatever their length.
    data_root : str or Path or None
        What ``$data_root`` in the manifest stands for.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        What ``shards.json`` holds: numbers of shards and utterances, seconds of audio.

    Raises
    ------
    UserError
        If the folder exists, an utterance cannot be used or the disk is full.
    """
    if utterances_per_shard is not None and utterances_per_shard < 1:
        raise UserError(f"--utterances-per-shard is {utterances_per_shard}, but must be 1 or more")
    if not shard_seconds > 0:
        raise UserError(f"--shard-seconds is {shard_seconds}, but must be above 0")
    folder = Path(folder)
    with new_folder(folder) as new:
        utterances = read_checked(manifest, data_root=data_root, progress=progress)
        _check_names(utterances)
        random.Random(SHUFFLING).shuffle(utterances)
        shards = list(_shards(utterances, shard_seconds, utterances_per_shard))
        counts = {
            "shards": len(shards),
            "utterances": len(utterances),
            "seconds": round(sum(u.duration for u in utterances), 3),
        }
        with tqdm(total=len(utterances), unit="utt", disable=not progress) as bar:
            for index, shard in enumerate(shards):
                with tarfile.open(new / f"shard-{index:06d}.tar", "w") as tar:
                    for utterance in shard:
                        _add(tar, utterance)
                        bar.update()
        (new / "shards.json").write_text(json.dumps(counts) + "\n", encoding="utf-8")
    return counts


def _shards(utterances, shard_seconds, utterances_per_shard):
    shard, seconds = [], 0.0
    for utterance in utterances:
        shard.append(utterance)
        seconds += utterance.duration
        full = seconds >= shard_seconds
        if utterances_per_shard is not None:
            full = len(shard) >= utterances_per_shard
        if full:
            yield shard
            shard, seconds = [], 0.0
    if shard:
        yield shard


def _check_names(utterances):
    unfit = [f"{u.ID}: {u.wav}" for u in utterances if set("./") & set(u.ID) or not _format(u)]
    if unfit:
        raise UserError(
            listed(f"{len(unfit)} utterances cannot be named in a shard", unfit)
            + "\nan ID must have no dot and no slash, and a file must end as in .wav: rename these"
        )


def _format(utterance):
    return "flac" if utterance.is_segment else Path(utterance.wav).suffix[1:].lower()


def _content(utterance):
    if not utterance.is_segment:
        return Path(utterance.wav).read_bytes()
    rate = audio_info(utterance.wav).sample_rate
    return flac_of(read_audio(utterance.wav, rate, **utterance.part), rate, bits=24)


def _add(tar, utterance):
    facts = {"duration": utterance.duration, "spk_id": utterance.spk_id, "wrd": utterance.wrd}
    for name, content in (
        (_format(utterance), _content(utterance)),
        ("json", json.dumps(facts, ensure_ascii=False).encode()),
    ):
        entry = tarfile.TarInfo(f"{utterance.ID}.{name}")  # no owner, no time
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))


@dataclass(frozen=True)
class ShardUtterance:
    """An utterance as it lies in a shard.

    Arguments
    ---------
    ID : str
    shard : str
        URL of the shard.
    duration : float
        In seconds.
    wrd : str
        Transcript.
    audio : bytes
        The content of an audio file.
    """

    ID: str
    shard: str
    duration: float
    wrd: str
    audio: bytes

    def __str__(self):
        return f"{self.ID} in {self.shard}"


def urls_of(pattern):
    """Returns the shards that a pattern names.

    Arguments
    ---------
    pattern : str
        As webdataset takes it: paths, URLs or ``pipe:`` commands with ``{000000..000011}``, more
        than one with ``::`` between them.

    Returns
    -------
    list of str

    Raises
    ------
    UserError
        If webdataset is not installed, or a shard is named twice.
    """
    if not WDS_AVAILABLE:
        raise UserError(
            "--shards needs webdataset and importlib_metadata, which are not both installed: "
            'pip install "speechbrain-summarymixing[shards]"'
        )
    urls = expand_urls(str(pattern))
    if len(set(urls)) < len(urls):
        raise UserError(f"--shards is {pattern}, which names a shard twice: name each once")
    return urls


def read_shard(url, *, audio=True):
    """Reads the utterances of a shard in their order.

    Arguments
    ---------
    url : str
        As webdataset opens it.
    audio : bool
        False skips the audio.

    Yields
    ------
    ShardUtterance

    Raises
    ------
    UserError
        If the shard cannot be opened, is damaged or cut short, or an utterance lacks a part.
    """
    try:
        stream = webdataset.gopen(url)
        try:
            for sample in group_by_keys(_entries(stream, url, audio)):
                yield _utterance(sample)
        except tarfile.TarError:
            _finish(stream)  # a pipe's command tells more
            raise
        _finish(stream)
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{url}: cannot be read as a shard ({reason}): give its path or URL, or write it anew "
            "with summarymixing shard"
        ) from error


def _finish(stream):
    while stream.read(1 << 16):  # a pipe's command must not lack its reader
        pass
    stream.close()


class _StrictTarInfo(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super().fromtarfile(tar)
        except (
            tarfile.InvalidHeaderError,
            tarfile.TruncatedHeaderError,
            tarfile.EmptyHeaderError,
        ) as error:  # after the first entry tarfile takes these for the end
            raise tarfile.ReadError(f"damaged or cut short: {error}") from error


def _entries(stream, url, audio):
    seekable = getattr(stream, "seekable", bool)()
    with tarfile.open(
        fileobj=stream, mode="r:*" if seekable else "r|*", tarinfo=_StrictTarInfo
    ) as tar:
        for entry in tar:
            if entry.isfile():
                wanted = audio or entry.name.endswith(".json")
                content = tar.extractfile(entry).read() if wanted else b""
                yield {"fname": entry.name, "data": content, "__url__": url}


def _utterance(sample):
    key, url = sample["__key__"], sample["__url__"]
    kinds = sorted(kind for kind in sample if not kind.startswith("__"))
    try:
        facts = json.loads(sample["json"])
        [audio] = (sample[kind] for kind in kinds if kind != "json")
        return ShardUtterance(key, url, float(facts["duration"]), str(facts["wrd"]), audio)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{key} in {url}: is {', '.join(kinds)}, but must be an audio file and a JSON with "
            "duration and wrd: write the shard anew with summarymixing shard"
        ) from error
