"""Joint CTC and attention training of a speech recogniser (arXiv 1609.06773)."""

import speechbrain as sb
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_summarymixing.training.brain import ExperimentBrain


class ASR(ExperimentBrain):
    """SpeechBrain's Brain for an encoder with a CTC head and an attention decoder.

    Expects the keys of ``hparams/parts/asr.yaml`` as hyperparameters.
    """

    metric = "WER"

    def on_stage_start(self, stage, epoch=None):
        """Starts the stage's clock and word error counts."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.wer_stats = ErrorRateStats()

    def validation_metric(self):
        """Returns the word error rate in percent."""
        return self.wer_stats.summarize("WER")

    def compute_forward(self, batch, stage):
        """Returns CTC and decoder log-probabilities (B, T, V), (B, U, V) and hypotheses."""
        batch = batch.to(self.device)
        self._batch_ids = batch.id
        wavs, lengths = batch.sig
        tokens_bos, _ = batch.tokens_bos
        hparams = self.hparams

        features = hparams.compute_features(wavs)
        epoch = hparams.epoch_counter.current
        features = self.modules.normalize(features, lengths, epoch=epoch)
        if stage == sb.Stage.TRAIN and hparams.feature_augment is not None:
            features, lengths = hparams.feature_augment(features, lengths)
        encoder_input = self.modules.front_end(features, lengths)
        encoded, decoded = self.modules.transformer(
            encoder_input, tokens_bos, lengths, pad_idx=hparams.blank_index
        )
        p_ctc = hparams.log_softmax(self.modules.ctc_lin(encoded))
        p_seq = hparams.log_softmax(self.modules.seq_lin(decoded))

        hypotheses = None
        if stage == sb.Stage.VALID:
            hypotheses = ctc_greedy_decode(p_ctc, lengths, blank_id=hparams.blank_index)
        elif stage == sb.Stage.TEST:
            hypotheses, _, _, _ = hparams.test_search(encoded.detach(), lengths)
        return p_ctc, p_seq, lengths, hypotheses

    def compute_objectives(self, predictions, batch, stage):
        """Returns the weighted sum of the CTC and the attention loss."""
        p_ctc, p_seq, lengths, hypotheses = predictions
        tokens, tokens_lengths = batch.tokens
        tokens_eos, tokens_eos_lengths = batch.tokens_eos
        loss_ctc = self.hparams.ctc_cost(p_ctc, tokens, lengths, tokens_lengths)
        loss_seq = self.hparams.seq_cost(p_seq, tokens_eos, length=tokens_eos_lengths)
        if stage != sb.Stage.TRAIN:
            words = [self.tokenizer.decode(list(map(int, h))).split() for h in hypotheses]
            self.wer_stats.append(batch.id, words, [wrd.split() for wrd in batch.wrd])
        weight = self.hparams.ctc_weight
        return weight * loss_ctc + (1 - weight) * loss_seq
