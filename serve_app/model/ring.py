"""Keys and values of one attention layer, as a ring per slot. Nobody outside this file knows the layout.

What may be seen is `window`'s to say, once a tick. Where the host knows how long each row's conversation is, attention
reads that much of the ring and no more; it costs what the conversation holds and not what the context could.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model.state import Rows
from serve_app.model.window import Held, Window

__all__ = ["KvRing", "Window", "attend_masked"]


@dataclasses.dataclass(frozen=True, slots=True)
class KvRing:
    """One layer's keys and values for all slots, ``[slots + 1, C, H, D]`` each.

    In memory the position comes before the heads, so that one step of one row is one contiguous write; on the CPU the
    heads come first, because attention of one step over 750 takes 13 ms that way and 19 ms the other (10 layers, 8
    rows, 12 heads of 64, two cores). The shape is the same.
    """

    keys: Tensor = dataclasses.field(metadata={"masked": True})
    values: Tensor = dataclasses.field(metadata={"masked": True})

    @classmethod
    def empty(
        cls, slots: int, capacity: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
    ) -> "KvRing":
        def store() -> Tensor:
            if device.type == "cpu":
                return torch.zeros(slots + 1, heads, capacity, head_dim, device=device, dtype=dtype).transpose(1, 2)
            return torch.zeros(slots + 1, capacity, heads, head_dim, device=device, dtype=dtype)

        return cls(store(), store())

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
        both = [
            torch.cat([ring.transpose(1, 2), new.to(ring.dtype)], dim=2)  # [R, H, span + T, D]
            for ring, new in zip(self._read(rows, window.held), (keys, values), strict=True)
        ]
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

        Graph-safe where the window was made without looking: allocates per call, rebinds nothing; its cost is R x C
        then, else what the rows hold.
        """
        held = window.held
        if held is not None and held.apart(self.keys[0, 0].numel(), gathered=rows.run is None):
            return torch.cat([self._attend_alone(query, row, held, window) for row in range(len(held.slots))])
        keys, values = self._read(rows, held)
        visible = None if held is not None and held.alike else window.visible
        return attend_masked(query, keys.transpose(1, 2), values.transpose(1, 2), visible)

    def _attend_alone(self, query: Tensor, row: int, held: Held, window: Window) -> Tensor:
        """One row of the tick, ``[1, Hq, T, D]``, over its own keys in place."""
        slot, steps = held.slots[row], held.steps[row]
        keys, values = (store[slot : slot + 1, :steps].transpose(1, 2) for store in (self.keys, self.values))
        # One new step sees all that its row holds.
        visible = None if query.shape[2] == 1 else window.visible[row : row + 1, ..., :steps]
        return attend_masked(query[row : row + 1], keys, values, visible)

    def _read(self, rows: Rows, held: Held | None) -> tuple[Tensor, Tensor]:
        """Keys and values ``[R, span, H, D]`` of the rows, as far as anything is in them where that is known."""
        if held is None:
            return rows.read(self.keys), rows.read(self.values)
        return rows.read(self.keys[:, : held.span]), rows.read(self.values[:, : held.span])


def attend_masked(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention ``[R, Hq, T, D]`` over ``[R, H, C, D]``; heads of a group share keys."""
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys = keys.repeat_interleave(groups, dim=1)
        values = values.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), attn_mask=visible)
