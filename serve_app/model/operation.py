"""How a function of the tick becomes an operation of torch: one node of a graph, one place for a kernel.

The function is its PyTorch path: the oracle, and what runs wherever no kernel is plugged in (see `kernels.plug`).
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op

NAMESPACE: Final = "chorus"

Body = Callable[..., Any]
BODIES: Final[dict[str, Body]] = {}
"""The PyTorch path of every operation, by its name."""
OPERATIONS: Final[dict[str, Any]] = {}
"""Every operation, by its name without the namespace."""
KERNELS: Final[dict[str, Mapping[str, Body]]] = {}
"""By type of device, what stands in for the PyTorch path of which operation there."""


def operation(name: str, body: Body, shape: Body, mutates: tuple[str, ...] = ()) -> Any:
    """Define ``chorus::name``.

    Args:
        body: what it computes; its annotations are the operation's. What it returns may share memory with its
            arguments: it is copied then, because a graph has to know what a value lies in.
        shape: empty tensors as ``body`` returns them, contiguous, from the same arguments; reads no value.
        mutates: arguments that are written in place.
    """

    @functools.wraps(body)
    def run(*args: Any) -> Any:
        kernel = KERNELS.get(next(tensors_of(args)).device.type, {}).get(name)
        if kernel is not None:
            return kernel(*args)
        made = body(*args)
        if isinstance(made, Tensor):
            return _apart(made, args)
        return None if made is None else tuple(_apart(tensor, args) for tensor in made)

    made = custom_op(f"{NAMESPACE}::{name}", run, mutates_args=mutates)
    made.register_fake(shape)
    OPERATIONS[name], BODIES[name] = made, body
    return made


def like(x: Tensor, *_: Any) -> Tensor:
    """The shape of an operation that gives what it takes first."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def nothing(*_: Any) -> None:
    """Of one that only writes in place."""


def tensors_of(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, and those in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_of(value)


def _apart(made: Tensor, args: tuple[Any, ...]) -> Tensor:
    """A contiguous tensor with memory of its own."""
    home = made.untyped_storage().data_ptr()
    shared = any(tensor.untyped_storage().data_ptr() == home for tensor in tensors_of(args))
    return made.clone(memory_format=torch.contiguous_format) if shared else made.contiguous()
