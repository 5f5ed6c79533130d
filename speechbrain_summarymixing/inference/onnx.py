"""Trained recognisers as ONNX graphs, which run without Python, torch or SpeechBrain.

Input and output names and metadata are those that sherpa-onnx 2.0 takes unmodified: offline as
``OfflineRecognizer.from_zipformer_ctc``, streaming as ``OnlineRecognizer.from_nemo_ctc``. B is the
batch, T the frames of the features (Kaldi's log-mel filterbank, 10 ms), C the encoder's frames of a
chunk, V the number of tokens.
"""

import logging

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from speechbrain_summarymixing.lobes.padding import padding_mask

logger = logging.getLogger(__name__)

OPSET = 18
SUBSAMPLING = 4  # feature frames for one of the encoder; sherpa-onnx takes it for granted
SILENCE = -15.942385  # of the filterbank where there are zeros: log of float32's epsilon
TOLERANCE = 1e-4  # of log-probabilities, onnxruntime's against torch's
INSTALL = 'pip install "speechbrain-summarymixing[onnx]"'


class OfflineGraph(nn.Module):
    """From the features of whole utterances to CTC's log-probabilities.

    Arguments
    ---------
    normalize, front_end, transformer, ctc_lin : torch.nn.Module
        Of a trained recogniser.
    """

    inputs, outputs = ("x", "x_lens"), ("log_probs", "log_probs_lens")

    def __init__(self, normalize, front_end, transformer, ctc_lin):
        super().__init__()
        self.front_end, self.transformer, self.ctc_lin = front_end, transformer, ctc_lin
        self.register_buffer("mean", normalize.glob_mean.detach().clone())
        self.register_buffer("std", normalize.glob_std.detach().clone())

    def forward(self, x, x_lens):
        """Returns log-probabilities (B, T', V) and their lengths (B,) of features (B, T, F)."""
        frames = (x_lens + SUBSAMPLING - 1) // SUBSAMPLING
        after = torch.arange(x.size(1), device=x.device) >= x_lens.unsqueeze(1)
        x = x.masked_fill(after.unsqueeze(2), SILENCE)
        x = nn.functional.pad(x, (0, 0, 0, -x.size(1) % SUBSAMPLING), value=SILENCE)
        lengths = (SUBSAMPLING * frames).to(x.dtype) / x.size(1)
        x = self.front_end((x - self.mean) / self.std, lengths)
        return self.ctc_lin(self.transformer.encode(x, lengths)).log_softmax(-1), frames

    def example(self, bands):
        """Returns inputs to trace it by, and which of their dimensions vary."""
        dynamic = torch.export.Dim.DYNAMIC
        inputs = (torch.randn(2, 240, bands), torch.tensor([240, 137]))
        return inputs, ({0: dynamic, 1: dynamic}, {0: dynamic})


class StreamingGraph(nn.Module):
    """From the features of a chunk, and a state, to CTC's log-probabilities and the next state.

    Of the state all floats are in one tensor and all float64 sums in another, each as a float32 and
    the rest as a second one; all are zero at the start.

    Arguments
    ---------
    encoder : SpeechEncoder
    ctc_lin : torch.nn.Module
    """

    inputs = ("x", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
    outputs = ("log_probs", "log_probs_len", *(f"{name}_next" for name in inputs[2:]))

    def __init__(self, encoder, ctc_lin):
        super().__init__()
        self.offline = OfflineGraph(
            encoder.normalize, encoder.front_end, encoder.transformer, ctc_lin
        )
        self.config, self.chunk_frames = encoder.config, encoder.chunk_frames
        with torch.no_grad():
            self.leaves, self.spec = tree_flatten(encoder.initial_state(1))

    def forward(self, x, length, floats, sums, count):
        """Returns log-probabilities (B, C, V), their lengths, and the state after.

        Arguments
        ---------
        x : torch.Tensor
            (B, F, 4 C).
        length : torch.Tensor
            (B,), frames of x that are there.
        floats, sums : torch.Tensor
            (B, 1, 1, N) each.
        count : torch.Tensor
            (B,), frames of the encoder so far.
        """
        net = self.offline
        frames = (length + SUBSAMPLING - 1) // SUBSAMPLING
        convolved, encoder = self._unpack(floats.flatten(1), sums.flatten(1), count)
        lengths = frames.to(x.dtype) / self.chunk_frames
        x = (x.transpose(1, 2) - net.mean) / net.std
        x, convolved = net.front_end.step(x, convolved, lengths)
        padding = padding_mask(lengths, self.chunk_frames)
        encoded, encoder = net.transformer.step(x, encoder, self.config, padding)
        log_probs = net.ctc_lin(encoded).log_softmax(-1)
        return log_probs, frames, *self._pack((convolved, encoder))

    def example(self, bands):
        """Returns inputs to trace it by, and which of their dimensions vary."""
        batch = {0: torch.export.Dim.DYNAMIC}
        state = tuple(x.repeat(2, *[1] * (x.dim() - 1)) for x in self.start())
        length = torch.full((2,), SUBSAMPLING * self.chunk_frames)
        x = torch.randn(2, bands, SUBSAMPLING * self.chunk_frames)
        return (x, length, *state), (batch,) * 5

    def start(self):
        """Returns the state (floats, sums, count) of one stream at its start: zeros."""
        return tuple(self._pack(tree_unflatten(self.leaves, self.spec)))

    def _pack(self, state):
        floats, sums, count = [], [], None
        for leaf in tree_flatten(state)[0]:
            if leaf.dtype == torch.long:
                count = leaf
            elif leaf.dtype == torch.float64:
                high = leaf.flatten(1).float()
                sums += [high, (leaf.flatten(1) - high).float()]
            else:
                floats.append(leaf.flatten(1).float())
        batch = count.size(0)
        for parts in (floats, sums):  # sherpa-onnx wants both
            parts.append(count.new_zeros(batch, 1, dtype=torch.float32))
        return *(torch.cat(parts, 1)[:, None, None] for parts in (floats, sums)), count

    def _unpack(self, floats, sums, count):
        leaves, places = [], {"floats": 0, "sums": 0}

        def taken(name, source, leaf):
            place, size = places[name], leaf[0].numel()
            places[name] += size
            return source[:, place : place + size].unflatten(1, leaf.shape[1:])

        for leaf in self.leaves:
            if leaf.dtype == torch.long:
                leaves.append(count)
            elif leaf.dtype == torch.float64:
                high, low = (taken("sums", sums, leaf).double() for _ in range(2))
                leaves.append(high + low)
            else:
                leaf_now = taken("floats", floats, leaf)
                leaves.append(leaf_now > 0.5 if leaf.dtype == torch.bool else leaf_now)
        return tree_unflatten(leaves, self.spec)
