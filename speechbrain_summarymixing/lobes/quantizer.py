"""Codes of speech that a random projection gives: what BEST-RQ predicts of masked frames."""

import torch
from speechbrain.nnet.quantisers import RandomProjectionQuantizer


class RandomCodes(RandomProjectionQuantizer):
    """SpeechBrain's `RandomProjectionQuantizer`, with the same codes, but in less memory.

    The nearest of codes of length 1 is that of the largest product, so no tensor (codes, frames,
    dimensions) of differences is made. Its projection and codes are never learnt, and its products
    are float32 under autocast.

    Arguments
    ---------
    input_dim : int
        Features F that are projected.
    cb_dim : int
        Dimensions of a code.
    cb_vocab : int
        Number of codes.

    Reference: arXiv 2202.01855.

    Example
    -------
    >>> RandomCodes(320, 16, 8192)(torch.rand(2, 25, 320)).shape
    torch.Size([2, 25])
    """

    def forward(self, x):
        """Returns the codes (…), int64, of features (…, F)."""
        with torch.autocast(x.device.type, enabled=False):
            projected = x.to(self.P.dtype) @ self.P  # its length changes no order of the products
            return (projected @ self.CB.T).argmax(-1)
