"""What each step of a convolution sees, and what its rows remember of it: joined, activated, unfolded in one pass.

The first program along time reads what the row remembered and replaces it; its block reaches past every window that
touches it, so that no other program reads what it writes.
"""

from typing import Final

import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two
from serve_app.model.product import steps_of

_STEPS: Final = 16
_CHANNELS: Final = 64


@jit
def _windows(
    x_ptr: tl.tensor,
    previous_ptr: tl.tensor,
    first_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    write_ptr: tl.tensor,
    out_ptr: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    out_steps: tl.tensor,
    x_row: tl.tensor,
    x_step: tl.tensor,
    x_channel: tl.tensor,
    padding: tl.constexpr,
    padding_block: tl.constexpr,
    taps: tl.constexpr,
    stride: tl.constexpr,
    dilation: tl.constexpr,
    elu: tl.constexpr,
    replicates: tl.constexpr,
    step_block: tl.constexpr,
    channel_block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    channel = tl.program_id(2) * channel_block + tl.arange(0, channel_block)
    inside = channel < channels
    old = previous_ptr + tl.load(slots_ptr + row) * padding * channels + channel
    new = x_ptr + row * x_row + channel * x_channel
    fresh = False
    if replicates:
        fresh = tl.load(first_ptr + tl.load(slots_ptr + row)) != 0
    step = part * step_block + tl.arange(0, step_block)
    for tap in tl.static_range(taps):
        position = step * stride + tap * dilation  # among those remembered and the new ones behind them
        value = _held(old, new, position, padding, length, channels, x_step, inside, fresh, elu)
        at = ((row * out_steps + step) * taps + tap)[:, None] * channels + channel[None, :]
        tl.store(out_ptr + at, value, (step < out_steps)[:, None] & inside[None, :])
    if part == 0:
        kept = tl.arange(0, padding_block)
        last = _held(old, new, length + kept, padding, length, channels, x_step, inside, fresh, elu)
        tl.debug_barrier()  # every lane has read what is overwritten
        to = previous_ptr + tl.load(write_ptr + row) * padding * channels + channel
        tl.store(to[None, :] + kept[:, None] * channels, last, (kept < padding)[:, None] & inside[None, :])
        if replicates:
            tl.store(first_ptr + tl.load(write_ptr + row), 0)


@jit
def _held(
    old: tl.tensor,
    new: tl.tensor,
    position: tl.tensor,
    padding: tl.constexpr,
    length: tl.tensor,
    channels: tl.tensor,
    x_step: tl.tensor,
    inside: tl.tensor,
    fresh: tl.tensor,
    elu: tl.constexpr,
) -> tl.tensor:
    """``[N, C]`` at N positions; a fresh row remembers copies of its first sample."""
    is_new = (position >= padding) | fresh
    index = tl.maximum(position - padding, 0)
    there = (position < padding + length)[:, None] & inside[None, :]
    x = tl.load(new[None, :] + index[:, None] * x_step, there & is_new[:, None], 0.0)
    if elu:
        x = tl.where(x > 0.0, x, tl.exp(x) - 1.0)
    past = tl.load(old[None, :] + position[:, None] * channels, there & (is_new == 0)[:, None], 0.0)
    return tl.where(is_new[:, None], x, past)


def windows(
    x: Tensor,
    previous: Tensor,
    first: Tensor | None,
    slots: Tensor,
    write: Tensor,
    kernel: int,
    stride: int,
    dilation: int,
    elu: bool,
) -> Tensor:
    """`fused_codec.windows`."""
    rows, length, channels = x.shape
    padding = previous.shape[1]
    out_steps = steps_of(padding + length, kernel, stride, dilation)
    out = x.new_empty(rows, out_steps, kernel * channels)
    touched = power_of_two(-(-padding // stride))
    steps = max(touched, min(_STEPS, power_of_two(out_steps)))
    # One program clears a row's flag, so that it has to be the only one that reads it.
    width = power_of_two(channels if first is not None else min(channels, _CHANNELS))
    assert first is None or steps >= out_steps, "a row that has a flag is one program"
    _windows[(rows, -(-out_steps // steps), -(-channels // width))](
        x,
        previous,
        x if first is None else first,
        slots,
        write,
        out,
        length,
        channels,
        out_steps,
        *x.stride(),
        padding=padding,
        padding_block=max(1, power_of_two(padding)),
        taps=kernel,
        stride=stride,
        dilation=dilation,
        elu=elu,
        replicates=first is not None,
        step_block=steps,
        channel_block=width,
        num_warps=4,
    )
    return out
