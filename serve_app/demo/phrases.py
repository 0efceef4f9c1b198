"""What the parrot writes, and the small SentencePiece model that spells it.

It writes when somebody begins to speak and when they stop. Every token of a phrase has one successor, so the model
needs to remember nothing but its last token; the parrot itself is spelt in bytes.
"""

import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Final

import sentencepiece

from serve_app.demo.texts import TRAINING

BEGINNINGS: Final = (" I hear you", " yes 🦜", " go on")
"""Written when speech begins; which one is up to the sampling."""
ENDING: Final = "."
"""Written when speech stops."""
SPEAKING: Final = 0
"""The silent token of a step in which somebody speaks: Kyutai's end of padding."""
QUIET: Final = 3
"""The silent token of every other step: Kyutai's padding."""
TEXT_CARD: Final = 512
_SENTENCES: Final = 2_000


@dataclasses.dataclass(frozen=True)
class Phrases:
    """The phrases as tokens: one list per beginning, and the ending's single token."""

    beginnings: tuple[tuple[int, ...], ...]
    ending: int

    @property
    def links(self) -> list[tuple[int, int]]:
        """Every (token, successor) inside a phrase."""
        return [pair for tokens in self.beginnings for pair in itertools.pairwise(tokens)]


def train_tokenizer(seed: int) -> bytes:
    """A SentencePiece model with byte fallback and Kyutai's special tokens, trained on our own sentences."""
    sentences = TRAINING.sentences(seed)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([next(sentences) for _ in range(_SENTENCES)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=TEXT_CARD,
        byte_fallback=True,
        normalization_rule_name="identity",
        unk_id=SPEAKING,
        bos_id=1,
        eos_id=2,
        pad_id=QUIET,
        user_defined_symbols=_words(),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def read_phrases(tokenizer: bytes) -> Phrases:
    """The phrases in the tokens of this model."""
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(tokenizer)
    spelt = tuple(tuple(_spell(processor, phrase)) for phrase in BEGINNINGS)
    (ending,) = _spell(processor, ENDING)
    inside = [token for tokens in spelt for token in tokens]
    assert len(set(inside)) == len(inside), "a token with two successors"
    return Phrases(spelt, ending)


def _words() -> list[str]:
    words = [word for phrase in BEGINNINGS for word in phrase.split() if word.isascii()]
    return [f"▁{word}" for word in words] + [ENDING]


def _spell(processor: sentencepiece.SentencePieceProcessor, phrase: str) -> Sequence[int]:
    """Tokens of a phrase whose words are pieces; what is not, is bytes and has no space before it."""
    tokens: list[int] = []
    for word in phrase.split():
        piece = processor.PieceToId(word if word == ENDING else f"▁{word}")
        if piece != processor.unk_id():
            tokens.append(piece)
        else:
            tokens += [processor.PieceToId(f"<0x{byte:02X}>") for byte in word.encode()]
    return tokens
