"""Tokens that a search finds in streams, and those of hypotheses that differ as tensors.

B is the number of streams, K that of hypotheses.
"""

from typing import NamedTuple


class Emission(NamedTuple):
    """A token that was found.

    Arguments
    ---------
    token : int
        Not 0.
    frame : int
        Of the encoder, from the stream's start, at which it was found.
    log_prob : float
        Of the token there, after those before.
    """

    token: int
    frame: int
    log_prob: float


def emissions_of(rows):
    """Returns the list of `Emission` that rows (P, 3) of ``packed`` hold."""
    return [Emission(int(token), int(frame), value) for token, frame, value in rows if token]


def packed(hypotheses, like):
    """Returns emissions as a tensor (B, K, P, 3), zero-padded.

    Arguments
    ---------
    hypotheses : list of list of list of Emission
        Of K hypotheses of B streams.
    like : torch.Tensor
        (B, K, …), of the device and type to have.
    """
    longest = max((len(row) for rows in hypotheses for row in rows), default=0)
    padded = [[row + [(0, 0, 0)] * (longest - len(row)) for row in rows] for rows in hypotheses]
    return like.new_tensor(padded).view(len(hypotheses), like.size(1), longest, 3)


def common(hypotheses):
    """Returns the number of tokens with which all lists of `Emission` begin."""
    count = 0
    for emissions in zip(*hypotheses):
        if len({emission.token for emission in emissions}) > 1:
            break
        count += 1
    return count


def same_start(one, other, count):
    """Whether two lists of `Emission` begin with the same ``count`` tokens."""
    return len(one) >= count and common((one[:count], other[:count])) == count
