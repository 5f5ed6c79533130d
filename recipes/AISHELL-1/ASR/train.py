#!/usr/bin/env python3
"""Trains, tests and exports a recogniser of Mandarin.

python train.py hparams/sumformer.yaml --data_folder DIR/data_aishell

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; AISHELL-1 is
prepared by ``speechbrain_summarymixing.corpora.aishell``.
"""

import sys

from speechbrain_summarymixing.tasks.recognition import ASR
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], ASR)
