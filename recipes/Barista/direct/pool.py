#!/usr/bin/env python3
"""Measures the folds of a cross-validation together, each utterance tested once.

python pool.py results/sumformer/fold*
"""

import json
import sys
from pathlib import Path

from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.training import semantics_metrics
from speechbrain_summarymixing.training.experiment import errors_reported


def pool(folders):
    """Returns the measures of `semantics_metrics.summarize` over all folds' test sets.

    Arguments
    ---------
    folders : sequence of str or Path
        Output folders of train.py, one for each fold.

    Raises
    ------
    UserError
        If there is no folder, one is without a tested model, or two tested the same utterance.
    """
    if not folders:
        raise UserError("no folder given: write python pool.py results/sumformer/fold*")
    counts, tested = [], {}
    for folder in map(Path, folders):
        predictions, manifest = folder / "predictions_test.jsonl", folder / "manifests" / "test.csv"
        for path in (predictions, manifest):
            if not path.is_file():
                raise UserError(f"{path} is missing: train and test that fold by train.py first")
        lines = map(json.loads, predictions.read_text(encoding="utf-8").splitlines())
        understood = {line.pop("file"): line for line in lines}
        for row in read_manifest(manifest):
            if row.ID in tested:
                raise UserError(
                    f"{row.ID} was tested in {tested[row.ID]} and in {folder}: give one folder for "
                    "each fold of one system"
                )
            tested[row.ID] = folder
            reference = parse(row.wrd)
            try:
                meaning = parse(json.dumps(understood[Path(row.wav).name]), reference.labels)
            except ValueError:  # an invalid output was written as empty labels
                meaning = None
            counts.append(semantics_metrics.score(reference, meaning))
    return semantics_metrics.summarize(counts)


if __name__ == "__main__":
    with errors_reported():
        print(json.dumps(pool(sys.argv[1:]), indent=2))
