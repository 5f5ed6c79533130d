"""Trained recognisers as graphs of tensors alone, as sherpa-onnx calls them.

B is the batch, T the frames of the features (10 ms), F their bands, C the encoder's frames of a
chunk and V the number of tokens.
"""

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

SUBSAMPLING = 4  # feature frames for one of the encoder; sherpa-onnx takes it for granted
SILENCE = -15.942385  # of the filterbank where there are zeros: log of float32's epsilon


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

    The state has the shapes of a Zipformer's of one layer, whose widths are free: all our floats
    are in its first tensor, all float64 sums in the third, each as a float32 and the rest as a
    second one, and the count of frames is its last. The others are handed on as they are. All are
    zero at the start.

    Arguments
    ---------
    encoder : SpeechEncoder
    ctc_lin : torch.nn.Module
    """

    states = (
        "cached_key_0",
        "cached_nonlin_attn_0",
        "cached_val1_0",
        "cached_val2_0",
        "cached_conv1_0",
        "cached_conv2_0",
        "embed_states",
        "processed_lens",
    )
    batch_axes = (1, 1, 1, 1, 0, 0, 0, 0)  # of each state
    inputs = ("x", *states)
    outputs = ("log_probs", *(f"new_{name}" for name in states))

    def __init__(self, encoder, ctc_lin):
        super().__init__()
        self.offline = OfflineGraph(
            encoder.normalize, encoder.front_end, encoder.transformer, ctc_lin
        )
        self.config, self.chunk_frames = encoder.config, encoder.chunk_frames
        with torch.no_grad():
            self.leaves, self.spec = tree_flatten(encoder.initial_state(1))

    def forward(self, x, floats, nonlin, sums, others, conv1, conv2, embed, count):
        """Returns log-probabilities (B, C, V) and the state after.

        Arguments
        ---------
        x : torch.Tensor
            (B, 4 C, F).
        floats, sums : torch.Tensor
            (1, B, N) each.
        nonlin, others, conv1, conv2, embed : torch.Tensor
            Not used.
        count : torch.Tensor
            (B,), frames of the encoder so far.
        """
        net = self.offline
        convolved, encoder = self._unpack(floats.squeeze(0), sums.squeeze(0), count)
        x, convolved = net.front_end.step((x - net.mean) / net.std, convolved)
        encoded, encoder = net.transformer.step(x, encoder, self.config)
        log_probs = net.ctc_lin(encoded).log_softmax(-1)
        floats, sums, count = self._pack((convolved, encoder))
        unused = [x.clone() for x in (nonlin, others, conv1, conv2, embed)]
        return log_probs, floats, unused[0], sums, *unused[1:], count

    def example(self, bands):
        """Returns inputs to trace it by, and which of their dimensions vary."""
        varies = torch.export.Dim.DYNAMIC
        x = torch.randn(2, SUBSAMPLING * self.chunk_frames, bands)
        axes = [{0: varies}, *({axis: varies} for axis in self.batch_axes)]
        return (x, *self.start(2)), tuple(axes)

    def start(self, batch=1):
        """Returns the states of ``batch`` streams at their start: zeros."""
        floats, sums, count = self._pack(tree_unflatten(self.leaves, self.spec))
        shapes = [(1, 1, 1, 3), sums.shape, (1, 4, 1), (1, 4, 1), (1, 128, 3, 19)]
        nonlin, others, conv1, conv2, embed = map(torch.zeros, shapes)
        states = (floats, nonlin, sums, others, conv1, conv2, embed, count)
        return tuple(
            torch.cat([state] * batch, axis) for state, axis in zip(states, self.batch_axes)
        )

    def metadata(self):
        """Returns what sherpa-onnx asks of a Zipformer, for these states."""
        floats, _, sums, *_ = self.start()
        chunk = SUBSAMPLING * self.chunk_frames
        return {
            "model_type": "zipformer2",
            "version": 1,
            "T": chunk,
            "decode_chunk_len": chunk,
            "num_encoder_layers": 1,
            "encoder_dims": 4,
            "cnn_module_kernels": 3,
            "left_context_len": 1,
            "num_heads": 1,
            "query_head_dims": floats.size(2),
            "value_head_dims": sums.size(2),
        }

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
        return *(torch.cat(parts, 1).unsqueeze(0) for parts in (floats, sums)), count

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
