"""The end of a codec's residual block in one launch: ELU, a product of kernel 1, the sum with what went around it.

Small in the inside (32 to 256) and long outside (1,920 steps), fp32 throughout: a tile of the output reads its rows of
both factors once. Bytes of the longest, 64 wide: 1.2 MB a row, 0.4 us at 3 TB/s. PyTorch has 3 kernels here.
"""

from typing import Final

import triton.language as tl
from torch import Tensor

from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

_STEPS: Final = 32
_CHANNELS: Final = 64
_LEAST: Final = 16
"""Rows and columns of a matrix product."""


@jit
def _elu_product(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    plus_ptr: tl.tensor,
    out_ptr: tl.tensor,
    steps: tl.tensor,
    inner: tl.tensor,
    outer: tl.tensor,
    has_bias: tl.constexpr,
    step_block: tl.constexpr,
    inner_block: tl.constexpr,
    outer_block: tl.constexpr,
) -> None:
    step = tl.program_id(0).to(tl.int64) * step_block + tl.arange(0, step_block)
    channel = tl.program_id(1) * outer_block + tl.arange(0, outer_block)
    total = tl.zeros((step_block, outer_block), tl.float32)
    for first in range(0, inner, inner_block):
        lane = first + tl.arange(0, inner_block)
        known = (step < steps)[:, None] & (lane < inner)[None, :]
        x = tl.load(x_ptr + step[:, None] * inner + lane[None, :], known, 0.0)
        x = tl.where(x > 0.0, x, tl.exp(x) - 1.0)
        known = (channel < outer)[None, :] & (lane < inner)[:, None]
        weight = tl.load(weight_ptr + channel[None, :] * inner + lane[:, None], known, 0.0)
        total += tl.dot(x, weight, input_precision="ieee")
    if has_bias:
        total += tl.load(bias_ptr + channel, channel < outer, 0.0)[None, :]
    at = step[:, None] * outer + channel[None, :]
    inside = (step < steps)[:, None] & (channel < outer)[None, :]
    tl.store(out_ptr + at, tl.load(plus_ptr + at, inside, 0.0) + total, inside)


def elu_product(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor) -> Tensor:
    """`fused_codec.elu_product`."""
    x, plus = x.contiguous(), plus.contiguous()
    outer, inner = weight.shape
    assert weight.stride(0) == inner, "a filter is one block"
    steps = x.shape[0] * x.shape[1]
    out = plus.new_empty(plus.shape)
    _elu_product[(-(-steps // _STEPS), -(-outer // _CHANNELS))](
        x,
        weight,
        x if bias is None else bias,
        plus,
        out,
        steps,
        inner,
        outer,
        has_bias=bias is not None,
        step_block=_STEPS,
        inner_block=max(_LEAST, min(32, power_of_two(inner))),
        outer_block=_CHANNELS,
        num_warps=4,
    )
    return out
