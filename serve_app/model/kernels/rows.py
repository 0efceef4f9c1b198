"""What concerns whole rows of many tensors at once: fresh state for some, and whether all of a row is finite."""

from collections.abc import Sequence
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit

_BLOCK: Final = 1024
_WIDE: Final = 4096


@jit
def _fill_rows(
    stores: tl.tuple, sizes: tl.tuple, rows_ptr: tl.tensor, values: tl.constexpr, block: tl.constexpr
) -> None:
    row = tl.load(rows_ptr + tl.program_id(0))
    lane = tl.program_id(1) * block + tl.arange(0, block)
    for index in tl.static_range(len(stores)):
        kept = stores[index].dtype.element_ty
        value = tl.full((block,), values[index], tl.float32).to(kept)
        tl.store(stores[index] + row * sizes[index] + lane, value, lane < sizes[index])


def fill_rows(stores: Sequence[Tensor], rows: Tensor, values: Sequence[float]) -> None:
    """`fused.fill_rows`, whatever the types; one launch for all stores."""
    assert all(store.is_contiguous() for store in stores), "a row of a store is one block"
    # As bytes, where Triton's boolean is one bit: a fresh flag is 0 or 1 in either.
    plain = tuple(store.view(torch.uint8) if store.dtype == torch.bool else store for store in stores)
    sizes = tuple(store[0].numel() for store in stores)
    grid = (rows.shape[0], -(-max(sizes) // _BLOCK))
    _fill_rows[grid](plain, sizes, rows, values=tuple(values), block=_BLOCK, num_warps=4)


@jit
def _all_finite(
    parts: tl.tuple,
    sizes: tl.tuple,
    strides: tl.tuple,
    steps: tl.tuple,
    executes_ptr: tl.tensor,
    out_ptr: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, block)
    spoilt = tl.zeros((block,), tl.int32)
    for index in tl.static_range(len(parts)):
        for first in range(0, sizes[index], block):
            at = first + lane
            value = tl.load(parts[index] + row * strides[index] + at * steps[index], at < sizes[index], 0.0)
            spoilt = spoilt | tl.where(tl.abs(value.to(tl.float32)) < float("inf"), 0, 1)  # NaN is less than nothing
    tl.store(out_ptr + row, (tl.max(spoilt, 0) == 0) | (tl.load(executes_ptr + row) == 0))


def all_finite(parts: Sequence[Tensor], executes: Tensor) -> Tensor:
    """`fused.all_finite`: a program a row reads it all, 0.2 MB of the 7B."""
    rows = executes.shape[0]
    out = torch.empty_like(executes)
    own = tuple(part[:rows] for part in parts)
    sizes = tuple(part.shape[1] for part in own)
    strides, steps = tuple(part.stride(0) for part in own), tuple(part.stride(1) for part in own)
    _all_finite[(rows,)](own, sizes, strides, steps, executes, out, block=_WIDE, num_warps=8)
    return out
