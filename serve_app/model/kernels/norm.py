"""Residual addition and norm in one pass over the residual stream.

One program holds one step of one row in registers (4,096 fp32 values over 8 warps are 16 a lane), so the mean needs
no second read. Bytes, bf16: read x, update and weight, write sum and norm, 8 x D per step and 2 x D for the weight;
at D = 4096 and 16 rows 0.53 MB, 0.2 us at 3 TB/s: the floor is the launch. PyTorch has 10 operators here.
"""

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.fused import ZERO_TOKEN
from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import power_of_two

ZERO = tl.constexpr(ZERO_TOKEN)


@jit
def _add_norm(
    x_ptr: tl.tensor,
    update_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    tokens_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    out_ptr: tl.tensor,
    x_row: tl.tensor,
    dim: tl.tensor,
    eps: tl.tensor,
    has_update: tl.constexpr,
    gathers: tl.constexpr,
    has_scale: tl.constexpr,
    centred: tl.constexpr,
    block: tl.constexpr,
) -> None:
    step = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, block)
    inside = lane < dim
    at = step * dim + lane
    x = tl.load(x_ptr + step * x_row + lane, inside, 0.0).to(tl.float32)
    if has_update:
        if gathers:
            token = tl.load(tokens_ptr + step)
            from_ = update_ptr + tl.maximum(token, 0) * dim + lane
            update = tl.load(from_, inside & (token != ZERO), 0.0).to(tl.float32)
        else:
            update = tl.load(update_ptr + at, inside, 0.0).to(tl.float32)
        if has_scale:  # rounded where PyTorch rounds, so that the two paths agree to the bit
            scale = tl.load(scale_ptr + lane, inside, 0.0).to(tl.float32)
            update = (update * scale).to(sum_ptr.dtype.element_ty).to(tl.float32)
        total = (x + update).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, total, inside)
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + lane, inside, 0.0).to(tl.float32)
    if centred:
        x = tl.where(inside, x - tl.sum(x, 0) / dim, 0.0)
    turned = x * (weight * tl.rsqrt(eps + tl.sum(x * x, 0) / dim))
    if centred:
        turned += tl.load(bias_ptr + lane, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + at, turned.to(out_ptr.dtype.element_ty), inside)


def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, bias: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``x + update * scale`` and its norm, ``[..., D]`` each, in update's dtype; layer norm where there is a bias."""
    total = torch.empty_like(update, memory_format=torch.contiguous_format)
    out = torch.empty_like(total)
    _launch(x, update, weight, eps, bias, scale, total, out)
    return total, out


def embed_norm(
    x: Tensor, tokens: Tensor, table: Tensor, weight: Tensor, eps: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`fused.embed_norm`: the update is a row of a table."""
    assert x.stride(2) == 1, "a row is one block"
    total, out = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2))
    _launch(x, table, weight, eps, bias, None, total, out, tokens)
    return total, out


def norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
    """The norm alone, for the first layer."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, None, weight, eps, bias, None, None, out)
    return out


def _launch(
    x: Tensor,
    update: Tensor | None,
    weight: Tensor,
    eps: float,
    bias: Tensor | None,
    scale: Tensor | None,
    total: Tensor | None,
    out: Tensor,
    tokens: Tensor | None = None,
) -> None:
    dim = x.shape[-1]
    block = power_of_two(dim)
    x = x.contiguous() if tokens is None else x
    _add_norm[(x.numel() // dim,)](
        x,
        x if update is None else update.contiguous(),
        x if scale is None else scale.contiguous(),
        weight.contiguous(),
        x if bias is None else bias.contiguous(),
        x if tokens is None else tokens,
        x if total is None else total,
        out,
        dim if tokens is None else x.stride(0),
        dim,
        eps,
        has_update=update is not None,
        gathers=tokens is not None,
        has_scale=scale is not None,
        centred=bias is not None,
        block=block,
        num_warps=min(8, max(1, block // 512)),  # 16 values a lane: one 16-byte load is 8 of them
    )
