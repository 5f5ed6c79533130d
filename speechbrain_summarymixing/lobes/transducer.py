"""Transducers: a predictor of the tokens said, a joiner with the encoder's frames, and their loss.

Reference: arXiv 1211.3711 (transducers), arXiv 2409.07165 (with streaming SummaryMixing).
"""

import torch
from torch import nn
from torchaudio.functional import rnnt_loss

BLANK = 0  # also what stands before the first token, so that a state of zeros is the start


class StatelessPredictor(nn.Module):
    """Knows the last tokens alone: their embeddings, weighted by a short causal convolution.

    Arguments
    ---------
    vocab_size : int
        Number of tokens V, with blank 0.
    width : int
        Of its output, W.
    context : int
        Tokens that it knows.
    dropout : float
        Probability of zeroing a value of an embedding.

    Reference: arXiv 2109.07513 (limited context), after "RNN-Transducer with Stateless Prediction
    Network", ICASSP 2020.

    Example
    -------
    >>> predictor = StatelessPredictor(30, width=16).eval()
    >>> tokens = torch.tensor([[BLANK, 5, 7, 5]])
    >>> whole, _ = predictor(tokens)
    >>> first, state = predictor(tokens[:, :3])
    >>> last, _ = predictor(tokens[:, 3:], state)
    >>> torch.allclose(torch.cat((first, last), 1), whole)
    True
    """

    def __init__(self, vocab_size, *, width, context=2, dropout=0.1):
        super().__init__()
        self.width, self.context = width, context
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.convolution = nn.Conv1d(width, width, context, groups=width)

    def forward(self, tokens, state=None):
        """Predicts what may follow each token.

        Arguments
        ---------
        tokens : torch.Tensor
            (N, U); blank begins.
        state : torch.Tensor or None
            (N, context - 1), the tokens before; zeros, or None, at the start.

        Returns
        -------
        predicted : torch.Tensor
            (N, U, W).
        state : torch.Tensor
            For the next tokens.
        """
        before = self.context - 1
        if state is None:
            state = tokens.new_zeros(len(tokens), before)
        tokens = torch.cat((state, tokens), dim=1)
        embedded = self.dropout(self.embedding(tokens)).transpose(1, 2)
        predicted = torch.relu(self.convolution(embedded)).transpose(1, 2)
        return predicted, tokens[:, tokens.size(1) - before :]


class LSTMPredictor(nn.Module):
    """Knows all the tokens said, by an LSTM.

    Arguments are those of `StatelessPredictor`, with ``num_layers`` L in place of a context.

    Reference: arXiv 1211.3711.
    """

    def __init__(self, vocab_size, *, width, num_layers=1, dropout=0.1):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        between = dropout if num_layers > 1 else 0.0
        self.lstm = nn.LSTM(width, width, num_layers, batch_first=True, dropout=between)

    def forward(self, tokens, state=None):
        """As `StatelessPredictor`'s, with a state (N, 2 L, W): the layers' outputs and cells."""
        if state is not None:
            state = state.transpose(0, 1).contiguous().chunk(2)
        predicted, state = self.lstm(self.dropout(self.embedding(tokens)), state)
        return predicted, torch.cat(state).transpose(0, 1)


class TransducerHead(nn.Module):
    """A predictor and a joiner: from frames and the tokens said to scores of the next.

    Arguments
    ---------
    vocab_size : int
        Number of tokens V, with blank 0.
    predictor : callable
        Makes one of them, as `StatelessPredictor` or `LSTMPredictor` with its settings.
    encoder_width : int
        D of the encoder's frames.
    joint_width : int
        J, in which frames and predictions are added.

    Example
    -------
    >>> from functools import partial
    >>> predictor = partial(StatelessPredictor, width=16)
    >>> head = TransducerHead(30, predictor=predictor, encoder_width=24, joint_width=32)
    >>> scores = head(torch.rand(2, 25, 24), torch.randint(1, 30, (2, 4)))
    >>> scores.shape
    torch.Size([2, 25, 5, 30])
    """

    def __init__(self, vocab_size, *, predictor, encoder_width, joint_width):
        super().__init__()
        self.predictor = predictor(vocab_size)
        self.of_frame = nn.Linear(encoder_width, joint_width)
        self.of_tokens = nn.Linear(self.predictor.width, joint_width, bias=False)
        self.output = nn.Linear(joint_width, vocab_size)

    def forward(self, encoded, tokens):
        """Scores, at each frame, what may follow after none, one, … and all of the tokens.

        Of all that training keeps these scores are the most: with 25 frames and 4 tokens a second
        15 s of speech and a vocabulary of 1000 have 375 x 61 x 1000 of them, 92 MB, as many
        gradients, and J / V of that once more for the joint layer. They grow with the square of
        an utterance's length, so choose ``batch_seconds`` with the longest ones in mind.

        Arguments
        ---------
        encoded : torch.Tensor
            (B, T, D).
        tokens : torch.Tensor
            (B, U).

        Returns
        -------
        torch.Tensor
            (B, T, U + 1, V).
        """
        predicted, _ = self.predictor(nn.functional.pad(tokens, (1, 0), value=BLANK))
        return self.join(encoded.unsqueeze(2), predicted.unsqueeze(1))

    def join(self, encoded, predicted):
        """Returns scores (…, V) of frames (…, D) with predictions (…, W)."""
        return self.output(torch.tanh(self.of_frame(encoded) + self.of_tokens(predicted)))


def transducer_loss(scores, tokens, lengths, tokens_lengths):
    """Returns the negative log-probability of an utterance's tokens, over all alignments.

    Arguments
    ---------
    scores : torch.Tensor
        (B, T, U + 1, V), of a `TransducerHead`.
    tokens : torch.Tensor
        (B, U).
    lengths, tokens_lengths : torch.Tensor
        (B,), relative; the longest one is 1.

    Returns
    -------
    torch.Tensor
        The mean over utterances, in nats.

    Reference: arXiv 1211.3711, section 2.4; computed by torchaudio.
    """
    frames, said = scores.size(1), scores.size(2) - 1
    return rnnt_loss(
        scores.float(),  # sums of a half-precision autocast would be coarse
        tokens.int(),
        (lengths * frames).round().int(),
        (tokens_lengths * said).round().int(),
        blank=BLANK,
        reduction="mean",
    )
