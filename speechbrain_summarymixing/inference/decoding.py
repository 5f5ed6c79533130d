"""What a recogniser finds in waveforms, by the search that one chooses."""

from copy import copy

import torch
from speechbrain.decoders import ctc_greedy_decode
from speechbrain.inference.ASR import EncoderASR
from torchaudio.functional import forced_align, merge_tokens

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.inference.confidence import Span
from speechbrain_summarymixing.inference.transcripts import BLANK, CONTROLS, Hypothesis, spelling
from speechbrain_summarymixing.lobes.ctc_beam import CTCBeam
from speechbrain_summarymixing.lobes.ctc_search import CTCGreedy, CTCPrefixBeam
from speechbrain_summarymixing.lobes.transducer_search import TransducerSearch

BEAM_SIZE = 10  # of CTC's search


class Search:
    """Finds tokens in what an encoder tells, by the search that one chooses.

    Arguments
    ---------
    name : str or None
        "greedy": of CTC the most probable token of each frame, and no decoder is run. "beam":
        CTC's prefix beam search. "joint": the beam search of the attention decoder with CTC's
        scores. A transducer has its own "greedy" and "beam". None: "joint", of a transducer
        "beam", of CTC alone "greedy".
    own : torch.nn.Module or None
        The model's beam search, joint or a transducer's; None: it has CTC alone.
    greedy : TransducerGreedy or None
        Of a transducer.
    tokenizer : sentencepiece.SentencePieceProcessor or Tokens
    has_ctc : bool
        False: there is no CTC head to search by.
    option : str
        What the user gave the name by.
    beam_size : int or None
        Hypotheses that a beam search keeps; None: 10, or as the model was exported.
    ngram, hotwords, hotword_weight
        As for `CTCBeam`.
    nbest : int
        Hypotheses that are told, of "beam" with CTC and of "joint".

    Raises
    ------
    UserError
        If the model has no such search, or the search no such option.
    """

    def __init__(
        self,
        name,
        *,
        own,
        greedy,
        tokenizer,
        has_ctc=True,
        option="--decoder",
        beam_size=None,
        ngram=None,
        hotwords=None,
        hotword_weight=None,
        nbest=1,
    ):
        self.nbest, self._option = nbest, option
        self.transduces = isinstance(own, TransducerSearch)
        if self.transduces:
            searches = {"beam": own, "greedy": greedy}
        else:
            searches = {"joint": own} if own is not None else {}
            searches |= {"greedy": None, "beam": None} if has_ctc else {}
        name = name or next(iter(searches))
        if name not in searches:
            raise UserError(
                f"{option} is {name}, but this model has {' and '.join(searches)}: give one of "
                "these"
            )
        self.name, self.search = name, searches[name]
        self.by_ctc = not (self.transduces or name == "joint")
        joins = {"ngram": ngram, "hotwords": hotwords, "hotword_weight": hotword_weight}
        self._check(beam_size, joins)
        options = {} if beam_size is None else {"beam_size": beam_size}
        if name == "joint" and nbest > 1:
            options |= {"return_topk": True, "topk": nbest}
        if options and not self.by_ctc:
            self.search = copy(self.search)  # the model's stays as it is
            for option, value in options.items():
                setattr(self.search, option, value)
        if name == "beam" and self.by_ctc:
            pieces = [tokenizer.id_to_piece(token) for token in range(tokenizer.get_piece_size())]
            self.search = CTCBeam(
                pieces, blank_index=BLANK, beam_size=beam_size or BEAM_SIZE, **joins
            )

    def _check(self, beam_size, joins):
        for option, value in (("--beam-size", beam_size), ("--nbest", self.nbest)):
            if value is not None and value < 1:
                raise UserError(f"{option} is {value}, but must be 1 or more")
        if beam_size is not None and self.name == "greedy":
            raise UserError(
                f"--beam-size is {beam_size}, but {self._option} greedy has no beam: give "
                f"{self._option} beam"
            )
        given = {option: value for option, value in joins.items() if value is not None}
        for option, value in given.items():
            if self.name != "beam" or not self.by_ctc:
                raise UserError(
                    f"--{option.replace('_', '-')} is {value}, but n-grams and hotwords join in "
                    f"CTC's beam search alone: give {self._option} beam, and a model with a CTC "
                    "head that is no transducer"
                )
        most = beam_size or getattr(self.search, "beam_size", BEAM_SIZE)
        most = 1 if self.name == "greedy" or self.transduces else most
        if self.nbest > most:
            raise UserError(
                f"--nbest is {self.nbest}, but this search has {most} at most: give --decoder beam "
                "or joint with a --beam-size as large (a transducer tells the best alone)"
            )

    def transduced(self, encoded, lengths):
        """Returns of each utterance a transducer's tokens, their frames and log-probabilities.

        Arguments are those of `TransducerSearch.forward`.
        """
        return list(zip(*self.search(encoded, lengths)[:3]))

    def __call__(self, encoded, log_probs, lengths):
        """Returns of each utterance its hypotheses, (tokens, score or None), the best first.

        Arguments
        ---------
        encoded : torch.Tensor
            (B, T, D), of the encoder.
        log_probs : torch.Tensor or None
            (B, T, V), of the CTC head; None where "greedy" and "beam" do not ask it.
        lengths : torch.Tensor
            (B,), relative.
        """
        if self.transduces:
            return [[(tokens, None)] for tokens, *_ in self.transduced(encoded, lengths)]
        if self.name == "joint":
            return self._joint(encoded, lengths)
        if self.name == "greedy":
            tokens = ctc_greedy_decode(log_probs, lengths, blank_id=BLANK)
            return [[(one, None)] for one in tokens]
        return [self.search.search(row, nbest=self.nbest) for row in rows_of(log_probs, lengths)]

    def _joint(self, encoded, lengths):
        tokens, sizes, scores, _ = self.search(encoded, lengths)
        scores = scores.tolist()
        if self.nbest == 1:
            return [[found] for found in zip(tokens, scores)]
        sizes = (sizes * tokens.size(2)).round().int().tolist()  # (B, N)
        return [
            [(one[:size], score) for one, size, score in zip(*columns)]
            for columns in zip(tokens.tolist(), sizes, scores)
        ]


class Decoder:
    """Decodes batches of waveforms.

    Arguments
    ---------
    model : EncoderDecoderASR or EncoderASR
        From `transcribe.load_recognizer`.
    name : str or None
        As for `Search`.
    **options
        As for `Search`, from beam_size on.

    Raises
    ------
    UserError
        As `Search` does.
    """

    def __init__(self, model, name=None, **options):
        self.model = model
        self.search = Search(
            name,
            own=getattr(model.mods, "decoder", None),
            greedy=getattr(model.hparams, "greedy_search", None),
            tokenizer=model.tokenizer,
            **options,
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
        if self.search.transduces:
            return [[_emitted(*found)] for found in self.search.transduced(encoded, lengths)]
        # EncoderASR encodes as far as CTC's log-probabilities
        by_ctc = isinstance(model, EncoderASR)
        log_probs = encoded if by_ctc else model.hparams.ctc_lin(encoded).log_softmax(-1)
        found = self.search(encoded, log_probs, lengths)
        rows = rows_of(log_probs, lengths)
        return [list(_hypotheses(one, row)) for one, row in zip(found, rows)]


def rows_of(log_probs, lengths):
    """Returns of each utterance its frames (T', V) of log-probabilities (B, T, V)."""
    frames = (lengths * log_probs.size(1)).round().int().tolist()
    return [row[:count] for row, count in zip(log_probs, frames)]


def aligned(tokens, log_probs, *, blank):
    """Returns where tokens are said by CTC's most probable alignment.

    Arguments
    ---------
    tokens : list of int
        What a search found, without blank, begin and end.
    log_probs : torch.Tensor
        (T, V), of CTC.
    blank : int
        CTC's.

    Returns
    -------
    list of Span
        With the mean probability of each token over its frames. Tokens that are more than the
        frames share these evenly, and have a confidence of 0.
    """
    frames, count = log_probs.size(0), len(tokens)
    repeated = sum(a == b for a, b in zip(tokens, tokens[1:]))  # a blank stands between
    if not tokens or count + repeated > frames:
        return [Span(frames * i / count, frames * (i + 1) / count, 0.0) for i in range(count)]
    targets = torch.tensor([tokens], device=log_probs.device)
    path, scores = forced_align(log_probs.unsqueeze(0).float(), targets, blank=blank)
    spans = merge_tokens(path[0], scores[0].exp(), blank=blank)
    return [Span(span.start, span.end, span.score) for span in spans]


def stream_search(model, name=None, **options):
    """Returns the search of a recogniser in streams, which `TransducerSearch` describes.

    Arguments
    ---------
    model
        As for `Decoder`.
    name : str or None
        "greedy" or "beam", of CTC or, of a transducer, its own; None: "greedy".
    **options
        As for `Search`, from beam_size on.

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
    chosen = Decoder(model, name or "greedy", **options).search
    if not chosen.transduces:
        ctc_lin = model.hparams.ctc_lin
        return CTCPrefixBeam(ctc_lin, chosen.search) if chosen.search else CTCGreedy(ctc_lin)
    return chosen.search


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
