"""Positions: rotary and sinusoidal embeddings, computed once a tick for all layers.

Source: RoFormer (Su et al., 2021). Angles are fp32 products of position and frequency, as in the reference: exact
positions up to 2**24 steps, 15 days at 12.5 Hz.
"""

import dataclasses
import math

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Rotation:
    """Cosine and sine ``fp32[R, 1, T, D/2]`` of T steps of every row.

    Attributes:
        interleaved: whether the pair that turns together is (2i, 2i + 1), else (i, i + D/2).
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool

    @classmethod
    def at(cls, offset: Tensor, steps: int, head_dim: int, max_period: float, interleaved: bool) -> "Rotation":
        """Rotation of ``steps`` steps from ``offset`` (``int64[R]``)."""
        index = torch.arange(head_dim // 2, device=offset.device, dtype=torch.float32)
        frequency = torch.exp(index * (-math.log(max_period) * 2 / head_dim))  # [D/2]
        step = torch.arange(steps, device=offset.device, dtype=torch.float32)
        position = (offset.float()[:, None] + step)[:, None, :, None]  # [R, 1, T, 1]
        angle = frequency * position
        return cls(torch.cos(angle), torch.sin(angle), interleaved)

    def turn(self, x: Tensor) -> Tensor:
        """Rotate queries or keys ``[R, H, T, D]``; computed in fp32, returned in x's dtype."""
        if self.interleaved:
            real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
        else:
            real, imaginary = x.float().chunk(2, dim=-1)
        turned = (real * self.cos - imaginary * self.sin, real * self.sin + imaginary * self.cos)
        if self.interleaved:
            return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
        return torch.cat(turned, dim=-1).to(x.dtype)


def sinusoid(offset: Tensor, steps: int, dim: int, max_period: float, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding ``[R, T, dim]``: cosines, then sines."""
    half = dim // 2
    position = (offset[:, None] + torch.arange(steps, device=offset.device)).to(dtype)[:, :, None]
    index = torch.arange(half, device=offset.device, dtype=dtype)
    period = torch.full((), max_period, device=offset.device, dtype=dtype)
    phase = position / period ** (index / (half - 1))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)
