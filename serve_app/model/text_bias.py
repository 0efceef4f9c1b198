"""Repetition penalty and padding bias: what bends the text logits of each slot before a token is drawn.

Behaviour is the Rust backend's (kyutai-labs/moshi, `rust/moshi-core/src/lm_generate_multistream.rs`, whose parameters
`rust/moshi-backend/src/stream_both.rs` reads from the query):

- The penalty looks at the last ``context`` text tokens that say something: padding, its end and the initial token are
  skipped and not counted, a token that came twice counts twice. Each token found there has its logit divided by the
  penalty where it is 0 or more and multiplied by it where it is negative, once however often it came.
- After that, where the token is drawn and not the greatest taken, the probability of padding is multiplied by
  ``exp(pad_mult)`` before the top-k is cut. Here the scaled logit is raised instead: the same, without overflow.

Neutral values (penalty 1, pad_mult 0) leave every bit of the logits.
"""

import dataclasses
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from serve_app.model import fused
from serve_app.model.operation import like, nothing, operation
from serve_app.model.state import Rows
from serve_app.spec import MAX_REPETITION_CONTEXT, SessionSpec

HISTORY_TOKENS: Final = MAX_REPETITION_CONTEXT
"""Text tokens that every slot keeps."""


@dataclasses.dataclass(frozen=True, slots=True)
class Silence:
    """Text tokens that say nothing.

    Attributes:
        padding: the one that ``pad_mult`` favours.
        others: end of padding and the initial token.
    """

    padding: int
    others: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TextBias:
    """How each slot's text logits are bent, and what it has said lately.

    Attributes:
        penalty: ``fp32[slots + 1]``.
        context: ``int64[slots + 1]``, tokens that the penalty looks at.
        pad_mult: ``fp32[slots + 1]``.
        said: ``int64[slots + 1, HISTORY_TOKENS]``, a ring of the tokens that said something.
        count: ``int64[slots + 1]``, how many there were.
    """

    penalty: Tensor = dataclasses.field(metadata={"fresh": 1})
    context: Tensor
    pad_mult: Tensor
    said: Tensor
    count: Tensor

    @classmethod
    def empty(cls, slots: int, device: torch.device) -> "TextBias":
        """Neutral everywhere."""

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(slots + 1, *shape, device=device, dtype=dtype)

        real, whole = torch.float32, torch.int64
        return cls(1 + zeros(real), zeros(whole), zeros(real), zeros(whole, HISTORY_TOKENS), zeros(whole))

    def set(self, slot: int, spec: SessionSpec) -> None:
        """Take over what a session asked for. Host side, between ticks."""
        self.penalty[slot] = spec.repetition_penalty
        self.context[slot] = spec.repetition_penalty_context
        self.pad_mult[slot] = spec.pad_mult

    def penalise(self, logits: Tensor, rows: Rows, silence: Silence) -> Tensor:
        """Logits ``fp32[R, V]`` with the penalty in them; the argument keeps its values."""
        args = (logits, self.penalty, self.context, self.said, self.count, rows.slots, silence.padding)
        return (_penalise if fused.direct(logits) else _penalise_op)(*args)

    def remember(self, text: Tensor, rows: Rows, silence: Silence, text_card: int) -> None:
        """Add the text token of this step (``int64[R]``), drawn or given, where it says something.

        Args:
            text_card: tokens that can be said; others, such as -1, are not remembered.
        """
        quiet = (silence.padding, *silence.others)
        args = (self.said, self.count, text, rows.slots, rows.write, quiet, text_card)
        (_remember if fused.direct(text) else _remember_op)(*args)


def _penalise(
    logits: Tensor, penalty: Tensor, context: Tensor, said: Tensor, count: Tensor, slots: Tensor, padding: int
) -> Tensor:
    made = count.index_select(0, slots)[:, None]  # [R, 1]
    seen = context.index_select(0, slots)[:, None].minimum(made)
    age = (made - 1 - torch.arange(HISTORY_TOKENS, device=logits.device)) % HISTORY_TOKENS  # [R, H]
    # Padding is never in the history: entries that do not count point at it and write back what they read.
    tokens = torch.where(age < seen, said.index_select(0, slots), padding)
    strength = torch.where(tokens == padding, 1.0, penalty.index_select(0, slots)[:, None])
    value = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(value >= 0, value / strength, value * strength))


_penalise_op = operation("penalise", _penalise, like)


def _remember(
    said: Tensor, count: Tensor, text: Tensor, slots: Tensor, write: Tensor, quiet: Sequence[int], text_card: int
) -> None:
    kept = (text >= 0) & (text < text_card)
    for token in quiet:
        kept = kept & (text != token)
    made = count.index_select(0, slots)
    before = said.index_select(0, slots)
    here = (made % HISTORY_TOKENS)[:, None]
    value = torch.where(kept[:, None], text[:, None], before.gather(1, here))
    said.index_copy_(0, write, before.scatter(1, here, value))
    count.index_copy_(0, write, made + kept)


_remember_op = operation("remember", _remember, nothing, ("said", "count"))
