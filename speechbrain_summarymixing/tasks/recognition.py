"""Joint CTC and attention training of a speech recogniser (arXiv 1609.06773)."""

from functools import cached_property, partial
from pathlib import Path

import speechbrain as sb
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.utils.logger import get_logger
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_summarymixing.data import sets, tokens
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.decoding import Search
from speechbrain_summarymixing.inference.export import CTC, RECOGNITION, chunks_in_words, export
from speechbrain_summarymixing.inference.language_model import check_tokenizer, load_language_model
from speechbrain_summarymixing.tasks import chunks, metrics
from speechbrain_summarymixing.tasks.speech import SpeechTask
from speechbrain_summarymixing.tasks.transfer import HeldEncoder, load_encoder
from speechbrain_summarymixing.training.identity import longest_seconds

logger = get_logger(__name__)

METRICS = {"word": "WER", "character": "CER"}  # by ``error_unit``
LONGEST = 20.0  # s, to decode at once: a search's time and memory grow faster than its length


class ASR(SpeechTask):
    """SpeechBrain's Brain for an encoder with a CTC head and an attention decoder, or without one.

    Its targets are the tokens of the transcript. Expects the keys of ``hparams/parts/asr.yaml`` as
    hyperparameters.
    """

    name = "recognition"
    target_names = tokens.SPELLED
    interface = RECOGNITION
    validates_by_ctc = reads_shards = True
    _held = None  # a `HeldEncoder`
    _test_chunks = None  # a `DynChunkTrainConfig`, while tests are measured with it

    @property
    def metric(self):
        """WER or CER: what is an error."""
        return METRICS[self.hparams.error_unit]

    @classmethod
    def prepare(cls, hparams, train, others):
        """Returns the tokenizer; a trained encoder is loaded, where a run begins."""
        if cls.validates_by_ctc and not 0 < hparams["ctc_weight"] <= 1:
            raise UserError(
                f"--ctc_weight is {hparams['ctc_weight']}, but must be above 0 and up to 1: "
                "recognition is validated by the CTC head"
            )
        cls._check_decoder(hparams)
        if (unit := hparams["error_unit"]) not in METRICS:
            raise UserError(f"--error_unit is {unit!r}, but must be {' or '.join(METRICS)}")
        chunks.check_chunks(hparams)
        language_model, encoder = hparams["lm_folder"], hparams["encoder_folder"]
        if language_model is not None:  # now, not after days of training
            load_language_model(language_model, trust=hparams["trust"])
        if encoder is None and hparams["freeze_encoder_steps"]:
            raise UserError(
                f"--freeze_encoder_steps is {hparams['freeze_encoder_steps']}, but no encoder is "
                "trained yet: give --encoder_folder too, or 0"
            )
        if encoder is not None:
            if not sets.has_begun(hparams):  # else a checkpoint has the weights
                load_encoder(hparams, encoder)
            hparams["normalize"].update_until_epoch = 0  # the encoder knows these statistics
        tokenizer = cls.tokenizer(hparams, train, others)
        if language_model is not None:
            check_tokenizer(language_model, Path(hparams["output_folder"]) / "tokenizer.model")
        cls.search(hparams, tokenizer)  # fails now, not after days of training
        return tokenizer

    @classmethod
    def search(cls, hparams, tokenizer):
        """Returns the `Search` of tests."""
        name, beam = hparams["test_decoder"], None
        if name == "beam":
            beam = hparams["test_beam_size"]
        return Search(
            name,
            **cls._searches(hparams),
            tokenizer=tokenizer,
            option="--test_decoder",
            beam_size=beam,
            ngram=hparams["ngram"],
        )

    @classmethod
    def _searches(cls, hparams):
        """The searches that the hyperparameters make, and whether there is a CTC head."""
        own = hparams["test_search"] if hparams["num_decoder_layers"] else None
        return {"own": own, "greedy": None, "has_ctc": cls.validates_by_ctc}

    @cached_property
    def _search(self):
        return self.search(vars(self.hparams), self.targets)

    @classmethod
    def _check_decoder(cls, hparams):
        if hparams["num_decoder_layers"]:
            language_model, name = hparams["lm_folder"], hparams["test_decoder"]
            if language_model is not None and name not in (None, "joint"):
                raise UserError(
                    f"--lm_folder is {language_model}, but a language model joins in the joint "
                    f"search, and --test_decoder is {name}: leave one of them out"
                )
            return
        if not cls.validates_by_ctc:
            raise UserError(
                f"--num_decoder_layers is 0, but the {cls.name} task learns by the decoder: give 1 "
                "or more"
            )
        if hparams["ctc_weight"] != 1:
            raise UserError(
                f"--ctc_weight is {hparams['ctc_weight']}, but must be 1.0 without a decoder "
                "(--num_decoder_layers 0): CTC's is the only loss"
            )
        if hparams["lm_folder"] is not None:
            raise UserError(
                f"--lm_folder is {hparams['lm_folder']}, but a language model joins in the search "
                "of a decoder, and --num_decoder_layers is 0: leave it out"
            )

    @classmethod
    def tokenizer(cls, hparams, train, others):
        """Returns the tokenizer; see `sets.spelling`."""
        return sets.spelling(hparams, train, others)

    def on_fit_start(self):
        """As `ExperimentBrain`'s; a trained encoder is held for its first steps."""
        if self.hparams.freeze_encoder_steps:
            self._held = HeldEncoder(self.hparams.model)
            self._held.hold()
        super().on_fit_start()

    def init_optimizers(self):
        """As SpeechBrain's, of all weights: those that are held have no gradient."""
        if self._held is not None:
            self._held.release()
        super().init_optimizers()
        if self._held is not None:
            self._held.hold()

    def on_fit_batch_start(self, batch, should_step):
        """Holds the encoder, or lets it learn from now on."""
        if self._held is None:
            return
        if self.optimizer_step < self.hparams.freeze_encoder_steps:
            self._held.hold()
            return
        self._held.release()
        self._held = None
        self.wrap_anew()
        logger.info("The encoder learns from step %d on", self.optimizer_step + 1)

    def targets_of(self):
        """Returns what spells a transcript; see `tokens.spelled`."""
        return partial(tokens.spelled, tokenizer=self.targets)

    def error_stats(self):
        """Returns SpeechBrain's `ErrorRateStats` of what was measured."""
        stats = ErrorRateStats()
        stats.scores = list(self.measured.values())
        return stats

    def validation_metric(self):
        """Returns the error rate, of words or characters, in percent."""
        return self.error_stats().summarize("WER")

    def seen_chunks(self, batch, stage):
        """Returns the `DynChunkTrainConfig` that a batch is encoded with, None: all of it."""
        if stage == sb.Stage.TRAIN:
            hparams = self.hparams
            return chunks.drawn_chunks(vars(hparams), hparams.epoch_counter.current, batch.id)
        return self._test_chunks if stage == sb.Stage.TEST else None

    def compute_forward(self, batch, stage):
        """Returns CTC and decoder log-probabilities (B, T, V), (B, U, V) and hypotheses.

        A test has hypotheses alone; without a decoder there are none of its log-probabilities.
        """
        batch = batch.to(self.device)
        hparams = self.hparams
        has_decoder = hparams.num_decoder_layers > 0
        features, lengths = self.features(batch, stage)
        frames = self.modules.front_end(features, lengths)
        seen = self.seen_chunks(batch, stage)
        if stage == sb.Stage.TEST:
            encoded = self.modules.transformer.encode(frames, lengths, dynchunktrain_config=seen)
            return None, None, lengths, self._tested(encoded, lengths)
        encoded, *_, decoded = self.modules.transformer(
            frames,
            batch.tokens_bos.data if has_decoder else None,
            lengths,
            pad_idx=hparams.blank_index,
            dynchunktrain_config=seen,
        )
        p_ctc = p_seq = None
        if hparams.ctc_weight > 0:
            p_ctc = hparams.log_softmax(self.modules.ctc_lin(encoded))
        if has_decoder:
            p_seq = hparams.log_softmax(self.modules.seq_lin(decoded))

        hypotheses = None
        if stage != sb.Stage.TRAIN and self.validates_by_ctc:
            hypotheses = ctc_greedy_decode(p_ctc, lengths, blank_id=hparams.blank_index)
        return p_ctc, p_seq, lengths, hypotheses

    def _tested(self, encoded, lengths):
        """The tokens that the search of tests finds in each utterance."""
        log_probs = None
        if self._search.by_ctc:
            log_probs = self.hparams.log_softmax(self.modules.ctc_lin(encoded))
        return [tokens for ((tokens, _), *_) in self._search(encoded, log_probs, lengths)]

    def compute_objectives(self, predictions, batch, stage):
        """Returns the weighted sum of the CTC and the attention loss; 0 for a test."""
        p_ctc, p_seq, lengths, hypotheses = predictions
        tokens, tokens_lengths = batch.tokens
        tokens_eos, tokens_eos_lengths = batch.tokens_eos
        if hypotheses is not None:
            self.measure(batch, [list(map(int, hypothesis)) for hypothesis in hypotheses])
        if stage == sb.Stage.TEST:
            return lengths.new_zeros(())
        weight, loss = self.hparams.ctc_weight, 0.0
        if p_seq is not None:
            loss_seq = self.hparams.seq_cost(p_seq, tokens_eos, length=tokens_eos_lengths)
            loss = (1 - weight) * loss_seq
        if p_ctc is not None:
            loss_ctc = self.hparams.ctc_cost(p_ctc, tokens, lengths, tokens_lengths)
            loss = weight * loss_ctc + loss
        return loss

    def measure(self, batch, hypotheses):
        """Counts the errors of what was heard in a batch, given its tokens."""
        words = [self.targets.decode(hypothesis).split() for hypothesis in hypotheses]
        stats = ErrorRateStats(split_tokens=self.hparams.error_unit == "character")
        stats.append(batch.id, words, [wrd.split() for wrd in batch.wrd])
        self.measured.update((score["key"], score) for score in stats.scores)

    def before_tests(self):
        """Lets a language model join in the search, where there is one."""
        hparams = self.hparams
        if hparams.lm_folder is not None:
            language_model = load_language_model(hparams.lm_folder, trust=hparams.trust)
            hparams.scorer.add_language_model(
                language_model, hparams.lm_weight, hparams.lm_temperature
            )

    def scores(self, rows):
        """Returns the WER (or CER) of a test set, its 95% interval, and by the length of speech."""
        scores = self.error_stats().scores
        seconds = {row.ID: row.duration for row in rows}
        by_length = metrics.word_error_rate_by_length(scores, seconds, name=self.metric)
        return {
            self.metric: metrics.word_error_rate(scores),
            f"{self.metric}_95": metrics.word_error_interval(scores),
            f"{self.metric}_by_seconds": by_length,
            "utterances": len(scores),
        }

    def scores_anew(self, evaluate, rows):
        """Returns ``chunks``: what was measured with each of ``test_chunks``."""
        hparams, found = vars(self.hparams), []
        frame_ms = 1000 * hparams["compute_features"].samples / hparams["sample_rate"]
        for config in chunks.tested_chunks(hparams):
            self._test_chunks = config
            evaluate()
            scores = self.scores(rows)
            measured = {k: v for k, v in scores.items() if f"{k.removesuffix('_95')}_95" in scores}
            found.append({**chunks.duration_of(config, frame_ms), **measured})
            told = ", ".join(f"{k} {v:.2f}%" for k, v in measured.items() if f"{k}_95" in scores)
            logger.info("%s: %s", chunks_in_words(found[-1]), told)
        self._test_chunks = None
        return {"chunks": found} if found else {}

    def errors(self, rows):
        """Returns (ID, edits, words or characters) of each utterance."""
        scores = [self.measured[row.ID] for row in rows]
        return [(score["key"], score["num_edits"], score["num_ref_tokens"]) for score in scores]

    def write_details(self, name, rows):
        """Writes ``wer_<set>.txt`` or ``cer_<set>.txt``: the alignment of each utterance."""
        path = Path(self.hparams.output_folder) / f"{self.metric.lower()}_{name}.txt"
        with open(path, "w", encoding="utf-8") as file:
            self.error_stats().write_stats(file)

    def export(self, results):
        """Writes the folder ``pretrained``, which SpeechBrain's `EncoderDecoderASR` loads.

        Without a decoder it is `EncoderASR` that loads it.
        """
        hparams = self.hparams
        seconds = longest_seconds(hparams.output_folder)
        found = {} if seconds is None else {"segment_seconds": round(min(seconds, LONGEST), 2)}
        if hparams.chunk_frames is not None:
            found |= {key: getattr(hparams, key) for key in chunks.TOLD}
        interface = self.interface
        if interface is RECOGNITION and not hparams.num_decoder_layers:
            interface = CTC
        export(hparams, results, interface, found)
