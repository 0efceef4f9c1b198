"""What a codec's tick does between two products, one operation for one kernel: see `fused`.

On the CPU the callers go their own way, level by level, with what the host knows (rows in a run, weights in oneDNN's
blocks). What is here runs elsewhere, and is the oracle of kernels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model.operation import like, operation
from serve_app.model.product import steps_of, unfold

# --- convolutions -----------------------------------------------------------------------------------------------------


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
    """What each step of a convolution sees, of samples joined to those before them, which are replaced on the way.

    Args:
        x: ``[R, T, C]``, new samples.
        previous: ``[slots + 1, P, C]``, the last samples of every slot; written in place.
        first: ``bool[slots + 1]``, slots whose past is their first sample; cleared. None where the past is `previous`.
        slots, write: ``int64[R]``, of `Rows`.
        elu: join ELU of ``x``.

    Returns:
        ``[R, T', kernel * C]``, T' = (P + T - (kernel - 1) * dilation - 1) / stride + 1; of kernel 1 and stride 1, the
        joined samples.
    """
    return _windows_op(x, previous, first, slots, write, kernel, stride, dilation, elu)  # type: ignore[no-any-return]


def join(x: Tensor, previous: Tensor, first: Tensor | None, elu: bool) -> tuple[Tensor, Tensor]:
    """``[R, T, C]`` behind what its rows remember, ``[R, P, C]``: ``[R, P + T, C]`` and the P to remember now.

    Args:
        first: ``bool[R]``, rows that remember nothing and see copies of their first sample.
    """
    padding = previous.shape[1]
    held = x.new_empty(x.shape[0], padding + x.shape[1], x.shape[2])
    new = held[:, padding:]
    if elu:
        torch.ops.aten.elu.out(x, out=new)
    else:
        new.copy_(x)
    if first is not None:
        previous = torch.where(first[:, None, None], new[:, :1], previous)
    held[:, :padding] = previous
    return held, held[:, -padding:]


def _windows(
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
    fresh = None if first is None else first.index_select(0, slots)
    held, last = join(x, previous.index_select(0, slots), fresh, elu)
    previous.index_copy_(0, write, last.to(previous.dtype))
    if first is not None:
        first.index_fill_(0, write, 0)
    return unfold(held, kernel, stride, dilation)  # written out, so that the product after it copies nothing


def _windows_shape(x: Tensor, previous: Tensor, *others: Any) -> Tensor:
    kernel, stride, dilation = others[-4:-1]
    steps = steps_of(previous.shape[1] + x.shape[1], kernel, stride, dilation)
    return x.new_empty(x.shape[0], steps, kernel * x.shape[2])


_windows_op = operation("windows", _windows, _windows_shape, ("previous", "first"))


def elu_product(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor) -> Tensor:
    """``plus + weight @ elu(x) + bias``, ``[R, T, C]`` to ``[R, T, C']``: the end of a residual block."""
    return _elu_product_op(x, weight, bias, plus)  # type: ignore[no-any-return]


def _elu_product(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor) -> Tensor:
    return plus + F.linear(F.elu(x), weight, bias)


_elu_product_op = operation("elu_product", _elu_product, lambda x, weight, bias, plus: like(plus))


# --- codebooks --------------------------------------------------------------------------------------------------------


def residual_search(x: Tensor, entries: Sequence[Tensor], half_norms: Sequence[Tensor]) -> Tensor:
    """The nearest entry of each level to what the levels before left over.

    Args:
        x: ``[N, D]``.
        entries: ``[card, D]`` of each of K levels; half_norms: ``[card]``, half of each entry's squared length.

    Returns:
        ``int64[N, K]``.
    """
    return _residual_search_op(x, entries, half_norms)  # type: ignore[no-any-return]


def _residual_search(x: Tensor, entries: Sequence[Tensor], half_norms: Sequence[Tensor]) -> Tensor:
    found = []
    for level, half_norm in zip(entries, half_norms, strict=True):
        found.append(torch.addmm(half_norm, x, level.T, alpha=-1).argmin(dim=1))
        x = x - F.embedding(found[-1], level)
    return torch.stack(found, dim=1)


_residual_search_op = operation(
    "residual_search", _residual_search, lambda x, entries, _: x.new_empty(x.shape[0], len(entries), dtype=torch.int64)
)


def residual_sum(codes: Tensor, entries: Sequence[Tensor]) -> Tensor:
    """The sum of the entries that codes mean, level by level: sums round.

    Args:
        codes: ``int64[R, K, T]``; out of range means the nearest entry.
        entries: ``[card, D]`` of at least K levels.

    Returns:
        ``[R, T, D]``.
    """
    return _residual_sum_op(codes, entries)  # type: ignore[no-any-return]


def _residual_sum(codes: Tensor, entries: Sequence[Tensor]) -> Tensor:
    codes = codes.clamp(0, entries[0].shape[0] - 1)
    total = F.embedding(codes[:, 0], entries[0])
    for level in range(1, codes.shape[1]):
        total = total + F.embedding(codes[:, level], entries[level])
    return total


_residual_sum_op = operation(
    "residual_sum",
    _residual_sum,
    lambda codes, entries: entries[0].new_empty(codes.shape[0], codes.shape[2], entries[0].shape[1]),
)
