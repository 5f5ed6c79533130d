#!/usr/bin/env python3
"""Trains, tests and exports a model that spots keywords of Google Speech Commands.

python train.py hparams/sumformer.yaml --data_folder DIR

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; the corpus is prepared
by ``speechbrain_summarymixing.corpora.speech_commands``.
"""

import sys

from speechbrain_summarymixing.tasks.classification import Classification
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], Classification)
