"""How many conversations a device holds: by memory, by time, and which of them binds."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from serve_app.units import FRAME_MS

SPARE_SHARE: Final = 0.1
"""Of the memory, as `serve_app plan` keeps it."""

BESIDE: Final = 2
"""Pages that nobody has: the blank one and scratch."""

LEVEL_MS: Final = 1e-3
"""A row that costs less was not measured: the line would meet 80 ms anywhere."""


@dataclasses.dataclass(frozen=True, slots=True)
class Capacity:
    """Sessions of one kind of length on this device.

    Attributes:
        by_memory: whose state fits beside the weights, every slot being as long as the context.
        by_length: the same were a slot only as long as what its conversation holds, as pages make it.
        by_time: whose tick has its p99 within 80 ms; None where fewer than two batches were measured.
        measured: whether ``by_time`` lies within what was measured; else the line was drawn further.
    """

    lengths: str
    by_memory: int
    by_length: int
    by_time: int | None
    measured: bool

    @property
    def sessions(self) -> int | None:
        """What the device holds; None where one of both is unknown."""
        return None if self.by_time is None else min(self.by_memory, self.by_time)

    @property
    def binds(self) -> str | None:
        """Which of both is the less."""
        if self.by_time is None:
            return None
        return "time" if self.by_time < self.by_memory else "memory"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory, and what weights, slots and the pages that they share take of it.

    Attributes:
        page_bytes, page_steps: of a page; 0 where every slot is a ring that is as long as the context.
        context: the most steps that a slot holds.
        spare_steps: that a slot may make besides those it is measured at.
    """

    memory_bytes: int
    weights_bytes: int
    slot_bytes: int
    page_bytes: int = 0
    page_steps: int = 0
    context: int = 0
    spare_steps: int = 0

    def pages(self, steps: Sequence[int]) -> int:
        """That conversations of these lengths hold."""
        if not self.page_bytes:
            return 0
        return sum(-(-min(made + self.spare_steps, self.context) // self.page_steps) for made in steps)

    def needs(self, steps: Sequence[int]) -> int:
        """Memory for a slot of each of these lengths, the spare tenth included."""
        shared = (self.pages(steps) + BESIDE) * self.page_bytes
        return needed(self.weights_bytes + shared, self.slot_bytes, len(steps))

    def fits(self, steps: Sequence[int]) -> bool:
        """Whether it is there."""
        return self.needs(steps) <= self.memory_bytes

    def most(self, lengths: Callable[[int], Sequence[int]]) -> int:
        """The most slots that fit, given the lengths of a batch by its size."""
        if not self.page_bytes:
            return fitting(self.memory_bytes, self.weights_bytes, self.slot_bytes)
        least, beyond = 0, 1
        while self.fits(lengths(beyond)):
            least, beyond = beyond, 2 * beyond
        while beyond - least > 1:
            middle = (least + beyond) // 2
            least, beyond = (middle, beyond) if self.fits(lengths(middle)) else (least, middle)
        return least


def fitting(memory_bytes: int, weights_bytes: int, slot_bytes: int) -> int:
    """Slots beside the weights and the scratch row, a tenth of the memory kept free."""
    return max(int(memory_bytes * (1 - SPARE_SHARE) - weights_bytes) // slot_bytes - 1, 0)


def needed(weights_bytes: int, slot_bytes: int, slots: int) -> int:
    """Memory for so many slots, the spare tenth included."""
    return int((weights_bytes + (slots + 1) * slot_bytes) / (1 - SPARE_SHARE))


def in_time(points: Sequence[tuple[int, float]]) -> tuple[int | None, bool]:
    """The most rows whose tick ends within 80 ms, from ``(rows, p99 ms)``, and whether that was between two points.

    Between two batches the time is a line; past the largest, the least-squares line through all goes on.
    """
    known = sorted(points)
    if len(known) < 2:
        return None, False
    within = [rows for rows, time_ms in known if time_ms <= FRAME_MS]
    if not within:
        return 0, True
    most = max(within)
    for (rows, before), (more, after) in itertools.pairwise(known):
        if rows == most:
            return int(rows + (more - rows) * (FRAME_MS - before) / (after - before)), True
    slope, start = np.polyfit([rows for rows, _ in known], [time_ms for _, time_ms in known], 1)
    if slope < LEVEL_MS:
        return None, False
    return max(int((FRAME_MS - start) / slope), most), False
