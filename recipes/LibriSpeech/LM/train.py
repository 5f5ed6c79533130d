#!/usr/bin/env python3
"""Trains a Transformer language model on LibriSpeech's transcripts and text.

python train.py hparams/transformer.yaml --data_folder DIR/LibriSpeech \
    --lm_text DIR/librispeech-lm-norm.txt.gz --tokenizer_folder ../Tokenizer/results/unigram5000
"""

import sys

from speechbrain_summarymixing.tasks.language_model import LanguageModel
from speechbrain_summarymixing.training.experiment import run

if __name__ == "__main__":
    run(sys.argv[1:], LanguageModel)
