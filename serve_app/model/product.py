"""Products and convolutions whose weight is laid out once, the way the device reads it fastest.

A weight stays where checkpoints put it, in its module and in no other shape. Beside it lies what is derived from it:
the matrix that a convolution is, and on a CPU the blocks that oneDNN reads. oneDNN uses the vector unit of any CPU; the
library behind `F.linear` does so on its vendor's alone: 45 to 90 Gflop/s against 100 to 215 on one Zen core.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Arrange: TypeAlias = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""From the weight and bias that a checkpoint holds to those that are used."""

PACKED_FROM: Final = 300_000
"""Multiply-adds from which blocks pay: setting oneDNN up costs 10 us a call, `F.linear` 2 us. From 600,000
the Depformer of the 112 M model took a sixth longer for 1 and 2 rows; from 50,000 a small codec did."""
_PACKED_DTYPES: Final = frozenset({torch.float32, torch.bfloat16})
DIRECT_FROM_STEPS: Final = 4
"""Up to here a convolution is a product over copied windows, as oneDNN's own is slow (8 rows, k16 s8: 7.1 ms against
1.8). Beyond, windows leave the cache (8 rows, k3: 12 MB, 3.9 ms of copying)."""


class Derived:
    """What inference uses in place of a weight, kept until that weight changes.

    Not a module: what it keeps is in no state dict, moves with no ``.to`` and is copied by no ``deepcopy``; it is
    derived again where the weight is next used. Derived on the first call, so warm up before a capture; from then on
    addresses hold. No gradient flows through it. One thread.
    """

    def __init__(self, arrange: Arrange | None = None) -> None:
        self._arrange = arrange
        self._of: tuple[Any, ...] = ()
        self._sources: tuple[Tensor | None, ...] = ()  # held, so that no other weight comes to lie at the same address
        self._arranged: tuple[Tensor, Tensor | None] | None = None
        self._packed: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Derived":
        return Derived(self._arrange)

    def __reduce__(self) -> tuple[Any, ...]:
        return Derived, (self._arrange,)

    def of(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as arranged; again if the weight is another one, lies elsewhere or was written to."""
        stamp = (_stamp(weight), None if bias is None else _stamp(bias))
        if self._arranged is None or stamp != self._of:
            held, held_bias = weight.detach(), None if bias is None else bias.detach()
            self._of, self._sources, self._packed = stamp, (held, held_bias), None
            self._arranged = (held, held_bias) if self._arrange is None else self._arrange(held, held_bias)
        return self._arranged

    @property
    def entries(self) -> int:
        """Numbers that are held besides the weight's own."""
        if self._arranged is None:
            return 0
        matrix, source = self._arranged[0], self._sources[0]
        assert source is not None
        apart = matrix.untyped_storage().data_ptr() != source.untyped_storage().data_ptr()
        return matrix.numel() * (apart + (self._packed is not None))

    def packed(self, pack: Callable[[Tensor], Any]) -> Any:
        """The weight of the last `of` in blocks, opaque to all but oneDNN."""
        if self._packed is None:
            assert self._arranged is not None
            self._packed = pack(self._arranged[0])
        return self._packed


class Product:
    """``x @ W.T + b``, equal to `F.linear` but for the order of summation.

    Args:
        arrange: gives W ``[N, K]`` and b ``[N]``; None where the weight is W.
    """

    def __init__(self, arrange: Arrange | None = None) -> None:
        self._derived = Derived(arrange)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        matrix, bias = self._derived.of(weight, bias)
        if not _packs(x, x.numel() * matrix.shape[0]):
            return F.linear(x, matrix, bias)
        packed = self._derived.packed(torch.ops.mkldnn._reorder_linear_weight)
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")  # type: ignore[no-any-return]


class Filters:
    """A convolution without padding where channels lie side by side.

    Args:
        arrange: gives filters ``[C', C, kernel]`` and a bias ``[C']``; None where the weight is those.
    """

    def __init__(self, kernel: int, stride: int = 1, dilation: int = 1, arrange: Arrange | None = None) -> None:
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        self._direct = Derived(arrange)
        self._over_windows = Product(partial(_flatten, arrange))

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[R, L, C]`` to ``[R, T, C']``, T = (L - effective kernel) / stride + 1."""
        if self.kernel == self.stride == 1:
            return self._over_windows(x, weight, bias)
        rows, length, channels = x.shape
        steps = steps_of(length, self.kernel, self.stride, self.dilation)
        if steps > DIRECT_FROM_STEPS and channels > 1 and _packs(x, rows * steps * weight.numel()):
            return self._convolve(x, weight, bias)
        return self.over(unfold(x, self.kernel, self.stride, self.dilation), weight, bias)

    def over(self, windows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same of what each step sees, ``[R, T, kernel * C]``."""
        return self._over_windows(windows, weight, bias)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _, bias = self._direct.of(weight, bias)
        image = x.transpose(1, 2)[:, :, None]  # [R, C, 1, L]
        shape = ([0, 0], [1, self.stride], [1, self.dilation], 1)  # padding, stride, dilation, groups
        blocks = self._direct.packed(
            lambda filters: torch.ops.mkldnn._reorder_convolution_weight(filters[:, :, None], *shape, list(image.shape))
        )
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(image, blocks, bias, *shape, "none", [], "")
        return y[:, :, 0].transpose(1, 2)  # [R, T, C']


def unfold(held: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """``[R, L, C]`` to what each step of a convolution sees of it, ``[R, T, kernel * C]``, maybe a view."""
    rows, length, channels = held.shape
    steps = steps_of(length, kernel, stride, dilation)
    strides = (length * channels, stride * channels, dilation * channels, 1)
    return held.contiguous().as_strided((rows, steps, kernel, channels), strides).reshape(rows, steps, -1)


def steps_of(length: int, kernel: int, stride: int, dilation: int) -> int:
    """Steps that a convolution without padding gives of ``length`` samples."""
    return (length - (kernel - 1) * dilation - 1) // stride + 1


def _flatten(arrange: Arrange | None, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Filters ``[C', C, K]``, once arranged, as the matrix over windows, ``[C', K * C]``."""
    if arrange is not None:
        weight, bias = arrange(weight, bias)
    return weight.transpose(1, 2).flatten(1), bias


def _packs(x: Tensor, multiplications: int) -> bool:
    return (
        multiplications >= PACKED_FROM
        and type(x) is Tensor  # tracers and fakes know nothing of blocks
        and x.device.type == "cpu"
        and x.dtype in _PACKED_DTYPES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _stamp(tensor: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is replaced, moved or written to. Inference tensors do not count writes."""
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), version
