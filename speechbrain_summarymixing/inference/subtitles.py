"""Words with their times as a table, or as subtitles: SubRip (srt) and WebVTT (vtt)."""

CHARACTERS = 42  # of a cue, as broadcasters have on a line
SECONDS = 7.0  # that a cue lasts, at most
SHOWN = 1.0  # that it lasts at least, where the next leaves so much
PAUSE = 0.5  # without a token, after which another cue begins
ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def tsv(words):
    """Returns words as a table: begin and end in seconds, confidence and word between tabs.

    Arguments
    ---------
    words : sequence of Word
    """
    rows = [f"{w.begin:.3f}\t{w.end:.3f}\t{w.confidence:.4f}\t{w.word}" for w in words]
    return "\n".join(["begin\tend\tconfidence\tword", *rows]) + "\n"


def srt(words):
    """Returns words as SubRip has subtitles; see `cues`."""
    return "\n".join(
        f"{number}\n{_clock(begin, ',')} --> {_clock(end, ',')}\n{text}\n"
        for number, (begin, end, text) in enumerate(cues(words), 1)
    )


def vtt(words):
    """Returns words as WebVTT has subtitles; see `cues`."""
    shown = [
        f"{_clock(begin, '.')} --> {_clock(end, '.')}\n{text.translate(ESCAPED)}\n"
        for begin, end, text in cues(words)
    ]
    return "\n".join(["WEBVTT\n", *shown])


def cues(words):
    """Parts words into lines that can be read, at pauses where there are some.

    Arguments
    ---------
    words : sequence of Word
        In the order of their times.

    Returns
    -------
    list of tuple
        (begin, end, text): seconds, which do not overlap, and a line of `CHARACTERS` at most,
        unless a word is longer.
    """
    groups = []
    for word in words:
        if not groups or not _fits(groups[-1], word):
            groups.append([])
        groups[-1].append(word)
    begins = [group[0].begin for group in groups]
    return [
        (begin, min(max(group[-1].end, begin + SHOWN), following), " ".join(w.word for w in group))
        for group, begin, following in zip(groups, begins, [*begins[1:], float("inf")])
    ]


def _fits(group, word):
    characters = sum(len(one.word) + 1 for one in group) + len(word.word)
    return (
        characters <= CHARACTERS
        and word.end - group[0].begin <= SECONDS
        and word.begin - group[-1].end < PAUSE
    )


def _clock(seconds, point):
    milliseconds = round(1000 * seconds)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
