"""The delayed streams and the noise keys of a tick: some kilobytes of integers a row, a program a row.

A row's tile is read and written by the same lanes, so a slot may be both read and written; rows that do not execute
share scratch, whose content nobody uses.
"""

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.fused import UNGENERATED_TOKEN
from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.sample import _mix
from serve_app.model.kernels.splits import power_of_two

_UNGENERATED = tl.constexpr(UNGENERATED_TOKEN)


@jit
def _noise_keys(
    seed_ptr: tl.tensor,
    step_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    out_ptr: tl.tensor,
    first: tl.tensor,
    count: tl.tensor,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, block)
    slot = tl.load(slots_ptr + row)
    session = _mix(tl.load(seed_ptr + slot).to(tl.uint64) + 0x9E3779B97F4A7C15)
    moment = _mix(session + tl.load(step_ptr + slot).to(tl.uint64) * 0x9E3779B97F4A7C15)
    stream = (first + lane).to(tl.uint64)
    key = _mix(moment + stream * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB)
    tl.store(out_ptr + row * count + lane, key.to(tl.int64), lane < count)


def noise_keys(seed: Tensor, step: Tensor, slots: Tensor, first: int, count: int) -> Tensor:
    """`fused.noise_keys`."""
    out = seed.new_empty(slots.shape[0], count)
    block = max(2, power_of_two(count))
    _noise_keys[(slots.shape[0],)](seed, step, slots, out, first, count, block=block, num_warps=1)
    return out


@jit
def _hear(
    cache_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    write_ptr: tl.tensor,
    lags_ptr: tl.tensor,
    initial_ptr: tl.tensor,
    out_ptr: tl.tensor,
    code_row: tl.tensor,
    streams: tl.constexpr,
    own: tl.constexpr,
    width: tl.constexpr,
    stream_block: tl.constexpr,
    width_block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    offset = tl.load(steps_ptr + slot)
    stream = tl.arange(0, stream_block)
    place = tl.arange(0, width_block)
    known = stream < streams
    at = stream[:, None] * width + place[None, :]
    inside = known[:, None] & (place < width)[None, :]
    lag = tl.load(lags_ptr + stream, known, 0)
    code = tl.load(codes_ptr + row * code_row + stream - own, known & (stream >= own), 0)
    tokens = tl.load(cache_ptr + slot * streams * width + at, inside, 0)
    heard = (stream >= own)[:, None] & (place[None, :] == ((offset + lag) % width)[:, None])
    tokens = tl.where(heard, code[:, None], tokens)
    tl.store(cache_ptr + tl.load(write_ptr + row) * streams * width + at, tokens, inside)
    here = tl.sum(tl.where(place[None, :] == offset % width, tokens, 0), 1)
    initial = tl.load(initial_ptr + stream, known, 0)
    tl.store(out_ptr + row * streams + stream, tl.where(offset <= lag, initial, here), known)


def hear(
    cache: Tensor, steps: Tensor, codes: Tensor, slots: Tensor, write: Tensor, lags: Tensor, initial: Tensor
) -> Tensor:
    """`Delays.hear`."""
    _, streams, width = cache.shape
    assert codes.stride(1) == 1 or codes.shape[1] < 2, "a row's codes are one block"
    out = cache.new_empty(slots.shape[0], streams)
    _hear[(slots.shape[0],)](
        cache,
        steps,
        codes,
        slots,
        write,
        lags,
        initial,
        out,
        codes.stride(0),
        streams=streams,
        own=streams - codes.shape[1],
        width=width,
        stream_block=power_of_two(streams),
        width_block=power_of_two(width),
        num_warps=1,
    )
    return out


@jit
def _say(
    cache_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    text_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    write_ptr: tl.tensor,
    executes_ptr: tl.tensor,
    lags_ptr: tl.tensor,
    frame_ptr: tl.tensor,
    complete_ptr: tl.tensor,
    code_row: tl.tensor,
    streams: tl.constexpr,
    own: tl.constexpr,
    width: tl.constexpr,
    stream_block: tl.constexpr,
    width_block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row)
    write = tl.load(write_ptr + row)
    offset = tl.load(steps_ptr + slot) + 1
    stream = tl.arange(0, stream_block)
    place = tl.arange(0, width_block)
    mine = stream < own
    at = stream[:, None] * width + place[None, :]
    inside = (stream < streams)[:, None] & (place < width)[None, :]
    code = tl.load(codes_ptr + row * code_row + stream - 1, mine & (stream > 0), 0)
    said = tl.where(stream == 0, tl.load(text_ptr + row), code)
    tokens = tl.load(cache_ptr + slot * streams * width + at, inside, 0)
    tokens = tl.where(mine[:, None] & (place == offset % width)[None, :], said[:, None], tokens)
    tl.store(cache_ptr + write * streams * width + at, tokens, inside)
    lag = tl.load(lags_ptr + stream, mine, 0)
    aligned = (offset + 2 + lag) % width  # offset - max_delay + lag, max_delay being width - 2
    frame = tl.sum(tl.where(place[None, :] == aligned[:, None], tokens, 0), 1)
    complete = (offset > width - 2) & (tl.load(executes_ptr + row) != 0)
    tl.store(frame_ptr + row * own + stream, tl.where(complete, frame, _UNGENERATED), mine)
    tl.store(complete_ptr + row, complete)
    tl.debug_barrier()  # every lane has read the step
    tl.store(steps_ptr + write, offset)


def say(
    cache: Tensor,
    steps: Tensor,
    text: Tensor,
    codes: Tensor,
    slots: Tensor,
    write: Tensor,
    executes: Tensor,
    lags: Tensor,
) -> tuple[Tensor, Tensor]:
    """`Delays.say`."""
    _, streams, width = cache.shape
    rows, dep_q = codes.shape
    assert codes.stride(1) == 1 or dep_q < 2, "a row's codes are one block"
    frame = cache.new_empty(rows, dep_q + 1)
    complete = cache.new_empty(rows, dtype=torch.bool)
    _say[(rows,)](
        cache,
        steps,
        text,
        codes,
        slots,
        write,
        executes,
        lags,
        frame,
        complete,
        codes.stride(0),
        streams=streams,
        own=dep_q + 1,
        width=width,
        stream_block=power_of_two(streams),
        width_block=power_of_two(width),
        num_warps=1,
    )
    return frame, complete
