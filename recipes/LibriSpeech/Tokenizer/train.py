#!/usr/bin/env python3
"""Trains a sentencepiece tokenizer on LibriSpeech's transcripts.

python train.py hparams/unigram5000.yaml --data_folder DIR/LibriSpeech
"""

import sys

from speechbrain_summarymixing.training.experiment import run_tokenizer

if __name__ == "__main__":
    run_tokenizer(sys.argv[1:])
