"""Linears whose products are those of `product`, and weights that lie one after the other.

A tick multiplies a handful of rows by every weight, so it reads weights and little else. The CPU library behind
`F.linear` reads them at a quarter of the memory's speed when there are few rows; oneDNN, given weights in blocks of its
own, at three quarters. Two cores, 8 rows, fp32: [768, 4224] 8.7 -> 29.8 GB/s, [256, 768] 11 -> 16, where a plain sum
reads 40. The blocks are a second copy: a model is packed where memory is the lesser worry, on the CPU.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.model.product import Product


class Linear(nn.Linear):
    """``nn.Linear`` through a `Product` where no gradient is asked for: equal but for the last bits."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, bias, **kwargs)
        self._product = Product()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler packs for itself
            return super().forward(x)
        return self._product(x, self.weight, self.bias)


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
        self._product = Product()

    @property
    def current(self) -> bool:
        """Whether the parameters still lie here."""
        first = self._parts[0]
        return first.dtype == self.weight.dtype and first.device == self.weight.device and self._at_home(first)

    def product(self, x: Tensor) -> Tensor:
        """``x @ weight.T``, all parts side by side."""
        return self._product(x, self.weight)

    def _at_home(self, first: nn.Parameter) -> bool:
        return first.is_meta or first.data_ptr() == self.weight.data_ptr()
