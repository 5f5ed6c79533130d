"""A few files of noise in the layouts in which corpora are given out."""

import numpy
import soundfile

HANZI = {
    "W0121": "甚至 出现 交易 几乎 停滞 的 情况",
    "W0122": "一二 线 城市",
    "W0123": "而 对 楼市",
}
STM = """\
;; a comment
{talk} 1 {talk} 0.00 0.50 <o,f0,male> ignore_time_segment_in_scoring

{talk} 1 {talk} 0.50 1.73 <o,f0,male> it 's {{NOISE}} what we(2) don 't know <unk> <sil> ({talk})
{talk} 1 {talk} 1.80 2.90 <F0_M> the '60s were {{UH}} y 'all 's i 'cause
{talk} 1 {talk} 2.90 3.00 <o,f0,male> {{BREATH}}
"""
PLENARY = "20090112-0900-PLENARY-{number}-en_20090112-17:0{number}:00_{number}"
HEADER = "id raw_text normalized_text speaker_id split gender is_gold_transcript accent".split()


def noise(path, seconds, **options):
    """Writes a file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = numpy.random.default_rng(0).normal(0, 0.1, round(16000 * seconds))
    soundfile.write(path, samples, 16000, **options)


def aishell(root):
    """Two speakers a split, three utterances each, one of them without a transcript."""
    lines = ["BAC009S0999W0121 没有 声音"]
    speakers = {"train": ("S0002", "S0003"), "dev": ("S0724", "S0725"), "test": ("S0764", "S0765")}
    for split, names in speakers.items():
        for name in names:
            for word, text in HANZI.items():
                noise(root / "wav" / split / name / f"BAC009{name}{word}.wav", 0.5)
                lines.append(f"BAC009{name}{word} {text}")
    lines.remove(f"BAC009S0003W0123 {HANZI['W0123']}")
    (root / "transcript").mkdir()
    text = root / "transcript" / "aishell_transcript_v0.8.txt"
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def tedlium(root):
    """Two talks of 3 s a split, each with two segments of words."""
    for split in ("train", "dev", "test"):
        for speaker in ("AlGore", "DavidPogue"):
            talk = f"{speaker}_2006{split}"
            noise(root / split / "sph" / f"{talk}.sph", 3, format="NIST", subtype="PCM_16")
            stm = root / split / "stm" / f"{talk}.stm"
            stm.parent.mkdir(exist_ok=True)
            stm.write_text(STM.format(talk=talk), encoding="utf-8")
    return root


def voxpopuli(root):
    """Three utterances a split, one of them without words."""
    for start, split in enumerate(("train", "dev", "test")):
        lines = [HEADER]
        for index, text in enumerate(('thank you "mr" president', "it's 5 o'clock", "")):
            key = PLENARY.format(number=3 * start + index)
            noise(root / "2009" / f"{key}.ogg", 0.5, format="OGG", subtype="VORBIS")
            speaker = ("124737", "None", "28227")[index]
            lines.append([key, text.title(), text, speaker, split, "female", "False", "None"])
        table = "".join("\t".join(line) + "\n" for line in lines)
        (root / f"asr_{split}.tsv").write_text(table, encoding="utf-8")
    return root
