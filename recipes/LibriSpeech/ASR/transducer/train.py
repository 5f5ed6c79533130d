#!/usr/bin/env python3
"""Trains, tests and exports a transducer of LibriSpeech.

python train.py hparams/conformer_summarymixing_published.yaml --data_folder DIR/LibriSpeech

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; LibriSpeech is
prepared by ``speechbrain_summarymixing.corpora.librispeech``.
"""

import sys

from speechbrain_summarymixing.tasks.transducer import Transducer
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], Transducer)
