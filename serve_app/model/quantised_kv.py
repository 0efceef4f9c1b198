"""Keys and values in 8 bits, with a scale per step and head. What a step wrote is never rescaled."""

from typing import Final, Literal

import torch
from torch import Tensor

KvName = Literal["int8", "fp8"]
KV_DTYPES: Final[dict[KvName, torch.dtype]] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST: Final = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``[..., D]`` to 8 bits, and ``fp32[...]`` scales: the largest value of each vector becomes the largest number.

    A vector that is not finite makes its scale NaN, so that it is seen and not hidden by an integer.
    """
    largest = x.detach().abs().amax(dim=-1).float()
    scale = largest / LARGEST[dtype]
    spread = x.float() / torch.where(scale > 0, scale, 1.0)[..., None]
    if dtype == torch.int8:
        return spread.nan_to_num().round_().clamp_(-127, 127).to(dtype), scale + 0 * largest
    return spread.nan_to_num().clamp_(-448.0, 448.0).to(dtype), scale + 0 * largest


def dequantise(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What `quantise` made, back in ``dtype``."""
    return x.to(dtype) * scale[..., None].to(dtype)


def scale_like(store: Tensor) -> Tensor | None:
    """Scales for a store ``[..., D]``; None where it keeps its numbers as they are."""
    if store.dtype not in LARGEST:
        return None
    return torch.zeros(store.shape[:-1], device=store.device, dtype=torch.float32)
