"""Matrix products whose weight is laid out once, the way the device reads it fastest.

A weight stays where checkpoints put it, in its module and in no other shape. Beside it a `Product` keeps what it
derives: the matrix that a convolution is, and on a CPU the blocks that oneDNN reads. oneDNN uses the vector unit of any
CPU; the library behind `F.linear` does so on its vendor's alone: 45 to 90 Gflop/s against 100 to 215 on one Zen core.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Arrange: TypeAlias = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""From the weight and bias that a checkpoint holds to the matrix ``[N, K]`` and its bias ``[N]``."""

_PACKED_FROM: Final = 600_000
"""Multiply-adds from which blocks pay: setting oneDNN up costs 10 us a call, `F.linear` 2 us."""
_PACKED_DTYPES: Final = frozenset({torch.float32, torch.bfloat16})


class Product:
    """``x @ W.T + b`` for inference, with W derived from a weight and kept until that weight changes.

    Not a module: what it keeps is in no state dict, moves with no ``.to`` and is copied by no ``deepcopy``; it is derived
    again where the weight is next used. Derived on the first call, so warm up before a capture; from then on addresses
    hold. One thread.
    """

    def __init__(self, arrange: Arrange | None = None) -> None:
        self._arrange = arrange
        self._of: tuple[Any, ...] = ()
        self._sources: tuple[Tensor, ...] = ()  # held, so that no other weight can come to lie at the same address
        self._matrix: Tensor | None = None
        self._bias: Tensor | None = None
        self._packed: Any = None  # opaque to all but oneDNN

    def __deepcopy__(self, memo: dict[int, Any]) -> "Product":
        return Product(self._arrange)

    def __reduce__(self) -> tuple[Any, ...]:
        return Product, (self._arrange,)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
        """``[..., K]`` to ``[..., N]``; ``plus``, of the result's shape, is added.

        Equal to `F.linear` but for the order of summation. No gradient flows to the weight.
        """
        self._follow(weight, bias)
        matrix = self._matrix
        assert matrix is not None
        if not _packs(x) or x.numel() * matrix.shape[0] < _PACKED_FROM:
            y = F.linear(x, matrix, self._bias)
            return y if plus is None else y.add_(plus)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix)
        if plus is None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]
        return torch.ops.mkldnn._linear_pointwise.binary(x, plus, self._packed, self._bias, "add")  # type: ignore[no-any-return]

    def _follow(self, weight: Tensor, bias: Tensor | None) -> None:
        """Derive again if the weight is another one, lies elsewhere or was written to."""
        of = (_stamp(weight), None if bias is None else _stamp(bias))
        if of == self._of:
            return
        with torch.no_grad():
            held, held_bias = weight.detach(), None if bias is None else bias.detach()
            matrix, matrix_bias = (held, held_bias) if self._arrange is None else self._arrange(held, held_bias)
            self._matrix, self._bias, self._packed = matrix.contiguous(), matrix_bias, None
        self._sources = (held,) if held_bias is None else (held, held_bias)
        self._of = of


class Linear(nn.Linear):
    """`nn.Linear` that uses a `Product` where no gradient is asked for."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **kwargs: Any) -> None:
        super().__init__(in_features, out_features, bias, **kwargs)
        self._product = Product()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().forward(x)
        return self._product(x, self.weight, self.bias)


def pack_linears(module: nn.Module) -> None:
    """Replace every `nn.Linear` inside by a `Linear` with the same parameters, under the same names."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                packed = Linear(child.in_features, child.out_features, child.bias is not None, device="meta")
                packed.weight, packed.bias = child.weight, child.bias
                setattr(parent, name, packed.train(child.training))


def _packs(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in _PACKED_DTYPES and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is replaced, moved or written to. Inference tensors do not count writes."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device
