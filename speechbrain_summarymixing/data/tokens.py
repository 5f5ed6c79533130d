"""Tokens that spell transcripts: sentencepiece models, trained, taken and used."""

import hashlib
import io

import sentencepiece
import torch

from speechbrain_summarymixing.errors import UserError
from speechbrain_summarymixing.files import made_once, write_atomically
from speechbrain_summarymixing.inference.sources import find_file, load_tokenizer
from speechbrain_summarymixing.processes import on_main

TOKEN_TYPES = ("bpe", "unigram", "char")
WORD_BEGIN = "▁"  # of sentencepiece


def train_tokenizer(texts, path, *, vocab_size, token_type="bpe", symbols=(), fixed=False):
    """Trains a sentencepiece tokenizer, or loads the one already trained on the same text.

    Arguments
    ---------
    texts : list of str
        Training transcripts.
    path : str or Path
        Where the model lies; its settings stand beside it, as ``<path>.json``.
    vocab_size : int
        Number of tokens, with unknown 0 (also the CTC blank), begin 1 and end 2.
    token_type : str
        "bpe", "unigram" or "char".
    symbols : sequence of str
        Text that is one token, wherever it stands.
    fixed : bool
        Weights were trained with the tokenizer that is there: another is an error.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        If the text does not allow for so many, or so few, tokens, or is not that of the weights.
    """
    if token_type not in TOKEN_TYPES:
        raise UserError(
            f"token_type is {token_type!r}, but must be one of {', '.join(TOKEN_TYPES)}"
        )
    # sentencepiece would leave out the rarest characters, and training not learn them
    characters = len(set().union(*texts) - {" "} | {WORD_BEGIN}) + 3
    if token_type == "char" and not symbols and characters > vocab_size:
        raise UserError(
            f"vocab_size is {vocab_size}, but these {len(texts)} training transcripts have "
            f"{characters} tokens of type char: give --vocab_size {characters}"
        )
    settings = {"vocab_size": vocab_size, "token_type": token_type}
    settings["texts"] = digest(sorted(texts))  # in what order they are listed does not matter
    if symbols:
        settings["symbols"] = list(symbols)

    def make():
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=vocab_size,
                model_type=token_type,
                character_coverage=1.0,
                normalization_rule_name="identity",  # transcripts are spelled as they are
                user_defined_symbols=list(symbols),
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"vocab_size is {vocab_size}, which these {len(texts)} training transcripts do not "
                f"allow ({str(error).splitlines()[0].split(') ')[-1]}): change --vocab_size, or "
                "take --token_type char"
            ) from error
        size = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
        if size != vocab_size:  # an output without a token could be decoded
            raise UserError(
                f"vocab_size is {vocab_size}, but these {len(texts)} training transcripts have "
                f"{size} tokens of type {token_type}: give --vocab_size {size}"
            )
        write_atomically(path, model.getvalue())

    refusal = (
        f"{path}: the weights there were trained with the tokens of other transcripts than these: "
        "give those again, or take another --output_folder"
    )
    made_once(path, settings, make, refusal=refusal if fixed else None)
    return load_tokenizer(path)


def take_tokenizer(source, path, *, vocab_size):
    """Copies a trained tokenizer into a run's folder and loads it.

    Arguments
    ---------
    source : str or Path
        A folder or a hub name with the file tokenizer.ckpt.
    path : str or Path
        Where the copy goes.
    vocab_size : int
        Number of tokens that it must have, with unknown 0, begin 1 and end 2.

    Returns
    -------
    sentencepiece.SentencePieceProcessor

    Raises
    ------
    UserError
        If it is missing or other than that.
    """
    file = find_file(source, "tokenizer.ckpt", option="--tokenizer_folder")
    tokenizer = load_tokenizer(file)
    tokens = tokenizer.get_piece_size()
    ids = (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id())
    if tokens != vocab_size or ids != (0, 1, 2):
        raise UserError(
            f"{file}: has {tokens} tokens, of which unknown, begin and end are {ids}, but "
            f"--vocab_size is {vocab_size} and they must be (0, 1, 2): give its size, or another"
        )
    on_main(write_atomically, path, file.read_bytes())
    return tokenizer


def unspellable(texts, tokenizer=None):
    """Returns a function that says why a transcript cannot be written in the tokens, or None.

    Arguments
    ---------
    texts : list of str
        Training transcripts, for whose every character a tokenizer will be trained.
    tokenizer : sentencepiece.SentencePieceProcessor or None
        One that is trained already.
    """
    if tokenizer is None:
        known, where = set().union(*texts), "the training text"
    else:
        pieces = (
            tokenizer.id_to_piece(token)
            for token in range(tokenizer.get_piece_size())
            if not (tokenizer.is_control(token) or tokenizer.is_unknown(token))
        )
        known, where = set(" ").union(*pieces), "the tokenizer"

    def reason(text):
        unknown = sorted(set(text) - known)
        return f"characters not in {where}: {' '.join(unknown)}" if unknown else None

    return reason


SPELLED = ("tokens", "tokens_bos", "tokens_eos")


def spelled(wrd, tokenizer):
    """Returns the tokens of a transcript: alone, after the begin, and before the end."""
    # unknown, which validation and test may have, is also CTC's blank
    tokens = [token for token in tokenizer.encode(wrd) if token != tokenizer.unk_id()]
    return (
        torch.LongTensor(tokens),
        torch.LongTensor([tokenizer.bos_id(), *tokens]),
        torch.LongTensor([*tokens, tokenizer.eos_id()]),
    )


def digest(texts):
    """Returns a hash of a list of text."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
