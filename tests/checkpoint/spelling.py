"""A small SentencePiece model with byte fallback, made on the spot."""

import functools
import io
from pathlib import Path

import sentencepiece

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "hello there how are you today",
    "a parrot says what it hears about a second later",
    "she sells sea shells by the sea shore",
    "one two three four five six seven eight nine ten",
]


def write_tokenizer(path: Path, add_dummy_prefix: bool = True) -> Path:
    """Write a unigram model with the published layout: 0 unknown, 1 and 2 control, 3 padding, then bytes."""
    path.write_bytes(_train(add_dummy_prefix))
    return path


@functools.cache
def _train(add_dummy_prefix: bool) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        vocab_size=320,
        byte_fallback=True,
        pad_id=3,
        add_dummy_prefix=add_dummy_prefix,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()
