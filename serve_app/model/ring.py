"""Keys and values of one attention layer, as a ring per slot. Nobody outside this file knows the layout.

What may be seen is `window`'s to say, once a tick. Where the host knows how long each row's conversation is, attention
reads that much of the ring and no more; it costs what the conversation holds and not what the context could.
"""

import dataclasses

import torch
from torch import Tensor

from serve_app.model.fused import attend_masked, put
from serve_app.model.quantised_kv import KV_DTYPES, KvName, dequantise, quantise, scale_like
from serve_app.model.state import Rows
from serve_app.model.window import Held, Window

__all__ = ["KvRing", "KvStore", "Window"]

Kept = tuple[Tensor, Tensor | None]
"""Numbers ``[..., D]`` and, of 8-bit ones, their scales ``[...]``."""


@dataclasses.dataclass(frozen=True, slots=True)
class KvStore:
    """One layer's keys and values, ``[N, S, H, D]`` each, with scales ``fp32[N, S, H]`` where they are 8-bit numbers.

    What N and S are, and how rows are read, is the subclass's.
    """

    keys: Tensor = dataclasses.field(metadata={"paged": True})
    values: Tensor = dataclasses.field(metadata={"paged": True})
    key_scale: Tensor | None = dataclasses.field(default=None, metadata={"paged": True})
    value_scale: Tensor | None = dataclasses.field(default=None, metadata={"paged": True})

    @property
    def copied(self) -> bool:
        """Whether even rows whose slots follow one another are copied together to be read."""
        return False

    def append(self, keys: Tensor, values: Tensor, window: Window) -> None:
        """Write T new steps, ``[R, T, H, D]`` each, at the window's positions."""
        where = (window.write, window.index)
        for store, scale, new in ((self.keys, self.key_scale, keys), (self.values, self.value_scale, values)):
            put(store, scale, where, new)

    def step(self, query: Tensor, keys: Tensor, values: Tensor, rows: Rows, window: Window) -> Tensor:
        """Write T new steps and attend from each of them: ``query [R, Hq, T, D]``, keys and values ``[R, H, T, D]``."""
        if not window.beside:
            self.append(keys.transpose(1, 2), values.transpose(1, 2), window)
            return self.attend(query, rows, window)
        both = [
            torch.cat([_plain(old, query.dtype), self._as_kept(new, query.dtype)], dim=2)  # [R, H, span + T, D]
            for old, new in zip(self._read(rows, window), (keys, values), strict=True)
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
        if held is not None and held.apart(self.keys[0, 0].numel(), gathered=self.copied or rows.run is None):
            return torch.cat([self._attend_alone(query, row, held, window) for row in range(len(held.slots))])
        keys, values = (_plain(kept, query.dtype) for kept in self._read(rows, window))
        return attend_masked(query, keys, values, None if held is not None and held.alike else window.visible)

    def _attend_alone(self, query: Tensor, row: int, held: Held, window: Window) -> Tensor:
        """One row of the tick, ``[1, Hq, T, D]``, over its own keys."""
        keys, values = (_plain(kept, query.dtype) for kept in self._read_one(row, held, window))
        # One new step sees all that its row holds.
        visible = None if query.shape[2] == 1 else window.visible[row : row + 1, ..., : held.steps[row]]
        return attend_masked(query[row : row + 1], keys, values, visible)

    def _as_kept(self, new: Tensor, dtype: torch.dtype) -> Tensor:
        """``[R, H, T, D]`` as it will be read once it is written."""
        if self.key_scale is None:
            return new.to(self.keys.dtype).to(dtype)
        return dequantise(*quantise(new, self.keys.dtype), dtype)

    def _read(self, rows: Rows, window: Window) -> tuple[Kept, Kept]:
        """Keys and values ``[R, span, H, D]`` of the rows, as far as the window goes."""
        raise NotImplementedError

    def _read_one(self, row: int, held: Held, window: Window) -> tuple[Kept, Kept]:
        """What one row holds, ``[1, steps, H, D]``."""
        raise NotImplementedError

    def first(self, slot: int, steps: int, table: Tensor | None = None) -> tuple[tuple[Tensor, ...], ...]:
        """Views of what a slot's first steps, no more than C, have left in each part of the store.

        Args:
            table: of the pages, where there are any.
        """
        raise NotImplementedError

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.keys, self.values, self.key_scale, self.value_scale) if t is not None)


@dataclasses.dataclass(frozen=True, slots=True)
class KvRing(KvStore):
    """A ring of C steps for every slot: ``[slots + 1, C, H, D]``.

    In memory the position comes before the heads, so that one step of one row is one contiguous write; on the CPU the
    heads come first, because attention of one step over 750 takes 13 ms that way and 19 ms the other (10 layers, 8
    rows, 12 heads of 64, two cores). The shape is the same.
    """

    keys: Tensor = dataclasses.field(metadata={"masked": True})
    values: Tensor = dataclasses.field(metadata={"masked": True})
    key_scale: Tensor | None = dataclasses.field(default=None, metadata={"masked": True})
    value_scale: Tensor | None = dataclasses.field(default=None, metadata={"masked": True})

    @classmethod
    def empty(
        cls,
        slots: int,
        capacity: int,
        heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        kv: KvName | None = None,
    ) -> "KvRing":
        """Zeros, in ``dtype`` or in the 8-bit numbers ``kv``."""
        kept = dtype if kv is None else KV_DTYPES[kv]

        def store() -> Tensor:
            if device.type == "cpu":
                return torch.zeros(slots + 1, heads, capacity, head_dim, device=device, dtype=kept).transpose(1, 2)
            return torch.zeros(slots + 1, capacity, heads, head_dim, device=device, dtype=kept)

        keys, values = store(), store()
        return cls(keys, values, scale_like(keys), scale_like(values))

    def first(self, slot: int, steps: int, table: Tensor | None = None) -> tuple[tuple[Tensor, ...], ...]:
        return (tuple(store[slot, :steps] for store in self._tensors),)

    def _read(self, rows: Rows, window: Window) -> tuple[Kept, Kept]:
        span = self.keys.shape[1] if window.held is None else window.held.span

        def read(store: Tensor, scale: Tensor | None) -> Kept:
            return rows.read(store[:, :span]), None if scale is None else rows.read(scale[:, :span])

        return read(self.keys, self.key_scale), read(self.values, self.value_scale)

    def _read_one(self, row: int, held: Held, window: Window) -> tuple[Kept, Kept]:
        slot, steps = held.slots[row], held.steps[row]

        def read(store: Tensor, scale: Tensor | None) -> Kept:
            return store[slot : slot + 1, :steps], None if scale is None else scale[slot : slot + 1, :steps]

        return read(self.keys, self.key_scale), read(self.values, self.value_scale)


def _plain(kept: Kept, dtype: torch.dtype) -> Tensor:
    """``[R, S, H, D]`` as kept to ``[R, H, S, D]`` to attend to."""
    store, scale = kept
    plain = store.to(dtype) if scale is None else dequantise(store, scale, dtype)
    return plain.transpose(1, 2)
