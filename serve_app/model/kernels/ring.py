"""Attention of a codec's two steps over its ring of 250: small, fp32, one launch.

A program is one query; it reads its keys 64 at a time with an online softmax and the tick's mask beside them. Bytes: 2
x 250 x 8 x 64 x 4 a row and layer, 1 MB; 16 rows 16 MB, 5.5 us at 3 TB/s. PyTorch copies the rows first.
"""

from typing import Final

import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

_TILE: Final = 64


@jit
def _ring_attention(
    query_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    out_ptr: tl.tensor,
    steps: tl.tensor,
    span: tl.tensor,
    capacity: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    dim_block: tl.constexpr,
    tile: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    step = tl.program_id(2)
    dim = tl.arange(0, dim_block)
    in_dim = dim < head_dim
    mine = ((row * heads + head) * steps + step) * head_dim + dim
    query = tl.load(query_ptr + mine, in_dim, 0.0).to(tl.float32)
    slot = tl.load(slots_ptr + row)
    kv_head = head // (heads // kv_heads)
    best = -float("inf")
    total = 0.0
    sums = tl.zeros((dim_block,), tl.float32)
    for first in range(0, span, tile):
        position = first + tl.arange(0, tile)
        seen = tl.load(visible_ptr + (row * steps + step) * span + position, position < span, 0) != 0
        at = ((slot * capacity + position) * kv_heads + kv_head)[:, None] * head_dim + dim[None, :]
        there = seen[:, None] & in_dim[None, :]
        key = tl.load(keys_ptr + at, there, 0.0).to(tl.float32)
        value = tl.load(values_ptr + at, there, 0.0).to(tl.float32)
        score = tl.where(seen, tl.sum(key * query[None, :], 1) * scale, -float("inf"))
        greatest = tl.maximum(best, tl.max(score, 0))
        level = tl.where(greatest == -float("inf"), 0.0, greatest)  # nothing seen yet
        fade = tl.exp(best - level)
        weight = tl.exp(score - level)
        total = total * fade + tl.sum(weight, 0)
        sums = sums * fade + tl.sum(value * weight[:, None], 0)
        best = greatest
    result = sums / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + mine, result.to(out_ptr.dtype.element_ty), in_dim)


def ring_attention(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, visible: Tensor) -> Tensor:
    """`fused.ring_attention`."""
    assert keys.is_contiguous(), "a ring is addressed as one block"
    assert values.is_contiguous(), "a ring is addressed as one block"
    assert visible.is_contiguous(), "a mask is addressed as one block"
    rows, heads, steps, head_dim = query.shape
    out = query.new_empty(query.shape)
    _ring_attention[(rows, heads, steps)](
        query.contiguous(),
        keys,
        values,
        slots,
        visible,
        out,
        steps,
        visible.shape[3],
        keys.shape[1],
        head_dim**-0.5,
        heads=heads,
        kv_heads=keys.shape[2],
        head_dim=head_dim,
        dim_block=power_of_two(head_dim),
        tile=_TILE,
        num_warps=2,
    )
    return out
