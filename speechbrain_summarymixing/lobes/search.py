"""Beam search that shows a `SummaryDecoder` each token once."""

import torch
from speechbrain.decoders import S2STransformerBeamSearcher

from speechbrain_summarymixing.lobes.summary_decoder import SummaryDecoder


class SteppingBeamSearcher(S2STransformerBeamSearcher):
    """SpeechBrain's beam search over a Transformer, whose memory is the decoder's state.

    If the model's decoder is a `SummaryDecoder`, a step decodes the newest tokens alone, with the
    states of their hypotheses, and gives attention's weights (N, T) of them, as SpeechBrain's
    recurrent decoders do. With any other decoder each step decodes the whole prefix, as
    SpeechBrain's searcher.

    Arguments are those of SpeechBrain's searcher.

    Example
    -------
    >>> from functools import partial
    >>> from speechbrain.nnet.linear import Linear
    >>> from speechbrain_summarymixing.lobes.asr import SummaryMixingASR
    >>> from speechbrain_summarymixing.nnet.summary_mixing import SummaryMixing
    >>> model = SummaryMixingASR(
    ...     30, 40, token_mixer=partial(SummaryMixing, 16), d_model=16, nhead=2,
    ...     num_encoder_layers=1, num_decoder_layers=1, d_ffn=32, csgu_linear_units=32,
    ...     summary_decoder=True,
    ... ).eval()
    >>> search = SteppingBeamSearcher(
    ...     modules=[model, Linear(input_size=16, n_neurons=30)], bos_index=1, eos_index=2,
    ...     min_decode_ratio=0.0, max_decode_ratio=1.0, beam_size=4,
    ... )
    >>> hypotheses, lengths, scores, _ = search(model.encode(torch.rand(2, 25, 40)), torch.ones(2))
    >>> len(hypotheses), scores.shape
    (2, torch.Size([2]))
    """

    def forward_step(self, inp_tokens, memory, enc_states, enc_lens):
        """Scores the tokens that may follow.

        Arguments
        ---------
        inp_tokens : torch.Tensor
            (N,), the newest of each hypothesis.
        memory : DecoderState or None
            From the step before; None starts.
        enc_states, enc_lens : torch.Tensor
            (N, T, D) and (N,), the encoder's output and its lengths in frames.

        Returns
        -------
        log_probs : torch.Tensor
            (N, V).
        memory : DecoderState
            For the next step.
        weights : torch.Tensor
            (N, T), of the last layer over the encoder's output.
        """
        model = self.model
        if not isinstance(model.decoder, SummaryDecoder):
            return super().forward_step(inp_tokens, memory, enc_states, enc_lens)
        with torch.no_grad():
            if memory is None:
                frames = torch.arange(enc_states.size(1), device=enc_states.device)
                padding = frames >= enc_lens[:: self.beam_size, None]  # (B, T)
                memory = model.decoder.start(
                    enc_states[:: self.beam_size], padding, beams=self.beam_size
                )
            token = model.custom_tgt_module(inp_tokens.unsqueeze(1))  # (N, 1, D)
            position = model.positional_encoding_decoder(token, start=memory.tokens)
            decoded, weights, memory = model.decoder.step(token + position, memory)
            log_probs = self.softmax(self.fc(decoded.squeeze(1)) / self.temperature)
        return log_probs, memory, weights.squeeze(1)

    def permute_mem(self, memory, index):
        """Lets each hypothesis go on with the memory of the one at its ``index`` (N,)."""
        if not isinstance(self.model.decoder, SummaryDecoder):
            return super().permute_mem(memory, index)
        return memory.permute(index)
