"""Linears whose weights lie as this CPU's products want them.

A tick multiplies a handful of rows by every weight, so it reads weights and little else. The CPU library behind
`F.linear` reads them at a quarter of the memory's speed when there are few rows; oneDNN, given weights in blocks of its
own, at three quarters. Two cores, 8 rows, fp32: [768, 4224] 8.7 -> 29.8 GB/s, [256, 768] 11 -> 16, where a plain sum
reads 40. The blocks are a second copy: a model is packed where memory is the lesser worry, on the CPU.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKED_ROWS: Final = 8
"""Rows that the layout of the blocks has in mind; any number can be multiplied."""


class Packed:
    """A weight ``[out, in]`` in blocks. It follows no change of the weight: see `fits`."""

    def __init__(self, weight: Tensor) -> None:
        self._blocks: Tensor = _reorder(weight.detach(), PACKED_ROWS)
        self._weight = weight.detach()  # held, so that no other weight can come to lie at its address
        self._version = _version(weight)

    def fits(self, weight: Tensor, x: Tensor) -> bool:
        """Whether the weight is what was packed, and ``x`` of its kind."""
        same = weight.data_ptr() == self._weight.data_ptr() and _version(weight) == self._version
        return same and x.dtype == torch.float32 and not torch.is_grad_enabled()

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight.T + bias``."""
        made: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self._blocks, bias, "none", [], "")
        return made


def pack(weight: Tensor) -> Packed | None:
    """Lay a weight out in blocks; None where that is of no use: another device, another dtype, no oneDNN."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not _blocks_exist():
        return None
    return Packed(weight)


class Linear(nn.Linear):
    """``nn.Linear`` that may be packed once its weight is final. Packing changes the last bits, and no gradient."""

    packed: Packed | None = None

    def pack(self) -> None:
        """Host side, after loading."""
        self.packed = pack(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed
        if packed is None or not packed.fits(self.weight, x):
            return F.linear(x, self.weight, self.bias)
        return packed.product(x, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not packed: blocks cannot be copied."""
        return {name: value for name, value in self.__dict__.items() if name != "packed"}


class Together:
    """Weights of one width that lie one after the other, so that one operation reads them all.

    The parameters become views of it: nothing is held twice, and names and shapes stay. Moving or casting the module
    parts them again; then `current` says so and the parts are used one by one.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        parts = [module.get_parameter("weight") for module in modules]
        self._parts = tuple(parts)
        with torch.no_grad():
            self.weight = torch.cat([part.detach() for part in parts])
        starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
        for part, start in zip(parts, starts, strict=False):
            part.data = self.weight[start : start + len(part)]
        self.first = torch.tensor(starts[:-1], device=self.weight.device)
        self._packed: Packed | None = None

    def pack(self) -> None:
        """See `Linear.pack`."""
        self._packed = pack(self.weight)

    @property
    def current(self) -> bool:
        """Whether the parameters still lie here."""
        first = self._parts[0]
        return first.dtype == self.weight.dtype and first.device == self.weight.device and self._at_home(first)

    def product(self, x: Tensor) -> Tensor:
        """``x @ weight.T``, all parts side by side."""
        packed = self._packed
        if packed is None or not packed.fits(self.weight, x):
            return F.linear(x, self.weight)
        return packed.product(x, None)

    def _at_home(self, first: nn.Parameter) -> bool:
        return first.is_meta or first.data_ptr() == self.weight.data_ptr()


def _reorder(weight: Tensor, rows: int) -> Tensor:
    with torch.inference_mode():
        return torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # type: ignore[no-any-return]


def _blocks_exist() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
