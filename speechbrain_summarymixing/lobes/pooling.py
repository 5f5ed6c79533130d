"""One vector for an utterance: the encoder's frames, pooled over the valid ones."""

import torch

from speechbrain_summarymixing.lobes.padding import padding_mask
from speechbrain_summarymixing.nnet.summaries import masked_mean


class PooledEncoder(torch.nn.Module):
    """Front-end and encoder, and mean and standard deviation of its frames (arXiv 1709.04347).

    Arguments
    ---------
    front_end : torch.nn.Module
        From features (B, T, F) and relative lengths (B,) to the encoder's input.
    transformer : SummaryMixingASR
        Of which only the encoder is used.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
    >>> from speechbrain_summarymixing.lobes.frontend import MaskedConvolutionFrontEnd
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> encoder = SummaryMixingASR(
    ...     1, 40, token_mixer=partial(SummaryMixing, 16), d_model=16, nhead=1,
    ...     num_encoder_layers=1, num_decoder_layers=0, csgu_linear_units=32,
    ... )
    >>> PooledEncoder(MaskedConvolutionFrontEnd(40, ()), encoder)(torch.rand(2, 25, 40)).shape
    torch.Size([2, 1, 32])
    """

    def __init__(self, front_end, transformer):
        super().__init__()
        self.front_end = front_end
        self.transformer = transformer

    def forward(self, features, lengths=None):
        """Returns embeddings (B, 1, 2 D) of features (B, T, F) with relative lengths (B,)."""
        return self.pool(self.encode(features, lengths), lengths)

    def encode(self, features, lengths=None):
        """Returns frames (B, T', D) of features (B, T, F) with relative lengths (B,)."""
        return self.transformer.encode(self.front_end(features, lengths), lengths)

    def pool(self, encoded, lengths=None):
        """Returns embeddings (B, 1, 2 D) of frames (B, T', D) with relative lengths (B,)."""
        padding = None if lengths is None else padding_mask(lengths, encoded.size(1))
        mean = masked_mean(encoded, padding)
        variance = masked_mean((encoded - mean.unsqueeze(1)).square(), padding)
        # the root's gradient at 0 is infinite
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=-1).unsqueeze(1)
