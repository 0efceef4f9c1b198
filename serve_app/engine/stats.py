"""What the engine has done, in numbers: rings of the last ticks and counters since the start."""

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds over the last ticks."""

    p50_ms: float
    p99_ms: float
    mean_ms: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot; every number is since the engine was made, except where it says otherwise.

    Attributes:
        slots, free, leased, live, priming: seats in all, free, granted but unopened, live now, and fed a prompt now.
        parked: seats that are kept for holders who are gone.
        rows, rows_free: rows of the batch in all and free; a guided session owns two.
        pending_frames: frames that wait now.
        ticks, steps: turns of the batch, and rows stepped in them.
        overruns: ticks longer than a frame.
        underruns: gaps in which a live session had nothing to step.
        stale_frames: frames for a lease that is over.
        dropped_frames: by cause.
        ended: sessions ended, by reason; "closed" where the holder closed it.
        expired: leases that nobody opened.
        stage_ms: over the last ticks: "tick" the whole turn, "wait" the oldest frame's wait for its tick, and the
            runner's stages.
        rows_per_tick: mean over the last ticks.
        primed_steps: steps of prompts that were fed.
        runner: the runner's own counters.
    """

    slots: int
    free: int
    leased: int
    live: int
    priming: int
    parked: int
    rows: int
    rows_free: int
    draining: bool
    healthy: bool
    pending_frames: int
    ticks: int
    steps: int
    overruns: int
    underruns: int
    stale_frames: int
    dropped_frames: Mapping[str, int]
    ended: Mapping[str, int]
    expired: int
    stage_ms: Mapping[str, Percentiles]
    rows_per_tick: float
    primed_steps: int
    runner: Mapping[str, int]


class Ring:
    """The last N values of one quantity, in a preallocated array."""

    def __init__(self, size: int) -> None:
        self._values: npt.NDArray[np.float64] = np.zeros(size, np.float64)
        self._written = 0

    def add(self, value: float) -> None:
        """Overwrite the oldest value."""
        self._values[self._written % self._values.size] = value
        self._written += 1

    def values(self) -> npt.NDArray[np.float64]:
        """What is held, in no order."""
        return self._values[: min(self._written, self._values.size)].copy()


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Recent:
    """The last ticks, for whoever computes on them without the engine's lock.

    Attributes:
        stage_ms: ``float64[N]`` by stage, in no order.
        rows: ``float64[N]``, rows of each tick.
    """

    stage_ms: Mapping[str, npt.NDArray[np.float64]]
    rows: npt.NDArray[np.float64]

    def percentiles(self) -> dict[str, Percentiles]:
        """p50 and p99 by stage."""
        return {stage: _percentiles(values) for stage, values in self.stage_ms.items()}

    def rows_per_tick(self) -> float:
        """Mean rows over the last ticks."""
        return float(self.rows.mean()) if self.rows.size else 0.0


class Tally:
    """Everything that is counted. Touched only under the engine's lock."""

    def __init__(self, *, ring_ticks: int = 1_024) -> None:
        self._ring_ticks = ring_ticks
        self._stages: dict[str, Ring] = {}
        self._rows = Ring(ring_ticks)
        self.ticks = 0
        self.steps = 0
        self.overruns = 0
        self.underruns = 0
        self.stale_frames = 0
        self.expired = 0
        self.primed_steps = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.ended: collections.Counter[str] = collections.Counter()

    def tick(self, rows: int, stage_ms: Mapping[str, float], *, overrun: bool) -> None:
        """Count one turn of the batch."""
        self.ticks += 1
        self.steps += rows
        self.overruns += overrun
        self._rows.add(rows)
        for stage, spent_ms in stage_ms.items():
            self._stages.setdefault(stage, Ring(self._ring_ticks)).add(spent_ms)

    def primed(self, steps: int, spent_ms: float) -> None:
        """Count steps of a prompt that were fed in one turn."""
        self.primed_steps += steps
        self._stages.setdefault("prime", Ring(self._ring_ticks)).add(spent_ms)

    def recent(self) -> Recent:
        """The rings, copied."""
        return Recent({stage: ring.values() for stage, ring in self._stages.items()}, self._rows.values())


def _percentiles(values: npt.NDArray[np.float64]) -> Percentiles:
    p50, p99 = np.percentile(values, (50, 99))
    return Percentiles(float(p50), float(p99), float(values.mean()))
