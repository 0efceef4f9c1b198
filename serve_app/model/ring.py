"""Keys and values of one attention layer, as a ring per slot; positions and masks are computed once a tick.

Window rule (checked against moshi 0.2.13): with capacity C and keys written up to offset w, the key at offset p is
visible to the query at offset q iff ``p > w - C and p <= q``. Keys of one call are written before its queries attend,
so the first of T queries in one call sees T - 1 keys fewer than C. Steps that are to see what they would see one by one
(`Window.one_by_one`) attend to the ring and to each other before they are written. Nobody outside this file knows the
layout.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model.state import Rows


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Where T new steps of every row go, and what each may see: the same for all layers of a transformer.

    Attributes:
        write: ``int64[R, 1]``, the slot that each row writes (scratch where it does not execute).
        index: ``int64[R, T]``, ring positions of the new steps.
        visible: ``bool[R, 1, T, C]``, True where the query may look. Never all False: a query sees itself.
        beside: whether the new steps are seen beside the ring instead of in it; then visible is ``[R, 1, T, C + T]``.
    """

    write: Tensor
    index: Tensor
    visible: Tensor
    beside: bool = False

    @classmethod
    def at(cls, offset: Tensor, steps: int, capacity: int, rows: Rows) -> "Window":
        """The window of ``steps`` new steps at ``offset`` (``int64[R]``). ``steps`` may not exceed ``capacity``."""
        assert steps <= capacity, "a call writes no more steps than the ring holds"
        query = offset[:, None] + torch.arange(steps, device=offset.device)  # [R, T]
        newest = query[:, -1:]  # [R, 1]
        ring = torch.arange(capacity, device=offset.device)  # [C]
        key = newest - (newest - ring) % capacity  # [R, C], offset held at each ring position; negative when empty
        visible = (key[:, None, :] >= 0) & (key[:, None, :] <= query[:, :, None])  # [R, T, C]
        return cls(rows.write[:, None], query % capacity, visible[:, None])

    @classmethod
    def one_by_one(cls, offset: Tensor, steps: int, capacity: int, rows: Rows) -> "Window":
        """The same steps, each seeing what it would see in a call of its own, whether the ring wraps or not."""
        assert steps <= capacity, "a call writes no more steps than the ring holds"
        step = torch.arange(steps, device=offset.device)
        query = offset[:, None] + step  # [R, T]
        newest = offset[:, None] - 1
        key = newest - (newest - torch.arange(capacity, device=offset.device)) % capacity  # [R, C], before any write
        old = (key[:, None, :] >= 0) & (key[:, None, :] > query[:, :, None] - capacity)  # [R, T, C]
        new = (step[None, :] <= step[:, None]).expand(len(query), -1, -1)  # [R, T, T]
        return cls(rows.write[:, None], query % capacity, torch.cat([old, new], dim=2)[:, None], beside=True)


@dataclasses.dataclass(frozen=True, slots=True)
class KvRing:
    """One layer's keys and values for all slots, ``[slots + 1, C, H, D]`` each.

    The position comes before the heads so that one step of one row is one contiguous write.
    """

    keys: Tensor = dataclasses.field(metadata={"masked": True})
    values: Tensor = dataclasses.field(metadata={"masked": True})

    @classmethod
    def empty(
        cls, slots: int, capacity: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> "KvRing":
        shape = (slots + 1, capacity, heads, head_dim)
        return cls(torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype))

    def first(self, slot: int, steps: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of a slot's first steps, of which no more than C were made: what to copy."""
        return self.keys[slot, :steps], self.values[slot, :steps]

    def append(self, keys: Tensor, values: Tensor, window: Window) -> None:
        """Write T new steps, ``[R, T, H, D]`` each, at the window's positions."""
        self.keys[window.write, window.index] = keys.to(self.keys.dtype)
        self.values[window.write, window.index] = values.to(self.values.dtype)

    def step(self, query: Tensor, keys: Tensor, values: Tensor, rows: Rows, window: Window) -> Tensor:
        """Write T new steps and attend from each of them: ``query [R, Hq, T, D]``, keys and values ``[R, H, T, D]``."""
        if not window.beside:
            self.append(keys.transpose(1, 2), values.transpose(1, 2), window)
            return self.attend(query, rows, window)
        old = rows.read(self.keys).transpose(1, 2), rows.read(self.values).transpose(1, 2)  # [R, H, C, D]
        both = [torch.cat([ring, new.to(ring.dtype)], dim=2) for ring, new in zip(old, (keys, values), strict=True)]
        attended = attend_masked(query, both[0], both[1], window.visible)
        self.append(keys.transpose(1, 2), values.transpose(1, 2), window)
        return attended

    def attend(self, query: Tensor, rows: Rows, window: Window) -> Tensor:
        """Attend from T new steps of each row to what the row may see.

        Args:
            query: ``[R, Hq, T, D]``, already rotated; Hq is a multiple of H (grouped heads).
            rows: which slot each row reads.
            window: the same that the steps were appended with.

        Returns:
            ``[R, Hq, T, D]``.

        Graph-safe: allocates per call, rebinds nothing. Always spans the ring; its cost is R x C, not the length.
        """
        keys = rows.read(self.keys).transpose(1, 2)  # [R, H, C, D]
        values = rows.read(self.values).transpose(1, 2)
        return attend_masked(query, keys, values, window.visible)


def attend_masked(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention ``[R, Hq, T, D]`` over ``[R, H, C, D]``; heads of a group share keys."""
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), attn_mask=visible)
