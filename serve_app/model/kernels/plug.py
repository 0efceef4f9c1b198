"""Which operations have a Triton kernel, and the one place where they get it.

`plug` gives the operations of a device their kernels; before it, and where triton is not installed, their PyTorch path
runs: the same tokens, more launches. Importing this needs neither triton nor a GPU: a kernel is imported, and compiled,
when it first runs, which is in the warm-up of an engine.

All kernels are graph-safe: grids and splits come from shapes, lengths and parameters are read on the GPU. None is
differentiable.
"""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

# What defines the operations.
from serve_app.model import delays, fused, fused_codec, pages, quantised_linear, text_bias  # noqa: F401
from serve_app.model.kernels.splits import in_one, split_count
from serve_app.model.operation import BODIES, KERNELS

MODULES: Final = {
    "norm": "norm",
    "add_norm": "norm",
    "embed_norm": "norm",
    "rope_table": "positions",
    "window": "positions",
    "locate": "positions",
    "rope_append": "rope",
    "decode_attention": "attention",
    "ring_attention": "ring",
    "depth_attention": "depth",
    "gate": "gate",
    "embed_sum": "embed",
    "add_embedding": "embed",
    "residual_sum": "embed",
    "residual_search": "codebook",
    "windows": "windows",
    "elu_product": "residual",
    "fill_rows": "rows",
    "all_finite": "rows",
    "noise_keys": "tokens",
    "hear": "tokens",
    "say": "tokens",
    "penalise": "text",
    "remember": "text",
    "sample": "sample",
}
"""Operation to the module of its kernel, where a function of the same name takes its arguments."""

WITHOUT: Final = {"int8_linear": 4}
"""No kernel yet, and what the PyTorch path launches: widen the weight, multiply, scale, narrow."""

FLOAT8: Final = (8, 9)
"""Compute capability from which fp8 values are converted in hardware, and Triton compiles them."""


def available() -> bool:
    """Whether triton is installed. Whether its kernels fit the GPU is what `check` says."""
    return importlib.util.find_spec("triton") is not None


def plug(device_type: str = "cuda") -> bool:
    """Give every operation its kernel on devices of this type, for the whole process.

    Returns:
        Whether there are kernels; False where triton is missing, and nothing changes.
    """
    if available():
        KERNELS[device_type] = {name: functools.partial(_run, name) for name in MODULES}
    return available()


def unplug(device_type: str = "cuda") -> None:
    """Back to the PyTorch path."""
    KERNELS.pop(device_type, None)


@contextlib.contextmanager
def plugged(device_type: str) -> Iterator[None]:
    """Kernels within, the PyTorch path afterwards: how a test has them in Triton's interpreter on CPU tensors."""
    assert plug(device_type), "triton is not installed"
    try:
        yield
    finally:
        unplug(device_type)


def kernel(name: str) -> Callable[..., Any]:
    """What stands in for an operation, with its arguments. Imports triton."""
    made: Callable[..., Any] = getattr(importlib.import_module(f"{__package__}.{MODULES[name]}"), name)
    return made


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter: fixed by the environment when they are first imported."""
    door, gate = (importlib.import_module(f"{__package__}.{name}") for name in ("jit", "gate"))
    return bool(door.interpreted(gate._gate))


def launches(name: str, arguments: Sequence[Any]) -> int | None:
    """How many kernels an operation launches once it is plugged in; None where it has none of its own."""
    if name not in MODULES:
        return WITHOUT.get(name)
    count = _LAUNCHES.get(name)
    return 1 if count is None else count(*arguments)


def _decode_launches(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, length: Tensor, *others: Any) -> int:
    tokens = min(others[0], table.shape[1] * keys.shape[1])
    return 1 if split_count(query.shape[0], keys.shape[2], tokens) == 1 else 2


_LAUNCHES: Final[dict[str, Callable[..., int]]] = {
    "decode_attention": _decode_launches,
    "residual_search": lambda x, entries, half_norms: 2 * len(entries),
    "sample": lambda logits, *_: 1 if in_one(logits.shape[1]) else 2,
}
"""Of those that take more than one, or it depends."""


def _run(name: str, *arguments: Any) -> Any:
    if not _fits(arguments):
        return BODIES[name](*arguments)
    return kernel(name)(*arguments)


def _fits(arguments: Sequence[Any]) -> bool:
    """Whether the GPU has instructions for the types; an A100 has none for fp8."""
    return all(
        torch.cuda.get_device_capability(value.device) >= FLOAT8
        for value in arguments
        if isinstance(value, Tensor) and value.dtype == torch.float8_e4m3fn and value.device.type == "cuda"
    )
