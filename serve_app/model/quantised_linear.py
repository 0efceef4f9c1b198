"""Matrices in 8 bits with a scale per output row: half of bf16 in memory, a quarter of fp32.

What is multiplied is the same everywhere: inputs rounded to bf16, whole numbers of 8 bits, which bf16 holds as they
are, sums in fp32 that are rounded to bf16 once, and then the scale. ``serve_app quality --weights int8`` says what that
costs.

On the CPU torch has a kernel that reads the 8 bits themselves; it sums every row alike however many there are, so a row
gets to the bit what it gets alone. Elsewhere the weight is widened for every product until a kernel takes the place of
``chorus::int8_linear``: that reads more than bf16 would, and was run on no GPU.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model import fused
from serve_app.model.linear import Linear
from serve_app.model.operation import operation
from serve_app.model.quantised_kv import quantise

WeightsName = Literal["int8"]

_MOST_ROWS: Final = 64
"""From here on widening costs less than the kernel, whose time grows with the rows (two threads, [768, 4224]: 0.03 ms a
row, against 0.4 ms and 0.01 a row). More rows than an engine on a CPU has: only priming comes here."""
_KERNEL_STEP: Final = 32
"""Inputs that the kernel takes at a time, on the CPUs that there are: it reads past the end of anything else."""


class Int8Linear(nn.Module):
    """A `Linear` whose weight is ``int8[out, in]`` and ``fp32[out]``. Inference alone.

    The weight has the name and shape that a checkpoint gives it, so that it is found there; `hold` takes what is there.

    Args:
        device: ``meta`` for shapes alone.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, device: torch.device | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.ones(out_features, device=device), persistent=False)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device), requires_grad=False) if bias else None

    @classmethod
    def of(cls, linear: nn.Linear) -> "Int8Linear":
        """The same linear in 8 bits, where it is: a linear on ``meta`` waits for `hold`."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, torch.device("meta"))
        made.bias = linear.bias
        if not linear.weight.is_meta:
            made.hold(linear.weight.detach())
        return made

    def hold(self, weight: Tensor) -> None:
        """Quantise ``[out, in]`` of any precision and keep it, where it is. What was in such 8 bits keeps them."""
        assert weight.shape == self.weight.shape
        self.weight, self.scale = quantise(weight, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, in x's dtype."""
        return int8_linear(x, self.weight, self.scale, self.bias)


class Int8Together:
    """Matrices of one width that lie one after the other, as `linear.Together` lays those of floats."""

    def __init__(self, modules: Sequence[Int8Linear]) -> None:
        self._parts = tuple(modules)
        self._weight = torch.cat([module.weight for module in modules])
        self._scale = torch.cat([module.scale for module in modules])
        start = 0
        for module in modules:
            end = start + module.out_features
            module.weight, module.scale, start = self._weight[start:end], self._scale[start:end], end

    @property
    def current(self) -> bool:
        """Whether the parts still lie here."""
        first = self._parts[0].weight
        return first.device == self._weight.device and (first.is_meta or first.data_ptr() == self._weight.data_ptr())

    def product(self, x: Tensor) -> Tensor:
        """All products, side by side."""
        return int8_linear(x, self._weight, self._scale, None)


def quantise_linears(module: nn.Module) -> int:
    """Put every `Linear` within into 8 bits, one after the other, in place. Returns how many.

    What is left: embeddings, and what is no `Linear` because it is not in a tick (conditions) or slices its weight
    (cross-attention).
    """
    count = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Linear:
                setattr(parent, name, Int8Linear.of(child))
                count += 1
    return count


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ (weight * scale).T + bias`` of ``[..., K]``, ``int8[N, K]``, ``fp32[N]`` and ``[N]``; one kernel, where
    there is one."""
    return (_int8_linear if fused.direct(x) else _int8_linear_op)(x, weight, scale, bias)


def _int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
    if _has_kernel(rows):
        whole = torch._weight_int8pack_mm(rows, weight, _ones(len(weight)))
    else:
        whole = F.linear(rows, weight.to(torch.bfloat16))
    y = whole * scale  # fp32: the scale would lose a digit in bf16
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).view(*x.shape[:-1], -1)


def _has_kernel(rows: Tensor) -> bool:
    return (
        type(rows) is Tensor  # tracers and fakes
        and rows.device.type == "cpu"
        and rows.shape[0] <= _MOST_ROWS
        and rows.shape[1] % _KERNEL_STEP == 0
    )


@lru_cache(maxsize=256)
def _ones(count: int) -> Tensor:
    """Scales for the kernel, which would round others to bf16."""
    return torch.ones(count, dtype=torch.bfloat16)


def _int8_linear_shape(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_int8_linear_op = operation("int8_linear", _int8_linear, _int8_linear_shape)
