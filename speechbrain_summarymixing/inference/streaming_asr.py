"""What SpeechBrain's `StreamingASR` needs of an exported model, beside it in streaming.yaml."""

from dataclasses import dataclass, field
from typing import Any

import torch
from speechbrain.utils.filter_analysis import FilterProperties
from torch import nn

from speechbrain_summarymixing.lobes.streaming import SampleWindows, SpeechEncoder

CTC_SEARCH = """
greedy_search: !new:speechbrain_summarymixing.lobes.ctc_search.CTCGreedy
    ctc_lin: !ref <ctc_lin>
"""

STREAMING_ASR = """
fea_streaming_extractor: !new:speechbrain_summarymixing.inference.streaming_asr.StreamingSamples
    features: !ref <compute_features>

enc: !new:speechbrain_summarymixing.inference.streaming_asr.StreamingEncoder
    features: !ref <compute_features>
    normalize: !ref <normalize>
    front_end: !ref <front_end>
    transformer: !ref <transformer>

modules:
    enc: !ref <enc>
    proj_enc: !new:torch.nn.Identity
    search: !ref <greedy_search>

make_decoder_streaming_context:
    !name:speechbrain_summarymixing.inference.streaming_asr.SearchContext
decoding_function: !new:speechbrain_summarymixing.inference.streaming_asr.StreamingSearch
    search: !ref <greedy_search>

make_tokenizer_streaming_context: !name:speechbrain_summarymixing.inference.streaming_asr.Spelling
tokenizer_decode_streaming: !name:speechbrain_summarymixing.inference.streaming_asr.spell

tokenizer: !new:sentencepiece.SentencePieceProcessor
"""

USAGE = """

As a stream, by SpeechBrain (chunks of 640 ms), or `summarymixing transcribe --stream`:

    from speechbrain.inference.ASR import StreamingASR
    from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
    model = StreamingASR.from_hparams(source="path/to/this/folder", hparams_file="streaming.yaml")
    chunks = DynChunkTrainConfig(16)
    print(model.transcribe_file("speech.wav", chunks, use_torchaudio_streaming=False))"""


class StreamingSamples:
    """In the place of a feature extractor: passes the samples on to `StreamingEncoder`.

    That knows the chunks, and so which of them is the last.

    Arguments
    ---------
    features : KaldiFbank
    """

    def __init__(self, features):
        # StreamingASR passes (stride - 1) samples for each of the encoder's frames
        self.properties = FilterProperties(features.window_samples, features.samples + 1)

    def make_streaming_context(self):
        """Returns None: it keeps nothing."""

    def get_recommended_final_chunk_count(self, frames_per_chunk):
        """Returns how many chunks of zeros to add at the end: 1, for a last chunk that is whole."""
        return 1

    def __call__(self, chunk, context, lengths):
        """Returns samples (B, T), zero after relative lengths (B,)."""
        ends = (lengths * chunk.size(1)).round().unsqueeze(1)
        return chunk.masked_fill(torch.arange(chunk.size(1), device=chunk.device) >= ends, 0.0)


@dataclass
class StreamingEncoderContext:
    """Where streams of one batch, which begin and end together, are in `StreamingEncoder`."""

    encoder: SpeechEncoder
    windows: list[SampleWindows] = field(default_factory=list)
    state: Any = None


class StreamingEncoder(nn.Module):
    """Encodes samples in chunks, one call late, since the filterbank looks beyond its chunk.

    Arguments are those of `SpeechEncoder`.
    """

    def __init__(self, features, normalize, front_end, transformer):
        super().__init__()
        self.features, self.normalize = features, normalize
        self.front_end, self.transformer = front_end, transformer

    def make_streaming_context(self, dynchunktrain_config):
        """Starts streams.

        Arguments
        ---------
        dynchunktrain_config : DynChunkTrainConfig

        Returns
        -------
        StreamingEncoderContext

        Raises
        ------
        ValueError
            If a part needs the whole utterance.
        """
        parts = self.features, self.normalize, self.front_end, self.transformer
        return StreamingEncoderContext(SpeechEncoder(*parts, dynchunktrain_config).eval())

    def forward_streaming(self, samples, context):
        """Encodes the chunk before, or at the end all that is left.

        Arguments
        ---------
        samples : torch.Tensor
            (B, T), a whole chunk; less ends the streams, which then begin anew.
        context : StreamingEncoderContext
            It is changed.

        Returns
        -------
        torch.Tensor
            (B, frames, D): no frame, those of a chunk, or of a chunk and the rest.
        """
        net = context.encoder
        if context.state is None:
            context.state = net.initial_state(len(samples))
            context.windows = [net.windows() for _ in samples]
        for windows, row in zip(context.windows, samples):
            windows.accept(row)
        ended = samples.size(1) < net.chunk_frames * net.frame_samples
        if ended:
            due = zip(*(list(windows.finish()) for windows in context.windows))
        else:
            due = zip(*(list(windows.ready()) for windows in context.windows))
        encoded = [samples.new_zeros(len(samples), 0, self.width)]
        for chunk in due:  # of each stream a window and its frames, which are those of the others
            windows, (frames, *_) = zip(*chunk)
            lengths = torch.full((len(samples),), frames, device=samples.device)
            x, context.state = net.step(torch.stack(windows), lengths, context.state)
            encoded.append(x[:, :frames])
        if ended:
            context.state = None
        return torch.cat(encoded, 1)

    @property
    def width(self):
        """Returns the encoder's width D."""
        return self.transformer.encoder.norm.norm.weight.numel()


@dataclass
class SearchContext:
    """Where a batch of streams is in a search; None before the first chunk."""

    state: Any = None


class StreamingSearch:
    """Tokens of a batch of streams, chunk by chunk.

    Arguments
    ---------
    search : CTCGreedy or TransducerGreedy
    """

    def __init__(self, search):
        self.search = search

    def __call__(self, encoded, context):
        """Returns the tokens that are new, a list for each row of encoded (B, T, D)."""
        if context.state is None:
            context.state = self.search.start(len(encoded))
        found, context.state = self.search.step(encoded, context.state)
        return [[emission.token for emission in row] for row in found]


@dataclass
class Spelling:
    """Whether a stream has a token yet."""

    begun: bool = False


def spell(tokenizer, tokens, context):
    """Returns the text of a stream's next tokens, with the space before it.

    SpeechBrain's asks sentencepiece for what its later releases refuse.

    Arguments
    ---------
    tokenizer : sentencepiece.SentencePieceProcessor
    tokens : list of int
    context : Spelling
        It is changed.
    """
    text = tokenizer.decode_ids(tokens)
    if tokens and context.begun and tokenizer.id_to_piece(tokens[0]).startswith("▁"):
        text = " " + text
    context.begun = context.begun or bool(tokens)
    return text
