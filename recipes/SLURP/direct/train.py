#!/usr/bin/env python3
"""Trains, tests and exports a model from speech to SLURP's semantics.

python train.py hparams/sumformer.yaml --data_folder DIR

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; the corpus is prepared
by ``speechbrain_summarymixing.corpora.slurp``.
"""

import sys

from speechbrain_summarymixing.tasks.understanding import Understanding
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], Understanding)
