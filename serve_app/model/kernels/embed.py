"""Sums of rows of tables: streams heard, a code said, levels of a codebook. One pass each; sums round in their order.

Bytes: a row of the table for every token, 8 KB in the 7B: 17 of them are 0.14 MB a row. PyTorch has 4 kernels a stream.
"""

from collections.abc import Sequence
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.fused import ZERO_TOKEN
from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

_BLOCK: Final = 512
_ZERO_TOKEN = tl.constexpr(ZERO_TOKEN)


@jit
def _embed_sum(
    tokens_ptr: tl.tensor,
    table_ptr: tl.tensor,
    first_ptr: tl.tensor,
    out_ptr: tl.tensor,
    steps: tl.tensor,
    token_row: tl.tensor,
    token_stream: tl.tensor,
    token_step: tl.tensor,
    dim: tl.tensor,
    streams: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    lane = tl.program_id(2) * block + tl.arange(0, block)
    inside = lane < dim
    kept = table_ptr.dtype.element_ty
    total = tl.zeros((block,), kept)
    for stream in range(streams):
        token = tl.load(tokens_ptr + row * token_row + stream * token_stream + step * token_step)
        at = tl.maximum(token, 0) + tl.load(first_ptr + stream)
        found = tl.load(table_ptr + at * dim + lane, inside & (token != _ZERO_TOKEN), 0.0)
        total = (total.to(tl.float32) + found.to(tl.float32)).to(kept)
    tl.store(out_ptr + (row * steps + step) * dim + lane, total, inside)


def embed_sum(tokens: Tensor, table: Tensor, first: Tensor) -> Tensor:
    """`fused.embed_sum`."""
    rows, streams, steps = tokens.shape
    dim = table.shape[1]
    out = table.new_empty(rows, steps, dim)
    _embed_sum[(rows, steps, -(-dim // _BLOCK))](
        tokens, table, first, out, steps, *tokens.stride(), dim, streams=streams, block=_BLOCK, num_warps=4
    )
    return out


@jit
def _add_embedding(
    x_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    table_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_row: tl.tensor,
    dim: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * block + tl.arange(0, block)
    inside = lane < dim
    token = tl.load(tokens_ptr + row)
    x = tl.load(x_ptr + row * x_row + lane, inside, 0.0).to(tl.float32)
    found = tl.load(table_ptr + tl.maximum(token, 0) * dim + lane, inside & (token != _ZERO_TOKEN), 0.0)
    total = x + found.to(tl.float32)
    tl.store(out_ptr + row * dim + lane, total.to(out_ptr.dtype.element_ty), inside)


def add_embedding(x: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
    """`fused.add_embedding`."""
    assert x.stride(2) == 1, "a row is one block"
    rows, _, dim = x.shape
    out = x.new_empty(x.shape)
    grid = (rows, -(-dim // _BLOCK))
    _add_embedding[grid](x, tokens, table, out, x.stride(0), dim, block=_BLOCK, num_warps=4)
    return out


@jit
def _residual_sum(
    codes_ptr: tl.tensor,
    entries: tl.tuple,
    out_ptr: tl.tensor,
    steps: tl.tensor,
    code_row: tl.tensor,
    code_level: tl.tensor,
    code_step: tl.tensor,
    card: tl.tensor,
    dim: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    lane = tl.arange(0, block)
    inside = lane < dim
    total = tl.zeros((block,), tl.float32)
    for level in tl.static_range(len(entries)):
        code = tl.load(codes_ptr + row * code_row + level * code_level + step * code_step)
        code = tl.minimum(tl.maximum(code, 0), card - 1)
        total += tl.load(entries[level] + code * dim + lane, inside, 0.0)
    tl.store(out_ptr + (row * steps + step) * dim + lane, total, inside)


def residual_sum(codes: Tensor, entries: Sequence[Tensor]) -> Tensor:
    """`fused_codec.residual_sum`."""
    rows, levels, steps = codes.shape
    card, dim = entries[0].shape
    assert entries[0].dtype == torch.float32, "a codec is"
    out = entries[0].new_empty(rows, steps, dim)
    block = power_of_two(dim)
    _residual_sum[(rows, steps)](
        codes, tuple(entries[:levels]), out, steps, *codes.stride(), card, dim, block=block, num_warps=1
    )
    return out
