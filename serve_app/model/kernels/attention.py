"""Attention of one new step of every row over what the row holds, in pages: what grows with a conversation.

Two phases. `partial` splits each row's own length evenly over ``splits`` programs per key head, so that a long row
beside short ones does not decide how long the launch lasts; each runs an online softmax in fp32 over tiles of keys,
found through the page table token by token, so a page size need not divide the capacity nor a tile a page. `combine`
weighs the parts. With one split `partial` writes the result and `combine` is not launched.

The ring keeps the last ``capacity`` steps at positions 0..min(length, capacity)-1 (position = offset % capacity), and
one new query sees them all, so the window test is that bound: what a last page holds beyond the capacity is never
read.

Bytes per row: 2 x min(length, capacity) x H x D x (2, or 1 and 4 / D for a scale). The 7B at length 1,500: 24.6 MB a
layer and row, 8.2 us at 3 TB/s; 16 rows and 32 layers 4.2 ms, the largest term of the roofline after the weights.
Parts: splits x R x Hq x (D + 1) x 4, written and read once; 0.5 MB at 16 rows and 2 splits.

One query head per key head (every published model) multiplies and adds on the plain cores: an fp32 product per 2
bytes read is 1.5 T/s at full bandwidth, a twentieth of an H100's rate, and a matrix product of one row would waste 15
of 16. Grouped heads share a tile and use the matrix cores, padded to 16 rows.
"""

from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import interpreted, jit
from serve_app.model.kernels.splits import PROCESSORS, power_of_two, split_count

_TILE: Final = 64
"""Keys a step: 16 KiB of bf16 keys at D = 128, 3 stages of 2 programs keep 3 TB/s in flight."""
_MATRIX_ROWS: Final = 16
"""Least rows of a matrix product."""


@jit
def _partial(
    query_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    key_scale_ptr: tl.tensor,
    value_scale_ptr: tl.tensor,
    table_ptr: tl.tensor,
    length_ptr: tl.tensor,
    out_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    table_row: tl.tensor,
    capacity: tl.tensor,
    scale: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    page: tl.constexpr,
    splits: tl.constexpr,
    group: tl.constexpr,
    group_block: tl.constexpr,
    dim_block: tl.constexpr,
    tile: tl.constexpr,
    quantised: tl.constexpr,
    factor: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.minimum(tl.load(length_ptr + row), capacity).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, splits), tile) * tile  # whole tiles, so that no two programs read the same lines
    start = split * share
    end = tl.minimum(start + share, length)

    dim = tl.arange(0, dim_block)
    in_dim = dim < head_dim
    member = tl.arange(0, group_block)
    in_group = member < group
    head = kv_head * group + member
    q_at = (row * heads + head)[:, None] * head_dim + dim[None, :]
    query = tl.load(query_ptr + q_at, in_group[:, None] & in_dim[None, :], 0.0)  # [G, D]

    best = tl.full((group_block,), -float("inf"), tl.float32)
    total = tl.zeros((group_block,), tl.float32)
    sums = tl.zeros((group_block, dim_block), tl.float32)
    for first in tl.range(start, end, tile, num_stages=stages):
        position = first + tl.arange(0, tile)
        held = position < end
        in_page = tl.load(table_ptr + row * table_row + position // page, held, 0).to(tl.int64)
        token = (in_page * page + position % page) * kv_heads + kv_head  # int64: a pool is past 2**31 values
        at = token[:, None] * head_dim + dim[None, :]
        there = held[:, None] & in_dim[None, :]
        key = tl.load(keys_ptr + at, there, 0.0)  # [N, D]
        value = tl.load(values_ptr + at, there, 0.0)
        if group == 1:
            score = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1)[None, :]  # [1, N]
        else:
            score = tl.dot(query.to(factor), tl.trans(key.to(factor)), input_precision="ieee")
        score = score * scale
        if quantised:  # a token's scale is a factor of its score, and of its weight: the tile stays as it was read
            score = score * tl.load(key_scale_ptr + token, held, 0.0).to(tl.float32)[None, :]
        score = tl.where(held[None, :], score, -float("inf"))
        greatest = tl.maximum(best, tl.max(score, 1))
        fade = tl.exp(best - greatest)  # never -inf - -inf: a tile holds a key
        weight = tl.exp(score - greatest[:, None])
        total = total * fade + tl.sum(weight, 1)
        if quantised:
            weight = weight * tl.load(value_scale_ptr + token, held, 0.0).to(tl.float32)[None, :]
        if group == 1:
            update = tl.sum(tl.trans(weight) * value.to(tl.float32), 0)[None, :]  # [1, D]
        else:
            update = tl.dot(weight.to(factor), value.to(factor), input_precision="ieee")
        sums = sums * fade[:, None] + update
        best = greatest

    empty = total == 0.0  # a row without keys, or a split without tokens: zeros, and no weight among the parts
    result = sums / tl.where(empty, 1.0, total)[:, None]
    part = (row * heads + head) * splits + split
    kept = in_group[:, None] & in_dim[None, :]
    tl.store(out_ptr + part[:, None] * head_dim + dim[None, :], result.to(out_ptr.dtype.element_ty), kept)
    if splits > 1:
        log_weight = tl.where(empty, -float("inf"), best + tl.log(tl.where(empty, 1.0, total)))
        tl.store(weight_ptr + part, log_weight, in_group)


@jit
def _combine(
    part_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    head_dim: tl.constexpr,
    splits: tl.constexpr,
    dim_block: tl.constexpr,
) -> None:
    head = tl.program_id(0).to(tl.int64)  # of all rows
    split = tl.arange(0, splits)
    dim = tl.arange(0, dim_block)
    in_dim = dim < head_dim
    log_weight = tl.load(weight_ptr + head * splits + split)
    best = tl.max(log_weight, 0)
    weight = tl.exp(log_weight - tl.where(best == -float("inf"), 0.0, best))  # all zero for a row without keys
    total = tl.sum(weight, 0)
    at = (head * splits + split)[:, None] * head_dim + dim[None, :]
    part = tl.load(part_ptr + at, in_dim[None, :], 0.0)
    result = tl.sum(part * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(out_ptr + head * head_dim + dim, result.to(out_ptr.dtype.element_ty), in_dim)


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    length: Tensor,
    capacity: int,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    splits: int | None = None,
) -> Tensor:
    """`fused.decode_attention` in two launches, or in one when a row is not split; accumulated in fp32.

    Blocks of the table past a row's length may hold anything: they are not read. A row of length 0 gives zeros.

    Args:
        splits: programs that share a row; None takes what fills this GPU.
    """
    assert keys.is_contiguous(), "a store is addressed as one block"
    assert values.is_contiguous(), "a store is addressed as one block"
    assert table.stride(1) == 1 or table.shape[1] == 1, "a row of the table is one block"
    if splits is None:
        tokens = min(capacity, table.shape[1] * keys.shape[1])
        splits = split_count(query.shape[0], keys.shape[2], tokens, processors_of(query.device))
    part, weight = partial(query, keys, values, table, length, capacity, key_scale, value_scale, splits)
    return part.squeeze(2) if splits == 1 else combine(part, weight, query.dtype)


def processors_of(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU."""
    if device.type != "cuda":
        return PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def partial(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    length: Tensor,
    capacity: int,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    splits: int,
) -> tuple[Tensor, Tensor]:
    """The parts ``[R, Hq, splits, D]`` (fp32, or query's dtype for one) and log weights ``fp32[R, Hq, splits]``."""
    rows, heads, head_dim = query.shape
    _, page, kv_heads, _ = keys.shape
    group = heads // kv_heads
    dtype = query.dtype if splits == 1 else torch.float32
    out = query.new_empty(rows, heads, splits, head_dim, dtype=dtype)
    weight = query.new_empty(rows, heads, splits, dtype=torch.float32)
    _partial[(rows, kv_heads, splits)](
        query.contiguous(),
        keys,
        values,
        keys if key_scale is None else key_scale,
        values if value_scale is None else value_scale,
        table,
        length,
        out,
        weight,
        table.stride(0),
        capacity,
        head_dim**-0.5,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        page=page,
        splits=splits,
        group=group,
        group_block=1 if group == 1 else max(_MATRIX_ROWS, power_of_two(group)),
        dim_block=power_of_two(head_dim) if group == 1 else max(_MATRIX_ROWS, power_of_two(head_dim)),
        tile=_TILE,
        quantised=key_scale is not None,
        # The interpreter has no matrix product of bf16 (triton 3.7.0); int8 and fp8 are exact in either type.
        factor=tl.bfloat16 if query.dtype == torch.bfloat16 and not interpreted(_partial) else tl.float32,
        stages=2 if query.dtype == torch.float32 else 3,  # three tiles of fp32 keys and values would fill shared memory
        num_warps=4,
    )
    return out, weight


def combine(part: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Parts ``fp32[R, Hq, splits, D]`` to ``[R, Hq, D]``. One warp a head: 128 values, and few parts."""
    rows, heads, splits, head_dim = part.shape
    out = part.new_empty(rows, heads, head_dim, dtype=dtype)
    block = power_of_two(head_dim)
    _combine[(rows * heads,)](
        part, weight, out, head_dim=head_dim, splits=splits, dim_block=block, num_warps=1 if splits <= 4 else 4
    )
    return out
