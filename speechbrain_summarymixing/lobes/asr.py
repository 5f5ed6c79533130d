"""Encoder-decoder for speech recognition whose encoder mixes tokens by any injected module."""

import torch
from speechbrain.lobes.models.transformer.Transformer import (
    get_key_padding_mask,
    get_lookahead_mask,
)
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.activations import Swish
from torch import nn

from speechbrain_summarymixing.lobes.branchformer import NO_ATTENTION, MixerBranchformerEncoder
from speechbrain_summarymixing.lobes.conformer import MixerConformerEncoder
from speechbrain_summarymixing.lobes.contextnet import ContextNetEncoder
from speechbrain_summarymixing.lobes.encoder import check_causal
from speechbrain_summarymixing.lobes.mixers import NoMixing, check_mixer
from speechbrain_summarymixing.lobes.padding import padding_mask
from speechbrain_summarymixing.lobes.positions import AddSinePositions, SinePositions
from speechbrain_summarymixing.lobes.stepping_decoder import SteppingDecoder
from speechbrain_summarymixing.lobes.streaming import EncodesStreams
from speechbrain_summarymixing.lobes.summary_decoder import SummaryDecoder
from speechbrain_summarymixing.lobes.transformer import MixerTransformerEncoder
from speechbrain_summarymixing.nnet.summaries import CAUSAL

ENCODERS = {
    "branchformer": MixerBranchformerEncoder,
    "conformer": MixerConformerEncoder,
    "transformer": MixerTransformerEncoder,
}


class SummaryMixingASR(EncodesStreams, TransformerASR):
    """SpeechBrain's `TransformerASR` with an injected token mixer.

    ``forward``, ``encode`` and ``decode`` have SpeechBrain's calls.

    Arguments
    ---------
    tgt_vocab : int
        Number of output tokens.
    input_size : int
        Features of the encoder's input, after the front-end.
    token_mixer : callable
        Returns a new token mixer, `SummaryMixing` or any module with attention's call. A module
        is refused, since every layer would share it.
    d_model : int
        Width D of encoder and decoder.
    nhead : int
        Heads of the decoder's attention.
    num_encoder_layers, num_decoder_layers : int
        Numbers of layers; without decoder layers only ``encode`` works.
    d_ffn : int
        Hidden width of the feed-forward layers.
    encoder_d_ffn : int or None
        That of a Conformer's or Transformer's layers alone; None means d_ffn.
    dropout : float
        Probability of zeroing an activation.
    activation : callable
        Of the decoder's feed-forward layers.
    encoder_module : str
        "branchformer", "conformer", "transformer" or "contextnet", which takes `NoMixing`.
    conformer_activation : callable
        Of the Conformer's convolution and feed-forward modules.
    bias : bool
        Of the Conformer's convolution module.
    branchformer_activation, gate_activation, csgu_linear_units, use_linear_after_conv
        As in SpeechBrain's Branchformer.
    kernel_size : int
        Of the encoder's convolutions, in frames.
    positional_encoding : str or None
        "fixed_abs_sine" adds sine positions, of any length, to the encoder's input; None adds
        none. Relative and rotary attention bring their own positions, and sine positions are then
        left out.
    normalize_before : bool
        Pre-norm layers of the decoder and of a Transformer encoder.
    causal : bool
        The encoder's mixers and convolutions see no later frame.
    output_hidden_states : bool
        ``encode`` and ``forward`` return the encoder's hidden states too.
    layerdrop_prob : float
        Probability of skipping an encoder layer in training.
    summary_decoder : bool
        The decoder's self-attention is replaced by a causal SummaryMixing.
    activation_checkpointing : bool
        Training keeps the input of each encoder layer and computes the rest again in backward.

    Raises
    ------
    TypeError
        If token_mixer is a module or cannot be called.
    ValueError
        If an option has no meaning here, or an encoder to be causal cannot be.

    Reference: arXiv 2307.07421 (SummaryMixing), arXiv 2207.02971 (Branchformer), arXiv 2005.08100
    (Conformer), arXiv 1706.03762 (Transformer).

    Example
    -------
    >>> import torch
    >>> from functools import partial
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> model = SummaryMixingASR(
    ...     30, 40, token_mixer=partial(SummaryMixing, 16), d_model=16, nhead=2,
    ...     num_encoder_layers=1, num_decoder_layers=1, d_ffn=32, csgu_linear_units=32,
    ... )
    >>> encoded, decoded = model(torch.rand(2, 25, 40), torch.ones(2, 5, dtype=torch.long))
    >>> encoded.shape, decoded.shape
    (torch.Size([2, 25, 16]), torch.Size([2, 5, 16]))
    """

    def __init__(
        self,
        tgt_vocab,
        input_size,
        *,
        token_mixer,
        d_model=512,
        nhead=8,
        num_encoder_layers=18,
        num_decoder_layers=6,
        d_ffn=2048,
        encoder_d_ffn=None,
        dropout=0.1,
        activation=nn.GELU,
        encoder_module="branchformer",
        conformer_activation=Swish,
        bias=True,
        branchformer_activation=nn.GELU,
        gate_activation=nn.Identity,
        csgu_linear_units=3072,
        use_linear_after_conv=False,
        kernel_size=31,
        positional_encoding="fixed_abs_sine",
        normalize_before=True,
        causal=False,
        output_hidden_states=False,
        layerdrop_prob=0.0,
        summary_decoder=False,
        activation_checkpointing=False,
    ):
        check_mixer(token_mixer)
        if encoder_module not in (*ENCODERS, "contextnet"):
            raise ValueError(
                f"encoder_module is {encoder_module!r}, but must be one of "
                f"{', '.join(ENCODERS)} or contextnet"
            )
        if encoder_module == "contextnet" and (
            token_mixer is not NoMixing or layerdrop_prob or activation_checkpointing
        ):
            raise ValueError(
                f"token_mixer is {token_mixer!r}, layerdrop_prob {layerdrop_prob} and "
                f"activation_checkpointing {activation_checkpointing}, but ContextNet has neither "
                "mixers nor a way around its strides or batch statistics: pass NoMixing, 0.0 and "
                "False"
            )
        if kernel_size % 2 == 0 and not causal and encoder_module != "transformer":
            raise ValueError(
                f"kernel_size is {kernel_size}, but a convolution centred on its frame needs an "
                f"odd one: take {kernel_size + 1}"
            )
        if encoder_d_ffn is None:
            encoder_d_ffn = d_ffn
        elif not isinstance(encoder_d_ffn, int) or encoder_d_ffn < 1:
            raise ValueError(
                f"encoder_d_ffn is {encoder_d_ffn!r}, but must be a whole number above 0, or None: "
                "d_ffn"
            )
        if positional_encoding not in ("fixed_abs_sine", None):
            raise ValueError(
                f"positional_encoding is {positional_encoding!r}, but must be 'fixed_abs_sine' "
                "or None (relative and rotary attention bring their own)"
            )
        super().__init__(
            tgt_vocab,
            input_size,
            d_model=d_model,
            nhead=nhead,
            num_encoder_layers=1,  # replaced below; SpeechBrain refuses 0 without a decoder
            num_decoder_layers=num_decoder_layers,
            d_ffn=d_ffn,
            dropout=dropout,
            activation=activation,
            positional_encoding=None,
            normalize_before=normalize_before,
            encoder_module="branchformer",
            attention_type=NO_ATTENTION,
            csgu_linear_units=2,
            kernel_size=1,
            causal=False,
            output_hidden_states=output_hidden_states,
        )
        self.causal = causal
        self.positional_encoding_decoder = SinePositions(d_model)
        layer_options = {
            "branchformer": {
                "kernel_size": kernel_size,
                "csgu_linear_units": csgu_linear_units,
                "activation": branchformer_activation,
                "gate_activation": gate_activation,
                "use_linear_after_conv": use_linear_after_conv,
                "causal": causal,
            },
            "conformer": {
                "kernel_size": kernel_size,
                "d_ffn": encoder_d_ffn,
                "activation": conformer_activation,
                "bias": bias,
                "causal": causal,
            },
            "transformer": {
                "d_ffn": encoder_d_ffn,
                "activation": activation,
                "normalize_before": normalize_before,
            },
        }
        if encoder_module == "contextnet":
            self.encoder = ContextNetEncoder(
                d_model=d_model,
                num_blocks=num_encoder_layers,
                kernel_size=kernel_size,
                dropout=dropout,
                output_hidden_states=output_hidden_states,
            )
        else:
            self.encoder = ENCODERS[encoder_module](
                num_encoder_layers,
                d_model,
                token_mixer,
                output_hidden_states=output_hidden_states,
                layerdrop_prob=layerdrop_prob,
                dropout=dropout,
                **layer_options[encoder_module],
            )
            _xavier_outside_mixers(self.encoder)
        self.encoder.activation_checkpointing = activation_checkpointing
        decoder_options = {
            "nhead": nhead,
            "d_ffn": d_ffn,
            "dropout": dropout,
            "activation": activation,
            "normalize_before": normalize_before,
        }
        if summary_decoder and num_decoder_layers:
            self.decoder = SummaryDecoder(num_decoder_layers, d_model, **decoder_options)
        elif num_decoder_layers:
            parameters = self.decoder.state_dict(keep_vars=True)  # SpeechBrain's initial values
            with torch.device("meta"):
                self.decoder = SteppingDecoder(num_decoder_layers, d_model, **decoder_options)
            self.decoder.load_state_dict(parameters, assign=True)
        if positional_encoding is not None and not self.encoder.has_own_positions():
            # after custom_src_module SpeechBrain passes its output straight to the encoder
            self.custom_src_module.append(AddSinePositions(d_model))
        if causal:
            check_causal(self.encoder, d_model)

    def forward(self, src, tgt, wav_len=None, pad_idx=0, dynchunktrain_config=None):
        """Encodes speech and predicts each target token from the ones before.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F', C), the front-end's output.
        tgt : torch.Tensor or None
            (B, U), tokens after a beginning of sentence; None only encodes.
        wav_len : torch.Tensor or None
            (B,), relative lengths.
        pad_idx : int
            The token of padding.
        dynchunktrain_config : DynChunkTrainConfig or None
            Chunks of the encoder, as in ``encode``.

        Returns
        -------
        encoded : torch.Tensor
            (B, T', D).
        hidden_states : list
            Only with ``output_hidden_states``.
        decoded : torch.Tensor
            (B, U, D); before the layer that makes scores of tokens.

        Raises
        ------
        ValueError
            As ``encode``.
        """
        outputs, padding = self._encode(src, wav_len, dynchunktrain_config)
        if tgt is None:
            return outputs
        target = self.custom_tgt_module(tgt)
        decoded, _, _ = self.decoder(
            target + self.positional_encoding_decoder(target),
            outputs[0],
            tgt_mask=get_lookahead_mask(tgt),
            tgt_key_padding_mask=get_key_padding_mask(tgt, pad_idx),
            memory_key_padding_mask=padding,
        )
        return (outputs[0], *outputs[2:], decoded)

    def encode(self, src, wav_len=None, pad_idx=0, dynchunktrain_config=None):
        """Encodes speech.

        Arguments
        ---------
        src : torch.Tensor
            (B, T, F) or (B, T, F', C), the front-end's output.
        wav_len : torch.Tensor or None
            (B,), relative lengths.
        pad_idx : int
            Not used, as in SpeechBrain.
        dynchunktrain_config : DynChunkTrainConfig or None
            Each frame sees its chunk and chunks to the left of it; convolutions see zeros to the
            right of the chunk. No T x T tensor is made for mixers that support windows.

        Returns
        -------
        encoded : torch.Tensor
            (B, T', D).
        hidden_states : list
            Only with ``output_hidden_states``.

        Raises
        ------
        ValueError
            If chunks are asked of a causal encoder, or a mixer always sees the whole utterance.

        Reference: dynamic chunk training, arXiv 2012.05481.
        """
        outputs, _ = self._encode(src, wav_len, dynchunktrain_config)
        return (outputs[0], outputs[2]) if self.output_hidden_states else outputs[0]

    def _encode(self, src, wav_len, dynchunktrain_config):
        """The encoder's outputs, and the padding (B, T') of the first of them."""
        if self.causal and dynchunktrain_config is not None:
            raise ValueError(
                f"dynchunktrain_config is {dynchunktrain_config}, but the encoder is causal: pass "
                "None, or build it with causal=False"
            )
        if src.dim() == 4:
            src = src.flatten(2)
        padding = None if wav_len is None else padding_mask(wav_len, src.size(1))
        outputs = self.encoder(
            self.custom_src_module(src),
            src_mask=CAUSAL if self.causal else None,
            src_key_padding_mask=padding,
            dynchunktrain_config=dynchunktrain_config,
        )
        return outputs, None if padding is None else padding[:, :: self.encoder.stride]


def _xavier_outside_mixers(encoder):
    """Initialises the layers as SpeechBrain does, and leaves the mixers their own values."""
    mixers = {id(p) for mixer in encoder.mixers() for p in mixer.parameters()}
    for parameter in encoder.parameters():
        if parameter.dim() > 1 and id(parameter) not in mixers:
            nn.init.xavier_normal_(parameter)
