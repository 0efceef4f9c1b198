"""From a safetensors file into a module, tensor by tensor: no second copy of the model is ever held.

The module is built on the meta device, the file's names and shapes are held against it, and only when everything fits
is the first byte of a weight read.

Files in Kyutai's q8 layout hold an ``int8`` weight ``[out, in]`` for every linear and, beside it, ``{weight}_scb``
``fp32[out]``: the greatest magnitude of each row, which 127 stands for. They are dequantised here: the file is half the
size, the model in memory is not, unless it wants 8 bits itself; those are the file's then. (The reference refuses its
own q8 files at its default dtype, since loading rounds the scales to bf16; scales are read as fp32 here whatever the
dtype.)
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from serve_app.checkpoint import keys
from serve_app.checkpoint.adapter import Adapter, LoraSettings, Views, match_adapter
from serve_app.errors import CheckpointError
from serve_app.model.quantised_linear import Int8Linear

FLOATS: Final = ("F64", "F32", "F16", "BF16")
QUANTISED: Final = "I8"
QUANTISED_MAX: Final = 127
FP32_PARTS: Final = ("condition_provider.", "fuser.")
"""Beginnings of names that stay fp32 whatever the rest is, as in the reference."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def on_meta(build: Callable[[], ModuleT]) -> ModuleT:
    """Build a module whose tensors have shapes and no bytes."""
    with torch.device("meta"):
        return build().eval().requires_grad_(False)


def shapes_of(module: nn.Module) -> dict[str, keys.Shape]:
    """Shapes of what a checkpoint of this module holds, by our names."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def linears_of(module: nn.Module) -> frozenset[str]:
    """Names of the weights of linears."""
    return frozenset(
        f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Linear | Int8Linear)
    )


def load_into(
    module: nn.Module,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    adapter: Path | None = None,
    lora: LoraSettings | None = None,
) -> None:
    """Give a module on the meta device the weights of a file.

    Args:
        module: from `on_meta`. Buffers that no checkpoint holds stay on meta: the caller derives them.
        path: a safetensors file.
        dtype: of every floating weight but `FP32_PARTS`; the file may store another, or 8 bits. What the module
            keeps in 8 bits (`Int8Linear`) is quantised as it is read.
        adapter: a safetensors file of LoRA weights, fused into the others in fp32.
        lora: the adapter's rank and scaling.

    Raises:
        CheckpointError: no safetensors file; every missing, unexpected and misshapen key, with both shapes; an adapter
            of another rank or base.
    """
    with _opened(path, device) as views:
        scales = {key: views[key + keys.SCALE_SUFFIX] for key in views if key + keys.SCALE_SUFFIX in views}
        wanted = shapes_of(module)
        held = {key: tuple(view.get_shape()) for key, view in views.items() if _owner(key) not in scales}
        pieces, problems = keys.match(held, wanted)
        problems += [problem for key in held for problem in _wrong_kinds(key, views[key], scales.get(key))]
        if problems:
            raise CheckpointError(str(path), problems)
        with _fused(adapter, device, module, lora or LoraSettings()) as fused:
            for name, piece in pieces.items():
                value = _read(views, scales, piece)
                if fused is not None:
                    value = fused.apply(name, value.float())
                _assign(module, name, value, torch.float32 if name.startswith(FP32_PARTS) else dtype)


@contextlib.contextmanager
def _opened(path: Path, device: torch.device) -> Iterator[Views]:
    """A file's slices by name. Errors of reading, there or in the caller's block, name the file."""
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            yield {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(path), [f"no safetensors file: {error}"]) from error


@contextlib.contextmanager
def _fused(path: Path | None, device: torch.device, module: nn.Module, lora: LoraSettings) -> Iterator[Adapter | None]:
    if path is None:
        yield None
        return
    with _opened(path, device) as views:
        adapter, problems = match_adapter(views, shapes_of(module), linears_of(module), lora)
        problems += [
            f"{key}: {kind}, want floats" for key, view in views.items() if (kind := view.get_dtype()) not in FLOATS
        ]
        if problems:
            raise CheckpointError(str(path), problems)
        yield adapter


def _owner(key: str) -> str | None:
    """The weight whose scales a key would hold."""
    return key.removesuffix(keys.SCALE_SUFFIX) if key.endswith(keys.SCALE_SUFFIX) else None


def _wrong_kinds(key: str, view: Any, scale: Any | None) -> Iterator[str]:
    kind, shape = view.get_dtype(), list(view.get_shape())
    if scale is None:
        if kind not in FLOATS:
            yield f"{key}: {kind}, want floats" + (f" or {keys.SCALE_SUFFIX} beside it" if kind == QUANTISED else "")
        return
    scale_kind, scale_shape = scale.get_dtype(), list(scale.get_shape())
    if kind != QUANTISED:
        yield f"{key}: {kind} with scales beside it, want {QUANTISED}"
    if scale_kind not in FLOATS:
        yield f"{key}{keys.SCALE_SUFFIX}: {scale_kind}, want floats"
    if scale_shape != shape[:1]:
        yield f"{key}{keys.SCALE_SUFFIX}: shape {scale_shape} for a weight of shape {shape}"


def _read(views: Views, scales: Mapping[str, Any], piece: keys.Piece) -> Tensor:
    value: Tensor = views[piece.key][piece.start : piece.stop]
    if piece.key not in scales:
        return value
    scale: Tensor = scales[piece.key][piece.start : piece.stop]
    return value.float() * (scale.float() / QUANTISED_MAX)[:, None]


def _assign(module: nn.Module, name: str, value: Tensor, dtype: torch.dtype) -> None:
    """Put a copy of a tensor where the meta tensor of that name was."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, Int8Linear) and leaf == "weight":
        owner.hold(value)
    elif leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value.to(dtype, copy=True), requires_grad=False)
    else:
        assert leaf in owner._buffers
        owner._buffers[leaf] = value.to(dtype, copy=True)
