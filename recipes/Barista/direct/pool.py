#!/usr/bin/env python3
"""Measures the folds of a cross-validation together, each utterance tested once.

python pool.py results/sumformer/fold?
"""

import json
import sys
from pathlib import Path

from speechbrain_summarymixing.corpora.manifest import read_manifest
from speechbrain_summarymixing.corpora.semantics import parse
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.tasks import semantics_metrics
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
        If there is no folder, an argument is none, one is not wholly tested, or two tested the same
        utterance.
    """
    if not folders:
        raise UserError("no folder given: write python pool.py results/sumformer/fold?")
    counts, tested = [], {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(
                f"{folder} is no folder: give the output folders of train.py alone, such as "
                "results/sumformer/fold?"
            )
        predictions, manifest = folder / "predictions_test.jsonl", folder / "manifests" / "test.csv"
        for path in (predictions, manifest):
            if not path.is_file():
                raise UserError(f"{path} is missing: train and test that fold by train.py first")
        understood = semantics_metrics.read_predictions(predictions)
        rows = read_manifest(manifest)
        if understood.keys() != {Path(row.wav).name for row in rows}:
            raise UserError(
                f"{predictions} has other utterances than {manifest}: test that fold anew, by "
                "train.py with --test_only"
            )
        for row in rows:
            if row.ID in tested:
                raise UserError(
                    f"{row.ID} was tested in {tested[row.ID]} and in {folder}: give one folder for "
                    "each fold of one system"
                )
            tested[row.ID] = folder
            meaning = understood[Path(row.wav).name]
            counts.append(semantics_metrics.score(parse(row.wrd), meaning))
    return semantics_metrics.summarize(counts)


if __name__ == "__main__":
    with errors_reported():
        print(json.dumps(pool(sys.argv[1:]), indent=2))
