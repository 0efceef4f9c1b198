"""Split, rotate and write: everything between a layer's product and its attention, in one launch.

A program is one head of one step: a warp with 4 values a lane at D = 128. Pairs are read at even and odd addresses;
both reads hit the same cache lines, and the whole is small. Bytes, bf16, per step: read W, write W (W = (Hq + 2H) D);
7B at 16 rows 0.8 MB, 0.3 us at 3 TB/s. PyTorch has 20 operators here.
"""

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two
from serve_app.model.quantised_kv import LARGEST


@jit
def _rope_append(
    qkv_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    query_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    key_scale_ptr: tl.tensor,
    value_scale_ptr: tl.tensor,
    write_ptr: tl.tensor,
    index_ptr: tl.tensor,
    steps: tl.tensor,
    write_row: tl.tensor,
    write_step: tl.tensor,
    index_row: tl.tensor,
    index_step: tl.tensor,
    page: tl.tensor,
    greatest: tl.tensor,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    block: tl.constexpr,
    rotates: tl.constexpr,
    interleaved: tl.constexpr,
    quantised: tl.constexpr,
    whole: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    head = tl.program_id(2)  # of queries, then keys, then values
    lane = tl.arange(0, block)
    inside = lane < half
    width: tl.constexpr = (heads + 2 * kv_heads) * 2 * half
    if interleaved:
        first = 2 * lane
        second = 2 * lane + 1
    else:
        first = lane
        second = lane + half
    source = qkv_ptr + (row * steps + step) * width + head * 2 * half
    a = tl.load(source + first, inside, 0.0)
    b = tl.load(source + second, inside, 0.0)
    if rotates and head < heads + kv_heads:
        angle = (row * steps + step) * half + lane
        cos = tl.load(cos_ptr + angle, inside, 0.0)
        sin = tl.load(sin_ptr + angle, inside, 0.0)
        real = a.to(tl.float32)
        imaginary = b.to(tl.float32)
        a = (real * cos - imaginary * sin).to(qkv_ptr.dtype.element_ty)
        b = (real * sin + imaginary * cos).to(qkv_ptr.dtype.element_ty)
    if head < heads:
        to_query = query_ptr + ((row * heads + head) * steps + step) * 2 * half
        tl.store(to_query + first, a, inside)
        tl.store(to_query + second, b, inside)
    else:
        is_key = head < heads + kv_heads
        kv_head = tl.where(is_key, head - heads, head - heads - kv_heads)
        where = tl.load(write_ptr + row * write_row + step * write_step).to(tl.int64)
        where = (where * page + tl.load(index_ptr + row * index_row + step * index_step)) * kv_heads + kv_head
        if quantised:
            high = a.to(tl.float32)
            low = b.to(tl.float32)
            reach = tl.maximum(tl.max(tl.abs(high), 0), tl.max(tl.abs(low), 0))
            spoilt = tl.sum(high * 0.0 + low * 0.0, 0)  # NaN where a value is not finite, which a maximum may hide
            scale = reach / greatest + spoilt
            high = high / tl.where(reach > 0.0, reach / greatest, 1.0)
            low = low / tl.where(reach > 0.0, reach / greatest, 1.0)
            if whole:  # to the nearest integer, ties to even: what adding and taking away 1.5 x 2**23 leaves in fp32
                high = (high + 12582912.0) - 12582912.0
                low = (low + 12582912.0) - 12582912.0
            if is_key:
                tl.store(key_scale_ptr + where, scale.to(key_scale_ptr.dtype.element_ty))
                _store_pair(keys_ptr + where * 2 * half, high, low, first, second, inside)
            else:
                tl.store(value_scale_ptr + where, scale.to(value_scale_ptr.dtype.element_ty))
                _store_pair(values_ptr + where * 2 * half, high, low, first, second, inside)
        else:
            if is_key:
                _store_pair(keys_ptr + where * 2 * half, a, b, first, second, inside)
            else:
                _store_pair(values_ptr + where * 2 * half, a, b, first, second, inside)


@jit
def _store_pair(
    to: tl.tensor, a: tl.tensor, b: tl.tensor, first: tl.tensor, second: tl.tensor, inside: tl.tensor
) -> None:
    tl.store(to + first, a.to(to.dtype.element_ty), inside)
    tl.store(to + second, b.to(to.dtype.element_ty), inside)


def rope_append(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    heads: int,
    kv_heads: int,
    interleaved: bool,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> Tensor:
    """`fused.rope_append`. Two rows may share a place only if nobody reads it (scratch)."""
    assert keys.is_contiguous(), "a store is addressed as one block"
    assert values.is_contiguous(), "a store is addressed as one block"
    rows, steps, width = qkv.shape
    head_dim = width // (heads + 2 * kv_heads)
    write = write.reshape(rows, -1).expand(rows, steps)  # one slot a row, or a page a step
    query = qkv.new_empty(rows, heads, steps, head_dim)
    half = head_dim // 2
    block = power_of_two(half)
    angles = qkv if cos is None or sin is None else cos
    _rope_append[(rows, steps, heads + 2 * kv_heads)](
        qkv.contiguous(),
        angles.contiguous(),
        qkv if sin is None else sin.contiguous(),
        query,
        keys,
        values,
        keys if key_scale is None else key_scale,
        values if value_scale is None else value_scale,
        write,
        index,
        steps,
        write.stride(0),
        write.stride(1),
        index.stride(0),
        index.stride(1),
        keys.shape[1],
        LARGEST[keys.dtype] if key_scale is not None else 1.0,
        heads=heads,
        kv_heads=kv_heads,
        half=half,
        block=block,
        rotates=cos is not None,
        interleaved=interleaved,
        quantised=key_scale is not None,
        whole=keys.dtype == torch.int8,
        num_warps=1,
    )
    return query
