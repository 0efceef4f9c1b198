"""Taking times: ours and the reference's in turn, percentiles, a long run back to back."""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from serve_app.bench.ours import Ours
from serve_app.units import FRAME_MS

WARM_TICKS: Final = 3
REWIND_TICKS: Final = 256
"""A long run goes back to its lengths after so many ticks, outside of the time taken."""


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Of many times, in ms."""

    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> "Spread":
        """The percentiles of at least one time."""
        taken = np.asarray(times_ms)
        return cls(float(np.percentile(taken, 50)), float(np.percentile(taken, 99)), float(taken.max()))


@dataclasses.dataclass(frozen=True, slots=True)
class Taken:
    """What was measured of one batch.

    Attributes:
        wall: of the whole call, copies included.
        counted: of the stages that count; the wall time where all do.
        stages_ms: median of every stage.
        reference: of the reference's calls in between; None without it.
    """

    wall: Spread
    counted: Spread
    stages_ms: Mapping[str, float]
    reference: Spread | None

    @property
    def ratio(self) -> float | None:
        """Of the medians, ours to the reference's."""
        return None if self.reference is None else self.counted.p50_ms / self.reference.p50_ms


def alternate(ours: Ours, stages: Sequence[str], repeat: int, reference: Callable[[], None] | None) -> Taken:
    """Tick ours and the reference in turn, so that both meet the same machine.

    Args:
        stages: those that count; empty for the whole call.
        reference: one tick of it.
    """
    for _ in range(WARM_TICKS):
        ours.tick()
        if reference is not None:
            reference()
    walls, counted, theirs = [], [], []
    spans: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeat):
        wall_ms, by_stage = timed(ours)
        walls.append(wall_ms)
        known = stages and all(stage in by_stage for stage in stages)  # a captured tick may know no stages
        counted.append(sum(by_stage[stage] for stage in stages) if known else wall_ms)
        for stage, span_ms in by_stage.items():
            spans[stage].append(span_ms)
        if reference is not None:
            started_s = time.perf_counter()
            reference()
            theirs.append(1_000 * (time.perf_counter() - started_s))
    medians = {stage: float(np.median(times)) for stage, times in spans.items()}
    return Taken(Spread.of(walls), Spread.of(counted), medians, Spread.of(theirs) if theirs else None)


def timed(ours: Ours) -> tuple[float, Mapping[str, float]]:
    """One tick: milliseconds of the call, and by stage."""
    started_s = time.perf_counter()
    by_stage = ours.tick()
    return 1_000 * (time.perf_counter() - started_s), by_stage


@dataclasses.dataclass(frozen=True, slots=True)
class Sustained:
    """A long run back to back.

    Attributes:
        underruns: ticks after which a listener who holds no sound in reserve would have heard a gap, were a frame due
            every 80 ms: those that take longer, and those that are still late because of them.
    """

    ticks: int
    spread: Spread
    underruns: int


def sustain(ours: Ours, ticks: int, on_tick: Callable[[int], None] | None = None) -> Sustained:
    """Tick on and on; the rows keep their lengths."""
    for _ in range(WARM_TICKS):
        ours.tick()
    times_ms = []
    for tick in range(ticks):
        if tick % REWIND_TICKS == 0:
            ours.rewind()
        times_ms.append(timed(ours)[0])
        if on_tick is not None:
            on_tick(tick)
    return Sustained(ticks, Spread.of(times_ms), underruns(times_ms))


def underruns(times_ms: Sequence[float]) -> int:
    """How many ticks of a row end late, frames being due every 80 ms and the first one on time."""
    late_ms, count = 0.0, 0
    for time_ms in times_ms:
        late_ms = max(0.0, late_ms + time_ms - FRAME_MS)
        count += late_ms > 0
    return count


def sparse(few: Ours, many: Ours, live: int, steps: int, repeat: int) -> float:
    """Time of ``live`` rows scattered over an engine of many slots over that of an engine with no others, in turn."""
    slots = many.runner.slots
    few.place([steps] * live)
    many.place([steps] * live, [(2 * row + 1) * slots // (2 * live) for row in range(live)])
    for _ in range(WARM_TICKS):
        few.tick()
        many.tick()
    alone, among = [], []
    for _ in range(repeat):
        alone.append(timed(few)[0])
        among.append(timed(many)[0])
    return float(np.median(among) / np.median(alone))
