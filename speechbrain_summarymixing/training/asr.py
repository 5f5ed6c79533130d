"""Joint CTC and attention training of a speech recogniser (arXiv 1609.06773)."""

from pathlib import Path

import speechbrain as sb
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_summarymixing.inference.export import RECOGNITION, export
from speechbrain_summarymixing.inference.language_model import check_tokenizer, load_language_model
from speechbrain_summarymixing.training import data, metrics, sets
from speechbrain_summarymixing.training.speech import SpeechTask


class ASR(SpeechTask):
    """SpeechBrain's Brain for an encoder with a CTC head and an attention decoder.

    Its targets are the tokens of the transcript. Expects the keys of ``hparams/parts/asr.yaml`` as
    hyperparameters.
    """

    metric = "WER"
    target_names = data.SPELLED
    interface = RECOGNITION

    @classmethod
    def prepare(cls, hparams, train, others):
        """Returns the tokenizer; see `sets.spelling`."""
        tokenizer = sets.spelling(hparams, train, others)
        if hparams["lm_folder"] is not None:  # now, not after days of training
            check_tokenizer(
                hparams["lm_folder"], Path(hparams["output_folder"]) / "tokenizer.model"
            )
        return tokenizer

    def provide_targets(self, wrd):
        """Returns a transcript's tokens; see `data.spelled`."""
        return data.spelled(wrd, self.targets)

    def on_stage_start(self, stage, epoch=None):
        """Starts the stage's clock and error counts."""
        super().on_stage_start(stage, epoch)
        if stage != sb.Stage.TRAIN:
            self.wer_stats = ErrorRateStats()

    def validation_metric(self):
        """Returns the word error rate in percent."""
        return self.wer_stats.summarize("WER")

    def compute_forward(self, batch, stage):
        """Returns CTC and decoder log-probabilities (B, T, V), (B, U, V) and hypotheses."""
        batch = batch.to(self.device)
        hparams = self.hparams
        encoder_input, lengths = self.front_end(batch, stage)
        encoded, decoded = self.modules.transformer(
            encoder_input, batch.tokens_bos.data, lengths, pad_idx=hparams.blank_index
        )
        p_ctc = hparams.log_softmax(self.modules.ctc_lin(encoded))
        p_seq = hparams.log_softmax(self.modules.seq_lin(decoded))

        hypotheses = None
        if stage == sb.Stage.VALID:
            hypotheses = self.validation_hypotheses(encoded, p_ctc, lengths)
        elif stage == sb.Stage.TEST:
            hypotheses, _, _, _ = hparams.test_search(encoded.detach(), lengths)
        return p_ctc, p_seq, lengths, hypotheses

    def validation_hypotheses(self, encoded, p_ctc, lengths):
        """Returns the tokens of each utterance by CTC's best path."""
        return ctc_greedy_decode(p_ctc, lengths, blank_id=self.hparams.blank_index)

    def compute_objectives(self, predictions, batch, stage):
        """Returns the weighted sum of the CTC and the attention loss."""
        p_ctc, p_seq, lengths, hypotheses = predictions
        tokens, tokens_lengths = batch.tokens
        tokens_eos, tokens_eos_lengths = batch.tokens_eos
        loss_ctc = self.hparams.ctc_cost(p_ctc, tokens, lengths, tokens_lengths)
        loss_seq = self.hparams.seq_cost(p_seq, tokens_eos, length=tokens_eos_lengths)
        if stage != sb.Stage.TRAIN:
            self.measure(batch, [self.targets.decode(list(map(int, h))) for h in hypotheses])
        weight = self.hparams.ctc_weight
        return weight * loss_ctc + (1 - weight) * loss_seq

    def measure(self, batch, texts):
        """Counts the word errors of what was heard in a batch."""
        words = [text.split() for text in texts]
        self.wer_stats.append(batch.id, words, [wrd.split() for wrd in batch.wrd])

    def before_tests(self):
        """Lets a language model join in the search, where there is one."""
        hparams = self.hparams
        if hparams.lm_folder is not None:
            language_model = load_language_model(hparams.lm_folder)
            hparams.scorer.add_language_model(
                language_model, hparams.lm_weight, hparams.lm_temperature
            )

    def scores(self, rows):
        """Returns the WER of a test set, its 95% interval, and by the utterances' length."""
        scores = self.wer_stats.scores
        seconds = {row.ID: row.duration for row in rows}
        return {
            "WER": metrics.word_error_rate(scores),
            "WER_95": metrics.word_error_interval(scores),
            "WER_by_seconds": metrics.word_error_rate_by_length(scores, seconds),
            "utterances": len(scores),
        }

    def write_details(self, name):
        """Writes ``wer_<set>.txt``: the alignment of each utterance."""
        path = Path(self.hparams.output_folder) / f"wer_{name}.txt"
        with open(path, "w", encoding="utf-8") as file:
            self.wer_stats.write_stats(file)

    def export(self, results):
        """Writes the folder ``pretrained``, which SpeechBrain's `EncoderDecoderASR` loads."""
        export(self.hparams, results, self.interface)
