"""The last ticks of an engine one by one, for its operator: percentiles do not say what happened at a moment."""

import dataclasses
from typing import Any, Final

from serve_app.engine.observer import TickReport

KEPT_TICKS: Final = 512
"""Twenty to forty seconds of a busy engine, a hundred and some KiB where somebody asks for them."""


class TickTrace:
    """A ring of the last ticks. One thread adds, any other may read.

    Args:
        ticks: how many are kept.
    """

    def __init__(self, ticks: int = KEPT_TICKS) -> None:
        self._ring: list[TickReport | None] = [None] * ticks
        self._added = 0

    def add(self, report: TickReport) -> None:
        """Overwrite the oldest."""
        self._ring[self._added % len(self._ring)] = report
        self._added += 1

    def last(self) -> tuple[TickReport, ...]:
        """What is held, oldest first."""
        held = (report for report in self._ring.copy() if report is not None)  # one copy: the other thread goes on
        return tuple(sorted(held, key=lambda report: report.started_s))


@dataclasses.dataclass(frozen=True, slots=True)
class EngineTicks:
    """What one engine says when it is asked. Plain values: it crosses processes.

    Attributes:
        engine: name of the replica.
        now_s: the engine's clock as it answered.
        ticks: oldest first.
    """

    engine: str
    now_s: float
    ticks: tuple[TickReport, ...]

    def shown(self, last: int) -> dict[str, Any]:
        """The newest of them for people, oldest first. Times are this engine's own: they compare with no other's."""
        return {
            "engine": self.engine,
            "now_s": round(self.now_s, 6),
            "ticks": [
                {
                    "started_s": round(tick.started_s, 6),
                    "rows": tick.rows,
                    "overrun": tick.overrun,
                    "stage_ms": {stage: round(spent_ms, 3) for stage, spent_ms in tick.stage_ms.items()},
                }
                for tick in self.ticks[-last:]
            ],
        }
