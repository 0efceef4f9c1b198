"""Cross-attention to what a session chose: keys and values are made once, when it opens, and lie in its slot."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model.fused import attend_masked
from serve_app.model.state import Rows


@dataclasses.dataclass(frozen=True, slots=True)
class CrossMemory:
    """One layer's keys and values for all slots, ``[slots + 1, L, H, D]`` each; `CrossState.length` hides the rest."""

    keys: Tensor = dataclasses.field(metadata={"masked": True})
    values: Tensor = dataclasses.field(metadata={"masked": True})


@dataclasses.dataclass(frozen=True, slots=True)
class CrossState:
    """What every slot attends to.

    Attributes:
        length: ``int64[slots + 1]``, steps to attend to; a slot with none gets nothing from cross-attention.
        layers: a memory per layer.
    """

    length: Tensor
    layers: tuple[CrossMemory, ...]

    @classmethod
    def empty(
        cls, slots: int, layers: int, steps: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> "CrossState":
        shape = (slots + 1, steps, heads, head_dim)
        memories = tuple(
            CrossMemory(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))
            for _ in range(layers)
        )
        return cls(torch.zeros(slots + 1, device=device, dtype=torch.int64), memories)

    def look(self, rows: Rows) -> "CrossLook":
        """Which steps the rows of a tick see: the same for all layers."""
        length = self.length.index_select(0, rows.slots)[:, None, None, None]
        steps = torch.arange(self.layers[0].keys.shape[1], device=length.device)
        # A row with nothing to see looks at one step, so that no row of the softmax is empty; its outcome is dropped.
        return CrossLook(steps < length.clamp(min=1), length > 0)


@dataclasses.dataclass(frozen=True, slots=True)
class CrossLook:
    """``visible bool[R, 1, 1, L]`` and ``any bool[R, 1, 1, 1]``, whether the row attends to anything."""

    visible: Tensor
    any: Tensor


class CrossAttention(nn.Module):
    """Attention from the model's steps to a slot's memory; no positions, no causality."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.in_projs = nn.ModuleList([nn.Linear(dim, 3 * dim, bias=False)])
        self.out_projs = nn.ModuleList([nn.Linear(dim, dim, bias=False)])

    def remember(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[L, H, D]`` of ``source [L, dim]``."""
        keys, values = F.linear(source, self._projection[self.dim :]).chunk(2, dim=-1)
        return self._by_head(keys), self._by_head(values)

    def step(self, x: Tensor, memory: CrossMemory, rows: Rows, look: CrossLook) -> Tensor:
        """``[R, T, dim]`` in and out."""
        query = self._by_head(F.linear(x, self._projection[: self.dim])).transpose(1, 2)
        keys, values = rows.read(memory.keys).transpose(1, 2), rows.read(memory.values).transpose(1, 2)
        attended = torch.where(look.any, attend_masked(query, keys, values, look.visible), 0.0)  # [R, H, T, D]
        return self.out_projs[0](attended.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.head_dim)

    @property
    def _projection(self) -> Tensor:
        projection = self.in_projs[0]
        assert isinstance(projection, nn.Linear)
        return projection.weight
