"""A Depformer position: split, write its key and value, attend to the positions so far; one launch.

A program is one key head of one row: its past is at most 32 keys, one tile, so there is no loop and no split. Bytes,
bf16, at 16 rows and position 8: 32 KiB of the past and 6 of qkv a row, 0.6 MB: the floor is the launch, and a tick of
the 7B has 48 of these (8 positions x 6 layers), where PyTorch has two copies and the attention each.
"""

from typing import Final

import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

MAX_DEPTH: Final = 32
"""Positions that one tile holds."""


@jit
def _depth_attention(
    qkv_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    out_ptr: tl.tensor,
    index: tl.tensor,
    room: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    dim_block: tl.constexpr,
    room_block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    dim = tl.arange(0, dim_block)
    in_dim = dim < head_dim
    group: tl.constexpr = heads // kv_heads
    width: tl.constexpr = (heads + 2 * kv_heads) * head_dim
    at = qkv_ptr + row * width + dim
    key = tl.load(at + (heads + kv_head) * head_dim, in_dim, 0.0)
    value = tl.load(at + (heads + kv_heads + kv_head) * head_dim, in_dim, 0.0)

    past = (row * kv_heads + kv_head) * room  # [R, H, room, D]
    tl.store(keys_ptr + (past + index) * head_dim + dim, key, in_dim)
    tl.store(values_ptr + (past + index) * head_dim + dim, value, in_dim)
    position = tl.arange(0, room_block)
    before = position < index  # the new one comes from registers: what a program stores it may not read back at once
    old = (past + position)[:, None] * head_dim + dim[None, :]
    there = before[:, None] & in_dim[None, :]
    keys = tl.load(keys_ptr + old, there, 0.0).to(tl.float32)
    values = tl.load(values_ptr + old, there, 0.0).to(tl.float32)
    is_new = (position == index)[:, None]
    keys = tl.where(is_new, key.to(tl.float32)[None, :], keys)
    values = tl.where(is_new, value.to(tl.float32)[None, :], values)
    for member in tl.static_range(group):
        head = kv_head * group + member
        query = tl.load(at + head * head_dim, in_dim, 0.0).to(tl.float32)
        score = tl.sum(keys * query[None, :], 1) * scale
        score = tl.where(position <= index, score, -float("inf"))
        weight = tl.exp(score - tl.max(score, 0))
        result = tl.sum(values * weight[:, None], 0) / tl.sum(weight, 0)
        tl.store(out_ptr + (row * heads + head) * head_dim + dim, result.to(out_ptr.dtype.element_ty), in_dim)


def depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    """`fused.depth_attention`."""
    assert keys.shape[2] <= MAX_DEPTH, "one tile holds the past"
    assert keys.is_contiguous(), "a past is addressed as one block"
    assert values.is_contiguous(), "a past is addressed as one block"
    rows, kv_heads, room, head_dim = keys.shape
    out = qkv.new_empty(rows, 1, heads * head_dim)
    _depth_attention[(rows, kv_heads)](
        qkv.contiguous(),
        keys,
        values,
        out,
        index,
        room,
        head_dim**-0.5,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dim_block=power_of_two(head_dim),
        room_block=max(2, power_of_two(room)),
        num_warps=1,  # 8 x 64 values of a 7B head are 16 a lane
    )
    return out
