"""Training of speech to semantics, without a transcript in between."""

from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.dataio import length_to_mask

from speechbrain_summarymixing.corpora.manifest import listed
from speechbrain_summarymixing.corpora.semantics import parse, structure
from speechbrain_summarymixing.data import sets
from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.export import UNDERSTANDING, export
from speechbrain_summarymixing.tasks import semantics_metrics
from speechbrain_summarymixing.tasks.recognition import ASR


class Understanding(ASR):
    """SpeechBrain's Brain for an encoder and an attention decoder that writes semantics.

    Its targets are the tokens of `Semantics.text`, which manifests have in the column wrd. Expects
    the keys of ``hparams/parts/asr.yaml`` as hyperparameters.
    """

    name = "understanding"
    metric = "TER"
    validates_by_ctc = reads_shards = False
    interface = UNDERSTANDING

    @classmethod
    def prepare(cls, hparams, train, others):
        """Returns the tokenizer, for which what stands around labels and fillers is a token.

        Arguments, and what is raised, are those of `SpeechTask.prepare`.
        """
        rows = [(name, row) for name, part in {**train, **others}.items() for row in part]
        names, bad = None, []
        for name, row in rows:
            try:
                names = names or list(parse(row.wrd).labels)
                parse(row.wrd, names)
            except ValueError as error:
                bad.append(f"{name}: {row.ID}: wrd {row.wrd!r} {error}")
        if bad:
            raise UserError(
                listed(f"{len(bad)} of {len(rows)} utterances without semantics in wrd", bad)
                + '\nwrite it as {"intent":"…","entities":[{"type":"…","filler":"…"}]}, with the '
                "same labels in each"
            )
        hparams["label_names"] = names  # for the export
        return super().prepare(hparams, train, others)

    @classmethod
    def tokenizer(cls, hparams, train, others):
        """Returns the tokenizer; see `sets.spelling`."""
        return sets.spelling(hparams, train, others, structure(hparams["label_names"]))

    def validation_metric(self):
        """Returns the percentage of tokens that the decoder misses, given the ones before."""
        wrong, tokens = map(sum, zip(*self.measured.values()))
        return 100.0 * wrong / tokens

    def compute_objectives(self, predictions, batch, stage):
        """Returns the weighted sum of the CTC and the attention loss; 0 for a test."""
        if stage == sb.Stage.VALID:  # a search would take as long as training, while it runs on
            tokens, lengths = batch.tokens_eos
            valid = length_to_mask((lengths * tokens.size(1)).round(), tokens.size(1)).bool()
            wrong = (predictions[1].argmax(-1) != tokens) & valid
            counts = zip(wrong.sum(1).tolist(), valid.sum(1).tolist())
            self.measured.update(zip(batch.id, counts))
        return super().compute_objectives(predictions, batch, stage)

    def measure(self, batch, hypotheses):
        """Keeps what was understood in a batch, given its tokens: None is not valid semantics."""
        for key, wrd, hypothesis in zip(batch.id, batch.wrd, hypotheses):
            try:
                meaning = parse(self.targets.decode(hypothesis), parse(wrd).labels)
            except ValueError:
                meaning = None
            self.measured[key] = meaning

    def scores(self, rows):
        """Returns accuracies and F1 of a test set; see `summarize` and `by_first_label`."""
        meanings = [parse(row.wrd) for row in rows]
        counts = [
            semantics_metrics.score(meaning, self.measured[row.ID])
            for meaning, row in zip(meanings, rows)
        ]
        return {
            **semantics_metrics.summarize(counts),
            **semantics_metrics.by_first_label(meanings, counts),
        }

    def errors(self, rows):
        """Returns (ID, 1 where the first label, such as the scenario, is wrong, 1)."""
        errors = []
        for row in rows:
            meaning = parse(row.wrd)
            right = semantics_metrics.score(meaning, self.measured[row.ID])
            errors.append((row.ID, 1 - right[f"{next(iter(meaning.labels))}_accuracy"], 1))
        return errors

    def write_details(self, name, rows):
        """Writes ``predictions_<set>.jsonl``, by file, as SLURP's scorer does, segments by ID."""
        path = Path(self.hparams.output_folder) / f"predictions_{name}.jsonl"
        files = [row.ID if row.is_segment else Path(row.wav).name for row in rows]
        meanings = [self.measured[row.ID] for row in rows]
        semantics_metrics.write_predictions(path, zip(files, meanings))

    def export(self, results):
        """Writes the folder ``pretrained``, which SpeechBrain's `EndToEndSLU` loads."""
        names = self.hparams.label_names
        export(self.hparams, results, self.interface, {"label_names": names})
