"""Times of words: of the synthesiser's, of segments, and as subtitles."""

import json
import re
from statistics import median

import pytest
import soundfile
from tiny import EXAMPLE, FILES, SAID

from speechbrain_summarymixing import cli
from speechbrain_summarymixing.corpora import mini
from speechbrain_summarymixing.inference.confidence import Word
from speechbrain_summarymixing.inference.subtitles import cues, srt, tsv, vtt
from speechbrain_summarymixing.inference.transcribe import load_model, transcribe


@pytest.fixture(scope="module")
def model():
    return load_model(EXAMPLE, "cpu")


def begins(model, folder, utterances):
    """(found, spoken) begin of each word that the synthesiser tells, of what is recognised."""
    from speechbrain_summarymixing.corpora.espeak import SAMPLE_RATE, Espeak, utter

    espeak, spoken, files = Espeak(), [], []
    for index, utterance in enumerate(utterances):
        files.append(str(folder / f"{index}.flac"))
        soundfile.write(files[-1], utter(espeak, utterance), SAMPLE_RATE)
        spoken.append(espeak.begins)
    pairs, right = [], 0
    found = transcribe(model, files, decoder="greedy")
    for utterance, told, transcript in zip(utterances, spoken, found):
        if transcript.text == utterance["text"]:
            right += 1
            places = [match.start() for match in re.finditer(r"\S+", utterance["text"])]
            pairs += [(w.begin, told[p]) for w, p in zip(transcript.words, places) if p in told]
    assert right > 0.5 * len(utterances) and len(pairs) > 3 * right
    return pairs


def test_words_begin_where_the_synthesiser_says(model, tmp_path):
    pytest.importorskip("espeakng_loader", reason="the mini corpus needs the extra [mini]")
    plan = mini.plan(train=1, dev=40, test=60, test_large=1)
    of = {split: [u for u in plan if u["split"] == split] for split in ("dev", "test")}
    found = {}
    for split, utterances in of.items():
        (tmp_path / split).mkdir()
        found[split] = begins(model, tmp_path / split, utterances)
    offset = median(a - b for a, b in found["dev"])
    errors = [abs(a - b - offset) for a, b in found["test"]]
    print(f"offset {offset:.3f} s, median error {median(errors):.3f} s of {len(errors)}")
    assert median(errors) <= 0.06
