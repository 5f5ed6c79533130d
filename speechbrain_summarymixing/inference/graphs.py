"""Trained recognisers as graphs of tensors alone, as sherpa-onnx calls them.

B is the batch, T the frames of the features (10 ms), F their bands, C the encoder's frames of a
chunk and V the number of tokens.
"""

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.onnx_graph import SUBSAMPLING
from speechbrain_summarymixing.lobes.transducer import BLANK

VARIES = torch.export.Dim.DYNAMIC
SILENCE = -15.942385  # of the filterbank where there are zeros: log of float32's epsilon


class OfflineGraph(nn.Module):
    """From the features of whole utterances to what a head makes of the encoder's frames.

    Arguments
    ---------
    normalize, front_end, transformer : torch.nn.Module
        Of a trained recogniser.
    head : torch.nn.Module
        Of frames (B, T', D): to CTC's log-probabilities, or to a transducer's joiner.
    output : str
        The name of what it makes.
    """

    inputs, states = ("x", "x_lens"), ()

    def __init__(self, normalize, front_end, transformer, head, output="log_probs"):
        super().__init__()
        self.front_end, self.transformer, self.head = front_end, transformer, head
        self.register_buffer("mean", normalize.glob_mean.detach().clone())
        self.register_buffer("std", normalize.glob_std.detach().clone())
        self.outputs = output, f"{output}_lens"

    def forward(self, x, x_lens):
        """Returns the head's output (B, T', V) and its lengths (B,) of features (B, T, F)."""
        frames = (x_lens + SUBSAMPLING - 1) // SUBSAMPLING
        after = torch.arange(x.size(1), device=x.device) >= x_lens.unsqueeze(1)
        x = x.masked_fill(after.unsqueeze(2), SILENCE)
        x = nn.functional.pad(x, (0, 0, 0, -x.size(1) % SUBSAMPLING), value=SILENCE)
        lengths = (SUBSAMPLING * frames).to(x.dtype) / x.size(1)
        x = self.front_end((x - self.mean) / self.std, lengths)
        return self.head(self.transformer.encode(x, lengths)), frames

    def dynamic(self):
        """Returns which dimensions of each input vary."""
        return {0: VARIES, 1: VARIES}, {0: VARIES}

    def examples(self, bands):
        """Returns inputs to trace it by, and others to compare it with torch."""
        return [
            (5 * torch.randn(2, frames, bands) - 10, torch.tensor([frames, (frames + 1) // 2]))
            for frames in (240, 1, 7, 2999)
        ]


class StreamingGraph(nn.Module):
    """From the features of a chunk, and a state, to what a head makes of it, and the next state.

    The state has the shapes of a Zipformer's of one layer, whose widths are free: all our floats
    are in its first tensor, all float64 sums in the third, each as a float32 and the rest as a
    second one, and the count of frames is its last. The others are handed on as they are. All are
    zero at the start.

    Arguments
    ---------
    encoder : SpeechEncoder
    head, output
        As for `OfflineGraph`.
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

    def __init__(self, encoder, head, output="log_probs"):
        super().__init__()
        self.offline = OfflineGraph(encoder.normalize, encoder.front_end, encoder.transformer, head)
        self.outputs = output, *(f"new_{name}" for name in self.states)
        self.config, self.chunk_frames = encoder.config, encoder.chunk_frames
        with torch.no_grad():
            self.leaves, self.spec = tree_flatten(encoder.initial_state(1))

    def forward(self, x, floats, nonlin, sums, others, conv1, conv2, embed, count):
        """Returns the head's output (B, C, V) and the state after.

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
        output = net.head(encoded)
        floats, sums, count = self._pack((convolved, encoder))
        unused = [x.clone() for x in (nonlin, others, conv1, conv2, embed)]
        return output, floats, unused[0], sums, *unused[1:], count

    def dynamic(self):
        """As `OfflineGraph`'s."""
        return {0: VARIES}, *({axis: VARIES} for axis in self.batch_axes)

    def examples(self, bands):
        """Returns chunks that follow one another, without the states."""
        chunk = SUBSAMPLING * self.chunk_frames
        return [(5 * torch.randn(2, chunk, bands) - 10,) for _ in range(5)]

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


class PredictorGraph(nn.Module):
    """From the last tokens that a transducer said to what they add at its joiner.

    Arguments
    ---------
    head : TransducerHead

    Raises
    ------
    UserError
        If its predictor knows more than the last tokens.
    """

    inputs, outputs, states = ("y",), ("decoder_out",), ()

    def __init__(self, head):
        super().__init__()
        self.predictor, self.of_tokens = head.predictor, head.of_tokens
        self.context = getattr(head.predictor, "context", None)
        if self.context is None:
            raise UserError(
                f"the transducer's predictor is a {type(head.predictor).__name__}, but sherpa-onnx "
                "shows it the last tokens alone: train one with StatelessPredictor, as in "
                "hparams/sumformer_transducer.yaml"
            )

    def forward(self, y):
        """Returns (B, J) of tokens (B, context); below 0, where none was said yet."""
        y = y.clamp(min=BLANK)
        predicted, _ = self.predictor(y[:, -1:], y[:, :-1])
        return (self.of_tokens(predicted.squeeze(1)),)

    def dynamic(self):
        """As `OfflineGraph`'s."""
        return ({0: VARIES},)

    def examples(self, bands):
        """Returns inputs to trace it by, and others to compare it with torch."""
        tokens = self.predictor.embedding.num_embeddings
        return [(torch.randint(-1, tokens, (rows, self.context)),) for rows in (2, 99)]

    def metadata(self):
        """Returns what sherpa-onnx asks of it."""
        tokens = self.predictor.embedding.num_embeddings
        return {"vocab_size": tokens, "context_size": self.context}


class JoinerGraph(nn.Module):
    """From a frame, as a transducer's head projects it, and `PredictorGraph`'s output to scores.

    Arguments
    ---------
    head : TransducerHead
    """

    inputs, outputs, states = ("encoder_out", "decoder_out"), ("logit",), ()

    def __init__(self, head):
        super().__init__()
        self.output = head.output

    def forward(self, encoder_out, decoder_out):
        """Returns (B, V) of (B, J) each."""
        return (self.output(torch.tanh(encoder_out + decoder_out)),)

    def dynamic(self):
        """As `OfflineGraph`'s."""
        return ({0: VARIES},) * 2

    def examples(self, bands):
        """Returns inputs to trace it by, and others to compare it with torch."""
        return [torch.randn(2, rows, self.output.in_features).unbind() for rows in (2, 99)]

    def metadata(self):
        """Returns what sherpa-onnx asks of it."""
        return {"joiner_dim": self.output.in_features}
