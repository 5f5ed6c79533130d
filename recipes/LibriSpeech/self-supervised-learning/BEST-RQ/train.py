#!/usr/bin/env python3
"""Pre-trains an encoder on the speech of LibriSpeech alone, by BEST-RQ, and exports it.

python train.py hparams/sumformer.yaml --data_folder DIR/LibriSpeech

The steps are those of ``speechbrain_summarymixing.training.experiment.run``; LibriSpeech is
prepared by ``speechbrain_summarymixing.corpora.librispeech``.
"""

import sys

from speechbrain_summarymixing.tasks.pretraining import Pretraining
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], Pretraining)
