#!/usr/bin/env python3
"""Trains, tests and exports a recogniser of CMU AN4.

python train.py hparams/sumformer.yaml --data_folder DIR

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; AN4 is prepared by
``speechbrain_summarymixing.corpora.an4``.
"""

import sys

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], ASR)
