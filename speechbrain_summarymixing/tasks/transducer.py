"""Training of a transducer (arXiv 1211.3711), for whole speech and for streams."""

import speechbrain as sb

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.export import TRANSDUCER
from speechbrain_summarymixing.tasks.recognition import ASR


class Transducer(ASR):
    """SpeechBrain's Brain for an encoder with a predictor and a joiner, and at first a CTC head.

    It is validated by greedy search, and its validation loss is the transducer's alone. Expects the
    keys of ``hparams/parts/transducer.yaml`` as hyperparameters.
    """

    name = "transducer"
    validates_by_ctc = False
    interface = TRANSDUCER

    @classmethod
    def _check_decoder(cls, hparams):
        if hparams["num_decoder_layers"]:
            raise UserError(
                f"--num_decoder_layers is {hparams['num_decoder_layers']}, but a transducer has no "
                "attention decoder: leave it 0"
            )
        if hparams["lm_folder"] is not None:
            raise UserError(
                f"--lm_folder is {hparams['lm_folder']}, but a transducer's search takes no "
                "language model: leave it out"
            )
        if not 0 <= hparams["ctc_weight"] < 1:
            raise UserError(
                f"--ctc_weight is {hparams['ctc_weight']}, but must be from 0 to below 1: the rest "
                "is the transducer's weight"
            )

    @classmethod
    def _searches(cls, hparams):
        return {"own": hparams["test_search"], "greedy": hparams["greedy_search"]}

    def compute_forward(self, batch, stage):
        """Returns the joiner's scores (B, T, U + 1, V), CTC's (B, T, V), and hypotheses.

        For a test there are hypotheses alone, and CTC's scores where it joins in the loss.
        """
        batch = batch.to(self.device)
        hparams = self.hparams
        features, lengths = self.features(batch, stage)
        frames = self.modules.front_end(features, lengths)
        seen = self.seen_chunks(batch, stage)
        encoded = self.modules.transformer(frames, None, lengths, dynchunktrain_config=seen)[0]
        if stage == sb.Stage.TEST:
            return None, None, lengths, self._tested(encoded, lengths)
        p_ctc = hypotheses = None
        if stage == sb.Stage.VALID:
            hypotheses = hparams.greedy_search(encoded, lengths)[0]
        elif hparams.ctc_weight > 0 and hparams.epoch_counter.current <= hparams.ctc_epochs:
            p_ctc = hparams.log_softmax(self.modules.ctc_lin(encoded))
        return self.modules.head(encoded, batch.tokens.data), p_ctc, lengths, hypotheses

    def compute_objectives(self, predictions, batch, stage):
        """Returns the transducer's loss, weighted with CTC's in its epochs; 0 for a test."""
        scores, p_ctc, lengths, hypotheses = predictions
        tokens, tokens_lengths = batch.tokens
        if hypotheses is not None:
            self.measure(batch, hypotheses)
        if stage == sb.Stage.TEST:
            return lengths.new_zeros(())
        loss = self.hparams.transducer_cost(scores, tokens, lengths, tokens_lengths)
        if p_ctc is not None:
            weight = self.hparams.ctc_weight
            loss_ctc = self.hparams.ctc_cost(p_ctc, tokens, lengths, tokens_lengths)
            loss = weight * loss_ctc + (1 - weight) * loss
        return loss
