"""Token mixers, from torch alone."""
