#!/usr/bin/env python3
"""Trains, tests and exports a recogniser of talks.

python train.py hparams/sumformer.yaml --data_folder DIR/TEDLIUM_release2

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; TED-LIUM 2 is
prepared by ``speechbrain_summarymixing.corpora.tedlium``.
"""

import sys

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], ASR)
