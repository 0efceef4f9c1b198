"""How a function of the tick becomes an operation of torch: one node of a graph, one place for a kernel.

The function is its PyTorch path: the oracle, and what runs wherever no kernel is plugged in (see `kernels.plug`).
"""

import functools
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import CustomOpDef, custom_op

NAMESPACE: Final = "chorus"
OPERATIONS: Final[dict[str, CustomOpDef]] = {}
"""Every operation by its name, without the namespace."""


def operation(name: str, body: Callable[..., Any], shape: Callable[..., Any], mutates: tuple[str, ...] = ()) -> Any:
    """Define ``chorus::name``.

    Args:
        body: what it computes; its annotations are the operation's. What it returns may share memory with its
            arguments: it is copied then, because a graph has to know what a value lies in.
        shape: empty tensors as ``body`` returns them, contiguous, from the same arguments; reads no value.
        mutates: arguments that are written in place.
    """

    @functools.wraps(body)
    def run(*args: Any) -> Any:
        made = body(*args)
        if isinstance(made, Tensor):
            return _apart(made, args)
        return None if made is None else tuple(_apart(tensor, args) for tensor in made)

    made = custom_op(f"{NAMESPACE}::{name}", run, mutates_args=mutates)
    made.register_fake(shape)
    OPERATIONS[name] = made
    return made


def like(x: Tensor, *_: Any) -> Tensor:
    """The shape of an operation that gives what it takes first."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def nothing(*_: Any) -> None:
    """Of one that only writes in place."""


def _apart(made: Tensor, args: tuple[Any, ...]) -> Tensor:
    """A contiguous tensor with memory of its own."""
    home = made.untyped_storage().data_ptr()
    shared = any(isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() == home for arg in args)
    return made.clone(memory_format=torch.contiguous_format) if shared else made.contiguous()
