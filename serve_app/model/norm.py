"""Normalisations of the family, by the names that checkpoints use."""

from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

NormName = Literal["layer_norm", "layer_norm_f32", "rms_norm", "rms_norm_f32"]
NORM_NAMES: Final = frozenset(get_args(NormName))

_LAYER_EPS: Final = 1e-5
_LAYER_F32_EPS: Final = 1e-8
_RMS_EPS: Final = 1e-5
_RMS_F32_EPS: Final = 1e-8


class LayerNormF32(nn.LayerNorm):
    """Layer norm computed in fp32, returned in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class RmsNorm(nn.Module):
    """``x * (alpha * rsqrt(eps + mean(x^2)))`` over the last dimension; ``alpha`` is ``[1, 1, D]``."""

    def __init__(self, dim: int, eps: float, compute_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.compute_dtype = compute_dtype
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.compute_dtype is None else x.to(self.compute_dtype)
        variance = self.eps + torch.mean(y**2, dim=-1, keepdim=True)
        return (y * (self.alpha.to(variance.dtype) * torch.rsqrt(variance))).to(x.dtype)


def make_norm(name: NormName, dim: int) -> nn.Module:
    """The norm that a checkpoint names."""
    match name:
        case "layer_norm":
            return nn.LayerNorm(dim, eps=_LAYER_EPS)
        case "layer_norm_f32":
            return LayerNormF32(dim, eps=_LAYER_F32_EPS)
        case "rms_norm":
            return RmsNorm(dim, _RMS_EPS)
        case "rms_norm_f32":
            return RmsNorm(dim, _RMS_F32_EPS, torch.float32)
