#!/usr/bin/env python3
"""Trains, tests and exports a speech recogniser.

    python train.py hparams/sumformer.yaml                        on the mini corpus, which it makes
    python train.py hparams/sumformer.yaml --train_csv a.csv --valid_csv b.csv --test_csv c.csv
    python train.py hparams/sumformer.yaml --corpus librispeech --data_folder DIR

The steps are those of ``speechbrain_summarymixing.training.experiment.run``.
"""

import sys

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], ASR)
