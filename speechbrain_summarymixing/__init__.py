"""SummaryMixing for SpeechBrain: a linear-time alternative to self-attention in speech encoders."""

__version__ = "0.1.0"
