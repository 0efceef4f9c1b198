"""Keys and values in pages that slots share: a slot takes as much memory as its conversation holds.

A page is so many steps of one slot, in every layer. The table says which page holds which part of a slot's ring: ring
position p lies in page ``table[slot, p // page_steps]`` at ``p % page_steps``. So the window slides as the ring's does,
whether the context is a whole number of pages or not. Who holds what is `page_pool`'s to say, on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.model import fused
from serve_app.model.operation import operation
from serve_app.model.quantised_kv import KV_DTYPES, KvName, scale_like
from serve_app.model.ring import Kept, KvStore
from serve_app.model.state import Rows, bits
from serve_app.model.window import Held, Window

BLANK: Final = 0
"""The page of what a slot has no page for: always zero. Masked values are multiplied by 0 and must be finite."""


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """How the keys and values of a language model are kept.

    Attributes:
        pages: that all slots share; None gives every slot a ring of its own.
        page_steps: steps of one page.
        kv: 8-bit numbers; None keeps the dtype of the model.
    """

    pages: int | None = None
    page_steps: int = 64
    kv: KvName | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class KvPages(KvStore):
    """One layer, ``[pages + 2, page_steps, H, D]``: the blank page, the pages, and a scratch page for masked writes."""

    def _read(self, rows: Rows, window: Window) -> tuple[Kept, Kept]:
        assert window.pages is not None
        span = window.span
        keys = self._gather(self.keys, self.key_scale, window.pages, span)
        return keys, self._gather(self.values, self.value_scale, window.pages, span)

    def _read_one(self, row: int, held: Held, window: Window) -> tuple[Kept, Kept]:
        assert window.pages is not None
        steps = held.steps[row]
        mine = window.pages[row : row + 1, : -(-steps // self.keys.shape[1])]
        keys = self._gather(self.keys, self.key_scale, mine, steps)
        return keys, self._gather(self.values, self.value_scale, mine, steps)

    @staticmethod
    def _gather(store: Tensor, scale: Tensor | None, pages: Tensor, steps: int) -> Kept:
        """The first steps of ``pages int64[R, blocks]``, ``[R, steps, H, D]``: a copy."""

        def read(tensor: Tensor) -> Tensor:
            read = tensor.index_select(0, pages.flatten())  # [R x blocks, page_steps, ...]
            return read.view(pages.shape[0], -1, *tensor.shape[2:])[:, :steps]

        return read(store), None if scale is None else read(scale)

    def first(self, slot: int, steps: int, table: Tensor | None = None) -> tuple[tuple[Tensor, ...], ...]:
        assert table is not None
        size = self.keys.shape[1]
        return tuple(
            tuple(store[page, : min(size, steps - block * size)] for store in self._tensors)
            for block, page in enumerate(table[slot, : -(-steps // size)].tolist())
        )

    @property
    def copied(self) -> bool:
        """Pages do not lie beside each other."""
        return True


@dataclasses.dataclass(frozen=True, slots=True)
class PageStore:
    """The pages of all layers and whose they are.

    Attributes:
        table: ``int64[slots + 1, blocks]``; `BLANK` where a slot has no page. A reset slot has none.
        whole: ``[2, layers, pages + 2, page_steps, H, D]``, keys and values of all layers: one wipe is one write.
        scale: ``fp32[2, layers, pages + 2, page_steps, H]`` of 8-bit numbers.
    """

    table: Tensor
    whole: Tensor = dataclasses.field(metadata={"paged": True})
    scale: Tensor | None = dataclasses.field(default=None, metadata={"paged": True})

    @classmethod
    def empty(
        cls,
        storage: Storage,
        slots: int,
        context: int,
        layers: int,
        heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "PageStore":
        """Nothing is held. ``storage.pages`` is not None."""
        assert storage.pages is not None
        kept = dtype if storage.kv is None else KV_DTYPES[storage.kv]
        shape = (2, layers, storage.pages + 2, storage.page_steps, heads, head_dim)
        whole = torch.zeros(shape, device=device, dtype=kept)
        table = torch.zeros(slots + 1, -(-context // storage.page_steps), device=device, dtype=torch.int64)
        return cls(table, whole, scale_like(whole))

    @property
    def page_steps(self) -> int:
        """Steps of one page."""
        return int(self.whole.shape[3])

    @property
    def page_bytes(self) -> int:
        """Of one page in all layers."""
        parts = [self.whole] if self.scale is None else [self.whole, self.scale]
        return sum(part.numel() * part.element_size() for part in parts) // int(self.whole.shape[2])

    def layers(self) -> tuple[KvPages, ...]:
        """A view of every layer."""
        scales = [(None, None)] * self.whole.shape[1] if self.scale is None else zip(*self.scale, strict=True)
        return tuple(
            KvPages(keys, values, key_scale, value_scale)
            for keys, values, (key_scale, value_scale) in zip(*self.whole, scales, strict=True)
        )

    def locate(self, window: Window, rows: Rows) -> Window:
        """The same window, in pages: once a tick for all layers. Graph-safe."""
        steps, scratch = self.whole.shape[3], self.whole.shape[2] - 1
        where = (self.table, window.write, window.index, rows.slots, rows.exec_mask)
        locate = _locate if fused.direct(self.table) else _locate_op
        page, place, pages = locate(*where, steps, scratch, -(-window.span // steps))
        return dataclasses.replace(window, write=page, index=place, pages=pages)

    def give(self, slot: int, pages: Sequence[int], first: int = 0) -> None:
        """Wipe pages and make them the slot's, from block ``first`` on. Host side, between ticks."""
        if not pages:
            return
        index = torch.tensor(pages, device=self.table.device)
        self._wipe(index)
        self.table[slot, first : first + len(pages)] = index

    def wipe_scratch(self) -> None:
        """Overwrite what masked rows have written."""
        self._wipe(torch.tensor([self.whole.shape[2] - 1], device=self.table.device))

    def _wipe(self, index: Tensor) -> None:
        bits(self.whole).index_fill_(2, index, 0)
        if self.scale is not None:
            self.scale.index_fill_(2, index, 0)


def _locate(
    table: Tensor,
    write: Tensor,
    index: Tensor,
    slots: Tensor,
    executes: Tensor,
    page_steps: int,
    scratch: int,
    blocks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ring positions ``int64[R, T]`` of slots ``int64[R, 1]`` as pages and places, and the pages that rows read."""
    page = torch.where(executes[:, None], table[write, index // page_steps], scratch)  # [R, T]
    return page, index % page_steps, table.index_select(0, slots)[:, :blocks]


def _locate_shape(table: Tensor, write: Tensor, index: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(index), torch.empty_like(index), table.new_empty(index.shape[0], others[-1])


_locate_op = operation("locate", _locate, _locate_shape)
