"""How many conversations a device holds: by memory, by time, and which of them binds."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Final

import numpy as np

from serve_app.units import FRAME_MS

SPARE_SHARE: Final = 0.1
"""Of the memory, as `serve_app plan` keeps it."""

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
