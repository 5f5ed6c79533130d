"""Beam search that shows a `SteppingDecoder` each token once, and what joins in its scores."""

import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import ScorerBuilder, TransformerLMScorer
from speechbrain.nnet.linear import Linear

from speechbrain_summarymixing.lobes.ctc_prefix import CTCScorer
from speechbrain_summarymixing.lobes.stepping_decoder import SteppingDecoder


def decoder_head(*, d_model, vocab_size, num_decoder_layers):
    """Returns the layer from a decoder's output (B, U, D) to scores of tokens (B, U, V).

    Arguments
    ---------
    d_model, vocab_size : int
        D and V.
    num_decoder_layers : int
        0: there is no decoder, and the layer has no weights.
    """
    if num_decoder_layers == 0:
        return torch.nn.Identity()
    return Linear(input_size=d_model, n_neurons=vocab_size)


class JointScorer(ScorerBuilder):
    """Scorers of a CTC head (`CTCScorer`) and, perhaps, of a language model (SpeechBrain's).

    Arguments
    ---------
    ctc_fc : torch.nn.Module
        From the encoder's output (B, T, D) to scores of tokens (B, T, V).
    ctc_weight : float
        Of CTC's scores; the decoder's have one minus it. 0: CTC is not asked.
    blank_index, eos_index : int
        Tokens of CTC's blank and of the end of sentence.
    language_model : torch.nn.Module or None
        From tokens (N, U) to scores (N, U, V) of the ones after them.
    lm_weight, lm_temperature : float
        Weight and temperature of its scores.

    Reference: arXiv 1609.06773 (joint decoding).
    """

    def __init__(
        self,
        ctc_fc,
        *,
        ctc_weight,
        blank_index,
        eos_index,
        language_model=None,
        lm_weight=0.6,
        lm_temperature=1.0,
    ):
        weights, scorers = {}, []
        if ctc_weight > 0:
            weights["ctc"] = ctc_weight
            scorers.append(CTCScorer(ctc_fc=ctc_fc, blank_index=blank_index, eos_index=eos_index))
        super().__init__(weights=weights, full_scorers=scorers)
        if language_model is not None:
            self.add_language_model(language_model, lm_weight, lm_temperature)

    def add_language_model(self, language_model, weight, temperature):
        """Lets a language model join in; arguments are those of the constructor."""
        self.weights["transformerlm"] = weight
        self.full_scorers["transformerlm"] = TransformerLMScorer(language_model, temperature)


class BoundedByOwnLength:
    """Lets SpeechBrain's beam search find of an utterance in a batch what it finds of it alone.

    SpeechBrain bounds the tokens of all by the longest of a batch, so that short speech beside it
    may say more. Stands before SpeechBrain's searcher among the base classes.
    """

    def change_max_decoding_length(self, min_decode_steps, max_decode_steps):
        """Lets the shortest speech have a token; SpeechBrain's search fails without a step."""
        return min_decode_steps, max(1, max_decode_steps)

    def init_beam_search_data(self, enc_states, wav_len):
        """As SpeechBrain's; notes how many tokens each utterance may have."""
        frames = (wav_len * enc_states.size(1)).round()
        most = (frames * self.max_decode_ratio).long().clamp(min=1)  # (B,)
        self._most_tokens = most.repeat_interleave(self.beam_size)
        self._last_steps = set(most.tolist())  # so that no step asks the device
        return super().init_beam_search_data(enc_states, wav_len)

    def search_step(self, *arguments):
        """As SpeechBrain's; ends the hypotheses of an utterance that has all its tokens."""
        found = super().search_step(*arguments)
        alived_hyps, finished, scores, step = found[0], found[3], found[-1], arguments[-1]
        if step + 1 < self.max_decode_steps and step + 1 in self._last_steps:
            ended = self._most_tokens == step + 1  # (N,)
            ends = torch.where(ended, self.eos_index, self.eos_index + 1)
            self._update_hyps_and_scores_if_eos_token(ends, alived_hyps, finished, scores)
            alived_hyps.sequence_scores.masked_fill_(ended, float("-inf"))
        return found


class SteppingBeamSearcher(BoundedByOwnLength, S2STransformerBeamSearcher):
    """SpeechBrain's beam search over a Transformer, whose memory is the decoder's state.

    If the model's decoder is a `SteppingDecoder`, a step decodes the newest tokens alone, with the
    states of their hypotheses, and gives attention's weights (N, T) of them, as SpeechBrain's
    recurrent decoders do. With any other decoder each step decodes the whole prefix, as
    SpeechBrain's searcher. What is said of an utterance does not depend on the others of a batch.

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

    def __init__(self, modules, *arguments, scorer=None, **options):
        super().__init__(modules, *arguments, scorer=scorer, **options)
        if scorer is not None and "ctc" in scorer.full_scorers:
            # a module of the search, which goes to its device: SpeechBrain's scorers stay
            self.ctc_fc = scorer.full_scorers["ctc"].ctc_fc

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
        if not isinstance(model.decoder, SteppingDecoder):
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
        if not isinstance(self.model.decoder, SteppingDecoder):
            return super().permute_mem(memory, index)
        return memory.permute(index)
