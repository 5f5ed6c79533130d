"""SummaryMixing for SpeechBrain: a linear-time alternative to self-attention in speech encoders."""

import logging

__version__ = "0.1.0"

# SpeechBrain says at every start that TensorBoard's pictures, which nobody draws, need torchvision
logging.getLogger("speechbrain.utils.train_logger").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)
