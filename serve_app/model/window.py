"""Where new steps go and what they may see: worked out once a tick, the same for all layers of a transformer.

Window rule (checked against moshi 0.2.13): with capacity C and keys written up to offset w, the key at offset p is
visible to the query at offset q iff ``p > w - C and p <= q``. Keys of one call are written before its queries attend,
so the first of T queries in one call sees T - 1 keys fewer than C. Steps that are to see what they would see one by one
(`Window.one_by_one`) attend to the ring and to each other before they are written.

Position p of a ring holds offsets p, p + C, p + 2 C, ...: until it wraps, what is valid lies at its beginning, and
after that everything is. So a host that knows the offsets reads the beginning and no more (`Window.valid`).
"""

import dataclasses
from typing import Final

import torch
from torch import Tensor

from serve_app.model import fused
from serve_app.model.state import Rows

CALL_ELEMENTS: Final = 44_000
"""Elements of keys that are read in the time that one call of attention takes by itself: 17 us on two CPU cores."""


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """What the host knows of the rows of a tick, where it may look: on the CPU, outside captured computation.

    Attributes:
        slots: whose keys each row reads.
        steps: how many keys of its ring each row may look at: ring positions from 0.
        alike: whether no row has a key that another has not, and all steps see all keys: nothing to mask.
    """

    slots: tuple[int, ...]
    steps: tuple[int, ...]
    alike: bool

    @property
    def span(self) -> int:
        """Ring positions that hold what any row may see."""
        return max(self.steps)

    def apart(self, width: int, *, gathered: bool) -> bool:
        """Whether one call a row costs less than one for all, which reads every row as far as the longest goes.

        Args:
            width: elements of one key, all heads.
            gathered: whether one call for all had to copy the rows together first, which costs another reading.
        """
        spare = (2 if gathered else 1) * len(self.steps) * self.span - sum(self.steps)
        return spare * width > (len(self.steps) - 1) * CALL_ELEMENTS


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """Where T new steps of every row go, and what each may see.

    Attributes:
        write: ``int64[R, 1]``, the slot that each row writes (scratch where it does not execute).
        index: ``int64[R, T]``, ring positions of the new steps.
        visible: ``bool[R, 1, T, C]``, True where the query may look. Never all False: a query sees itself. No wider
            than ``held.span`` where that is known; one row may stand for all.
        beside: whether the new steps are seen beside the ring instead of in it; then there are T more of them.
        held: what the host knows; None where it may not look.
        pages: ``int64[R, blocks]``, which pages the rows read, where there are any; write and index are ``int64[R, T]``
            pages and places in them then.
    """

    write: Tensor
    index: Tensor
    visible: Tensor
    beside: bool = False
    held: Held | None = None
    pages: Tensor | None = None

    @property
    def span(self) -> int:
        """Ring positions that are looked at."""
        return int(self.visible.shape[-1]) - (int(self.index.shape[1]) if self.beside else 0)

    @classmethod
    def at(cls, offset: Tensor, steps: int, capacity: int, rows: Rows) -> "Window":
        """The window of ``steps`` new steps at ``offset`` (``int64[R]``). ``steps`` may not exceed ``capacity``."""
        assert steps <= capacity, "a call writes no more steps than the ring holds"
        return cls(rows.write[:, None], *fused.window(offset, steps, capacity, capacity))

    @classmethod
    def one_by_one(cls, offset: Tensor, steps: int, capacity: int, rows: Rows) -> "Window":
        """The same steps, each seeing what it would see in a call of its own, whether the ring wraps or not."""
        visible, query = _visible_beside(offset, steps, capacity, capacity)
        return cls(rows.write[:, None], query % capacity, visible, beside=True)

    @classmethod
    def valid(cls, offset: Tensor, steps: int, capacity: int, rows: Rows, *, one_by_one: bool = False) -> "Window":
        """`at`, or `one_by_one`, over no more of the ring than holds something, where the host may look at offsets.

        That is on the CPU. Elsewhere reading them would wait for the device and could not be captured, and a tensor
        that only stands for one while a step is traced has no value.
        """
        if not fused.direct(offset) or offset.device.type != "cpu" or type(offset) is not Tensor:
            return (cls.one_by_one if one_by_one else cls.at)(offset, steps, capacity, rows)
        made, slots = offset.tolist(), tuple(rows.slots.tolist())
        if one_by_one and max(made) + steps > capacity:
            held = Held(slots, tuple(min(count, capacity) for count in made), alike=False)
            visible, query = _visible_beside(offset, steps, capacity, held.span)
            return cls(rows.write[:, None], query % capacity, visible, beside=True, held=held)
        # What does not wrap is seen alike in one call and one by one.
        lengths = tuple(min(count + steps, capacity) for count in made)
        held = Held(slots, lengths, alike=steps == 1 and min(lengths) == max(lengths))
        if held.alike:
            visible = torch.ones((1, 1, 1, held.span), dtype=torch.bool)
            return cls(rows.write[:, None], (offset % capacity)[:, None], visible, held=held)
        assert steps <= capacity, "a call writes no more steps than the ring holds"
        return cls(rows.write[:, None], *fused.window(offset, steps, capacity, held.span), held=held)


def _visible_beside(offset: Tensor, steps: int, capacity: int, span: int) -> tuple[Tensor, Tensor]:
    """``bool[R, 1, T, span + T]``, the new steps behind the first ring positions, and offsets ``int64[R, T]``."""
    assert steps <= capacity, "a call writes no more steps than the ring holds"
    step = torch.arange(steps, device=offset.device)
    query = offset[:, None] + step  # [R, T]
    newest = offset[:, None] - 1
    key = newest - (newest - torch.arange(span, device=offset.device)) % capacity  # [R, span], before any write
    old = (key[:, None, :] >= 0) & (key[:, None, :] > query[:, :, None] - capacity)  # [R, T, span]
    new = (step[None, :] <= step[:, None]).expand(len(query), -1, -1)  # [R, T, T]
    return torch.cat([old, new], dim=2)[:, None], query
