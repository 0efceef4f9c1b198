"""The one typed door to triton, whose package carries no types.

Whether kernels are compiled or interpreted is fixed when they are decorated: `TRITON_INTERPRET=1` must be set before
this module is imported.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import triton

Value = Any
"""What a kernel's parameters and locals are: pointers, blocks and scalars of a traced program, not of Python."""


class Kernel(Protocol):
    """A kernel, launched as ``kernel[grid](...)``, or a function of other kernels, called."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]: ...

    def __call__(self, *args: Value, **kwargs: Value) -> Value: ...


def jit(function: Callable[..., Value]) -> Kernel:
    """``triton.jit``, with a type."""
    return cast(Kernel, triton.jit(function))


def interpreted(kernel: Kernel) -> bool:
    """Whether a kernel runs in Triton's interpreter, on the CPU."""
    return not isinstance(kernel, triton.JITFunction)
