"""Positions: rotary and sinusoidal embeddings, computed once a tick for all layers.

Source: RoFormer (Su et al., 2021). Angles are fp32 products of position and frequency, as in the reference: exact
positions up to 2**24 steps, 15 days at 12.5 Hz.
"""

import dataclasses

import torch
from torch import Tensor

from serve_app.model import fused


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
        return cls(*fused.rope_table(offset, steps, head_dim, max_period), interleaved)

    def turn(self, x: Tensor) -> Tensor:
        """Rotate queries or keys ``[R, H, T, D]``; computed in fp32, returned in x's dtype."""
        return fused.turn(x, self.cos, self.sin, self.interleaved)

    def position(self, index: int) -> "Rotation":
        """That of one step alone."""
        return Rotation(self.cos[:, :, index : index + 1], self.sin[:, :, index : index + 1], self.interleaved)

    def split(self, qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `fused.rope_split`."""
        return fused.rope_split(qkv, self.cos, self.sin, heads, kv_heads, self.interleaved)


def sinusoid(offset: Tensor, steps: int, dim: int, max_period: float, dtype: torch.dtype) -> Tensor:
    """Sinusoidal embedding ``[R, T, dim]``: cosines, then sines."""
    half = dim // 2
    position = (offset[:, None] + torch.arange(steps, device=offset.device)).to(dtype)[:, :, None]
    index = torch.arange(half, device=offset.device, dtype=dtype)
    period = torch.full((), max_period, device=offset.device, dtype=dtype)
    phase = position / period ** (index / (half - 1))
    return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)
