"""The repetition penalty on a tick's text logits, and what each row remembers to have said.

`penalise` reads and writes the logits once, 0.26 MB a row of the 7B; each value is held against the 256 tokens that the
row said last, in registers. PyTorch has 13 kernels there and 14 in `remember`.
"""

from collections.abc import Sequence
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

_BLOCK: Final = 256
_PIECE: Final = 32
"""Of the history: 256 x 32 comparisons are 64 a lane."""


@jit
def _penalise(
    logits_ptr: tl.tensor,
    penalty_ptr: tl.tensor,
    context_ptr: tl.tensor,
    said_ptr: tl.tensor,
    count_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    out_ptr: tl.tensor,
    logits_row: tl.tensor,
    vocabulary: tl.tensor,
    padding: tl.tensor,
    history: tl.constexpr,
    piece: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * block + tl.arange(0, block)
    inside = token < vocabulary
    slot = tl.load(slots_ptr + row)
    made = tl.load(count_ptr + slot)
    seen = tl.minimum(tl.load(context_ptr + slot), made)
    found = tl.zeros((block,), tl.int32)
    for first in range(0, history, piece):
        place = first + tl.arange(0, piece)
        age = (made - 1 - place + history) % history  # made may be 0
        said = tl.load(said_ptr + slot * history + place, (place < history) & (age < seen), -1)
        found = found | tl.max((said.to(tl.int32)[None, :] == token[:, None]).to(tl.int32), 1)
    strength = tl.load(penalty_ptr + slot)
    value = tl.load(logits_ptr + row * logits_row + token, inside, 0.0)
    bent = tl.where(value >= 0.0, tl.div_rn(value, strength + tl.zeros_like(value)), value * strength)
    tl.store(out_ptr + row * vocabulary + token, tl.where((found > 0) & (token != padding), bent, value), inside)


def penalise(
    logits: Tensor, penalty: Tensor, context: Tensor, said: Tensor, count: Tensor, slots: Tensor, padding: int
) -> Tensor:
    """`TextBias.penalise`."""
    assert logits.dtype == torch.float32, "logits are"
    assert logits.stride(1) == 1, "a row is one block"
    rows, vocabulary = logits.shape
    history = said.shape[1]
    out = logits.new_empty(rows, vocabulary)
    _penalise[(rows, -(-vocabulary // _BLOCK))](
        logits,
        penalty,
        context,
        said,
        count,
        slots,
        out,
        logits.stride(0),
        vocabulary,
        padding,
        history=history,
        piece=_PIECE,
        block=_BLOCK,
        num_warps=4,
    )
    return out


@jit
def _remember(
    said_ptr: tl.tensor,
    count_ptr: tl.tensor,
    text_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    write_ptr: tl.tensor,
    quiet: tl.tuple,
    text_card: tl.tensor,
    history: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    write = tl.load(write_ptr + row)
    text = tl.load(text_ptr + row)
    kept = (text >= 0) & (text < text_card)
    for index in tl.static_range(len(quiet)):
        kept = kept & (text != quiet[index])
    made = tl.load(count_ptr + slot)
    place = tl.arange(0, block)
    before = tl.load(said_ptr + slot * history + place, place < history, 0)
    after = tl.where(kept & (place == made % history), text, before)
    tl.store(said_ptr + write * history + place, after, place < history)
    tl.debug_barrier()  # every lane has read the count
    tl.store(count_ptr + write, made + kept.to(tl.int64))


def remember(
    said: Tensor, count: Tensor, text: Tensor, slots: Tensor, write: Tensor, quiet: Sequence[int], text_card: int
) -> None:
    """`TextBias.remember`."""
    history = said.shape[1]
    block = power_of_two(history)
    _remember[(slots.shape[0],)](
        said, count, text, slots, write, tuple(quiet), text_card, history=history, block=block, num_warps=1
    )
