"""Normalisations of the family, by the names that checkpoints use."""

import dataclasses
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from serve_app.model import fused

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


@dataclasses.dataclass(frozen=True, slots=True)
class Residual:
    """The residual stream between two blocks, ``[R, T, D]``; what the last one adds is added with the next norm.

    Attributes:
        x: before the addition.
        update: what is added; None for nothing.
        scale: ``[D]``, of the update; None is 1.
        spoken: tokens ``int64[R]`` and a table whose rows are added instead: see `fused.add_embedding`.
    """

    x: Tensor
    update: Tensor | None = None
    scale: Tensor | None = None
    spoken: tuple[Tensor, Tensor] | None = None

    def add(self, update: Tensor, scale: Tensor | None) -> "Residual":
        """The stream with one more addition to make; the one before has been made by `normed`."""
        assert self.update is None
        assert self.spoken is None
        return Residual(self.x, update, scale)

    def total(self) -> Tensor:
        """The sum."""
        if self.spoken is not None:
            return fused.add_embedding(self.x, *self.spoken)
        if self.update is None:
            return self.x
        return self.x.to(self.update.dtype) + (self.update if self.scale is None else self.scale * self.update)

    def normed(self, norm: nn.Module) -> tuple["Residual", Tensor]:
        """The stream with nothing left to add, and its norm."""
        weight, eps, bias = _parts(norm, self.x)
        if weight is None:
            total = self.total()
            return Residual(total), norm(total)
        if self.spoken is not None:
            total, made = fused.embed_norm(self.x, *self.spoken, weight, eps, bias)
            return Residual(total), made
        if self.update is None:
            return self, fused.norm(self.x, weight, eps, bias)
        total, made = fused.add_norm(self.x, self.update, weight, eps, bias, self.scale)
        return Residual(total), made


def _parts(norm: nn.Module, x: Tensor) -> tuple[Tensor | None, float, Tensor | None]:
    """Weight, eps and bias of a norm that one operation computes, in fp32; no weight for the others."""
    if isinstance(norm, RmsNorm) and (norm.compute_dtype is not None or x.dtype == torch.float32):
        return norm.alpha.view(-1), norm.eps, None
    if isinstance(norm, nn.LayerNorm) and (type(norm) is nn.LayerNorm or x.dtype == torch.float32):
        return norm.weight, norm.eps, norm.bias
    return None, 0.0, None


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
