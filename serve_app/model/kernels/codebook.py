"""The nearest entry of each level of a residual quantiser: two launches a level, the library's product and this.

Each level needs the code of the one before, so one launch for all would have a program read every level's entries
alone, 8 x 2 MB through one multiprocessor: some 300 us where 16 launches take 50.
"""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two


@jit
def _nearest(
    distance_ptr: tl.tensor,
    entries_ptr: tl.tensor,
    x_ptr: tl.tensor,
    left_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    card: tl.tensor,
    dim: tl.tensor,
    level: tl.tensor,
    levels: tl.tensor,
    card_block: tl.constexpr,
    dim_block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, card_block)
    distance = tl.load(distance_ptr + row * card + entry, entry < card, float("inf"))
    code = tl.minimum(tl.argmin(distance, 0), card - 1)  # of a row that is not finite too
    lane = tl.arange(0, dim_block)
    inside = lane < dim
    found = tl.load(entries_ptr + code.to(tl.int64) * dim + lane, inside, 0.0)
    x = tl.load(x_ptr + row * dim + lane, inside, 0.0)
    tl.store(left_ptr + row * dim + lane, x - found, inside)
    tl.store(codes_ptr + row * levels + level, code.to(tl.int64))


def residual_search(x: Tensor, entries: Sequence[Tensor], half_norms: Sequence[Tensor]) -> Tensor:
    """`fused_codec.residual_search`."""
    rows, dim = x.shape
    levels, card = len(entries), entries[0].shape[0]
    codes = x.new_empty(rows, levels, dtype=torch.int64)
    x = x.contiguous()
    for level, (table, half_norm) in enumerate(zip(entries, half_norms, strict=True)):
        distance = torch.addmm(half_norm, x, table.T, alpha=-1)
        left = torch.empty_like(x)
        _nearest[(rows,)](
            distance,
            table,
            x,
            left,
            codes,
            card,
            dim,
            level,
            levels,
            card_block=power_of_two(card),
            dim_block=power_of_two(dim),
            num_warps=4,
        )
        x = left
    return codes
