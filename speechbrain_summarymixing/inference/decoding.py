"""What a recogniser finds in waveforms, by the search that one chooses."""

from contextlib import contextmanager
from copy import copy
from typing import NamedTuple

import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.confidence import Span, aligned
from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam
from speechbrain_summarymixing.lobes.ctc_search import CTCGreedy, CTCPrefixBeam
from speechbrain_summarymixing.lobes.transducer_search import TransducerSearch

BLANK, *_ = CONTROLS = (0, 1, 2)  # tokens that spell nothing: unknown, also CTC's blank, begin, end
BEAM_SIZE = 10  # of CTC's search


class Hypothesis(NamedTuple):
    """What may have been said, by tokens.

    Arguments
    ---------
    tokens : list of int
    score : float or None
        Of the search: the log-probability of CTC's beam search, SpeechBrain's score of the joint
        one; None: it has none.
    spans : list of Span or None
        Of the tokens but for `CONTROLS`; None: it is not the best hypothesis.
    """

    tokens: list[int]
    score: float | None
    spans: list[Span] | None


def spelling(tokens):
    """Returns those of tokens that spell something."""
    return [token for token in tokens if token not in CONTROLS]


class Decoder:
    """Decodes batches of waveforms.

    Arguments
    ---------
    model : EncoderDecoderASR or EncoderASR
        From `transcribe.load_recognizer`.
    name : str or None
        "greedy": of CTC the most probable token of each frame, and no decoder is run. "beam":
        CTC's prefix beam search. "joint": the beam search of the attention decoder with CTC's
        scores. A transducer has its own "greedy" and "beam". None: "joint", of a transducer
        "beam", of CTC alone "greedy".
    beam_size : int or None
        Hypotheses that a beam search keeps; None: 10, or as the model was exported.
    ngram : str or Path or None
        As for `CTCBeam`.
    nbest : int
        Hypotheses that are told, of "beam" with CTC and of "joint".

    Raises
    ------
    UserError
        If the model has no such search, or the search no such option.
    """

    def __init__(self, model, name=None, *, beam_size=None, ngram=None, nbest=1):
        self.model, self.nbest = model, nbest
        own = getattr(model.mods, "decoder", None)
        transduces = isinstance(own, TransducerSearch)
        if transduces:
            searches = {"beam": own, "greedy": model.hparams.greedy_search}
        else:
            searches = {"joint": own} if own is not None else {}
            searches |= {"greedy": None, "beam": None}
        name = name or next(iter(searches))
        if name not in searches:
            raise UserError(
                f"--decoder is {name}, but this model has {' and '.join(searches)}: give one of "
                "these"
            )
        self.name, self.search, self.options = name, searches[name], {}
        self._check(beam_size, ngram, transduces)
        if beam_size is not None:
            self.options["beam_size"] = beam_size
        if name == "joint" and nbest > 1:
            self.options |= {"return_topk": True, "topk": nbest}
        if name == "beam" and not transduces:
            tokenizer = model.tokenizer
            pieces = [tokenizer.id_to_piece(token) for token in range(tokenizer.get_piece_size())]
            self.search = CTCBeam(
                pieces, blank_index=BLANK, beam_size=beam_size or BEAM_SIZE, ngram=ngram
            )

    def _check(self, beam_size, ngram, transduces):
        for option, value in (("--beam-size", beam_size), ("--nbest", self.nbest)):
            if value is not None and value < 1:
                raise UserError(f"{option} is {value}, but must be 1 or more")
        if beam_size is not None and self.name == "greedy":
            raise UserError(
                f"--beam-size is {beam_size}, but --decoder greedy has no beam: give --decoder beam"
            )
        if ngram is not None and (self.name != "beam" or transduces):
            raise UserError(
                f"--ngram is {ngram}, but n-grams join in CTC's beam search alone: give "
                "--decoder beam, and a model with a CTC head that is no transducer"
            )
        most = beam_size or getattr(self.search, "beam_size", BEAM_SIZE)
        most = 1 if self.name == "greedy" or transduces else most
        if self.nbest > most:
            raise UserError(
                f"--nbest is {self.nbest}, but this search has {most} at most: give --decoder beam "
                "or joint with a --beam-size as large (a transducer tells the best alone)"
            )

    @torch.no_grad()
    def __call__(self, wavs, lengths):
        """Decodes waveforms.

        Arguments
        ---------
        wavs : torch.Tensor
            (B, T).
        lengths : torch.Tensor
            (B,), relative.

        Returns
        -------
        list of list of Hypothesis
            Of each waveform, the best first.
        """
        model = self.model
        lengths = lengths.to(model.device)
        encoded = model.encode_batch(wavs, lengths)
        if isinstance(self.search, TransducerSearch):
            with _set(self.search, **self.options):
                return [[_emitted(*found)] for found in zip(*self.search(encoded, lengths)[:3])]
        # EncoderASR encodes as far as CTC's log-probabilities
        by_ctc = isinstance(model, EncoderASR)
        log_probs = encoded if by_ctc else model.hparams.ctc_lin(encoded).log_softmax(-1)
        frames = (lengths * encoded.size(1)).round().int().tolist()
        rows = [row[:count] for row, count in zip(log_probs, frames)]
        if self.name == "greedy":
            tokens = ctc_greedy_decode(log_probs, lengths, blank_id=BLANK)
            found = [[(one, None)] for one in tokens]
        elif self.name == "beam":
            found = [self.search.search(row, nbest=self.nbest) for row in rows]
        else:
            found = self._joint(encoded, lengths)
        return [list(_hypotheses(one, row)) for one, row in zip(found, rows)]

    def _joint(self, encoded, lengths):
        with _set(self.search, **self.options):
            tokens, sizes, scores, _ = self.search(encoded, lengths)
        scores = scores.tolist()
        if self.nbest == 1:
            return [[found] for found in zip(tokens, scores)]
        sizes = (sizes * tokens.size(2)).round().int().tolist()  # (B, N)
        return [
            [(one[:size], score) for one, size, score in zip(*columns)]
            for columns in zip(tokens.tolist(), sizes, scores)
        ]


def stream_search(model, name=None, *, beam_size=None, ngram=None):
    """Returns the search of a recogniser in streams, which `TransducerSearch` describes.

    Arguments
    ---------
    model, beam_size, ngram
        As for `Decoder`.
    name : str or None
        "greedy" or "beam", of CTC or, of a transducer, its own; None: "greedy".

    Raises
    ------
    UserError
        If streams have no such search, or the search no such option.
    """
    if name == "joint":
        raise UserError(
            "--decoder is joint, but the attention decoder needs the whole utterance: give a "
            "stream --decoder greedy or beam, or recognise whole files, without --stream"
        )
    decoder = Decoder(model, name or "greedy", beam_size=beam_size, ngram=ngram)
    if not isinstance(decoder.search, TransducerSearch):
        ctc_lin = model.hparams.ctc_lin
        return CTCPrefixBeam(ctc_lin, decoder.search) if decoder.search else CTCGreedy(ctc_lin)
    search = copy(decoder.search)  # the model's stays as it is
    for option, value in decoder.options.items():
        setattr(search, option, value)
    return search


def _hypotheses(found, log_probs):
    """Yields a `Hypothesis` for each (tokens, score), of which the first is aligned."""
    for place, (tokens, score) in enumerate(found):
        tokens, spans = list(map(int, tokens)), None
        if place == 0:
            spans = aligned(spelling(tokens), log_probs, blank=BLANK)
        yield Hypothesis(tokens, score, spans)


def _emitted(tokens, frames, log_probs):
    """The `Hypothesis` of what a transducer emits."""
    found = zip(tokens, frames, torch.tensor(log_probs).exp().tolist())
    spans = [Span(frame, frame + 1, p) for token, frame, p in found if token not in CONTROLS]
    return Hypothesis(tokens, None, spans)


@contextmanager
def _set(search, **options):
    """Changes attributes of a search while it runs."""
    before = {name: getattr(search, name) for name in options}
    try:
        for name, value in options.items():
            setattr(search, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(search, name, value)
