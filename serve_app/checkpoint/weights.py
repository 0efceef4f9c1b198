"""From a safetensors file into a module, tensor by tensor: no second copy of the model is ever held.

The module is built on the meta device, the file's names and shapes are held against it, and only when everything fits
is the first byte of a weight read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from serve_app.checkpoint import keys
from serve_app.errors import CheckpointError

FLOATS: Final = ("F64", "F32", "F16", "BF16")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """Build a module whose tensors have shapes and no bytes."""
    with torch.device("meta"):
        return build().eval().requires_grad_(False)


def shapes_of(module: nn.Module) -> dict[str, keys.Shape]:
    """Shapes of what a checkpoint of this module holds, by our names."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def load_into(module: nn.Module, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Give a module on the meta device the weights of a file.

    Args:
        module: from `on_meta`. Buffers that no checkpoint holds stay on meta: the caller derives them.
        path: a safetensors file.
        dtype: of every floating weight; the file may store another.

    Raises:
        CheckpointError: no safetensors file; every missing, unexpected and misshapen key, with both shapes.
        NotBuilt: the file holds weights of a feature that is not built.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            views = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            held = {key: tuple(view.get_shape()) for key, view in views.items()}
            keys.refuse_unbuilt(str(path), held)
            pieces, problems = keys.match(held, shapes_of(module))
            problems += [
                f"{key}: {kind}, want floats" for key, view in views.items() if (kind := view.get_dtype()) not in FLOATS
            ]
            if problems:
                raise CheckpointError(str(path), problems)
            for name, piece in pieces.items():
                _assign(module, name, views[piece.key][piece.start : piece.stop].to(dtype, copy=True))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), [f"no safetensors file: {error}"]) from error


def _assign(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor where the meta tensor of that name was."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        assert leaf in owner._buffers
        owner._buffers[leaf] = value
