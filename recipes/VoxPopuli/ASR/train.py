#!/usr/bin/env python3
"""Trains, tests and exports a transducer of one of VoxPopuli's languages.

python train.py hparams/sumformer.yaml --data_folder DIR/transcribed_data/en

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; VoxPopuli is
prepared by ``speechbrain_summarymixing.corpora.voxpopuli``.
"""

import sys

from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], Transducer)
