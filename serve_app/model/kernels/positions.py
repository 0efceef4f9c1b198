"""Rotations and windows of a tick: once a tick, a few kilobytes; the floor is the launch. PyTorch has 9 and 12 here."""

import math
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

_BLOCK: Final = 1024


@jit
def _rope_table(
    offset_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    steps: tl.tensor,
    slope: tl.tensor,
    half: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    lane = tl.arange(0, block)
    inside = lane < half
    # In fp64, because Triton's exp of fp32 is the fast one: an angle is 10,000 times its error.
    frequency = tl.exp((lane.to(tl.float32) * slope).to(tl.float64)).to(tl.float32)
    angle = frequency * (tl.load(offset_ptr + row).to(tl.float32) + step.to(tl.float32))
    at = (row * steps + step) * half + lane
    tl.store(cos_ptr + at, tl.cos(angle), inside)
    tl.store(sin_ptr + at, tl.sin(angle), inside)


def rope_table(offset: Tensor, steps: int, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    """`fused.rope_table`."""
    rows, half = offset.shape[0], head_dim // 2
    cos, sin = (torch.empty(rows, 1, steps, half, device=offset.device) for _ in range(2))
    slope = -math.log(max_period) * 2 / head_dim
    block = max(2, power_of_two(half))
    _rope_table[(rows, steps)](offset, cos, sin, steps, slope, half=half, block=block, num_warps=1)
    return cos, sin


@jit
def _window(
    offset_ptr: tl.tensor,
    index_ptr: tl.tensor,
    visible_ptr: tl.tensor,
    steps: tl.tensor,
    capacity: tl.tensor,
    span: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    ring = tl.program_id(2) * block + tl.arange(0, block)
    first = tl.load(offset_ptr + row)
    query = first + step
    newest = first + steps - 1
    key = newest - (newest - ring + capacity) % capacity  # + capacity: the remainder of a negative number is negative
    at = row * steps + step
    tl.store(visible_ptr + at * span + ring, (key >= 0) & (key <= query), ring < span)
    tl.store(index_ptr + at, query % capacity)


def window(offset: Tensor, steps: int, capacity: int, span: int) -> tuple[Tensor, Tensor]:
    """`fused.window`."""
    rows = offset.shape[0]
    index = offset.new_empty(rows, steps)
    visible = offset.new_empty(rows, 1, steps, span, dtype=torch.bool)
    grid = (rows, steps, -(-span // _BLOCK))
    _window[grid](offset, index, visible, steps, capacity, span, block=_BLOCK, num_warps=4)
    return index, visible


@jit
def _locate(
    table_ptr: tl.tensor,
    write_ptr: tl.tensor,
    index_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    executes_ptr: tl.tensor,
    page_ptr: tl.tensor,
    place_ptr: tl.tensor,
    pages_ptr: tl.tensor,
    steps: tl.tensor,
    table_row: tl.tensor,
    page_steps: tl.tensor,
    scratch: tl.tensor,
    blocks: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    step = tl.program_id(1)
    at = row * steps + step
    index = tl.load(index_ptr + at)
    page = tl.load(table_ptr + tl.load(write_ptr + row) * table_row + index // page_steps)
    tl.store(page_ptr + at, tl.where(tl.load(executes_ptr + row) != 0, page, scratch))
    tl.store(place_ptr + at, index % page_steps)
    if step == 0:
        lane = tl.arange(0, block)
        held = tl.load(table_ptr + tl.load(slots_ptr + row) * table_row + lane, lane < blocks, 0)
        tl.store(pages_ptr + row * blocks + lane, held, lane < blocks)


def locate(
    table: Tensor,
    write: Tensor,
    index: Tensor,
    slots: Tensor,
    executes: Tensor,
    page_steps: int,
    scratch: int,
    blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`PageStore.locate`."""
    rows, steps = index.shape
    page, place = torch.empty_like(index), torch.empty_like(index)
    pages = table.new_empty(rows, blocks)
    _locate[(rows, steps)](
        table,
        write,
        index,
        slots,
        executes,
        page,
        place,
        pages,
        steps,
        table.stride(0),
        page_steps,
        scratch,
        blocks,
        block=max(2, power_of_two(blocks)),
        num_warps=1,
    )
    return page, place, pages
