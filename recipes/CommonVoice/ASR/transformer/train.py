#!/usr/bin/env python3
"""Trains, tests and exports a recogniser of one of Common Voice's languages.

python train.py hparams/sumformer_nl.yaml --data_folder DIR/nl

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; Common Voice is
prepared by ``speechbrain_summarymixing.corpora.common_voice``.
"""

import sys

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], ASR)
