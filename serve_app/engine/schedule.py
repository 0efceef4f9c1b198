"""When the next tick starts: pure policy, time comes in as a number and nothing here waits.

Rolling: whoever is ready is taken, and while a tick runs the next frames gather by themselves, so that under load the
batch grows to what the machine can carry. One bound keeps light load from wasting the machine: a tick costs something
before its first row (a GPU reads all weights), and that part may take a share of the time and no more. The engine's
loop and the simulation turn by the same ``turn``.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Final, Protocol

from serve_app.engine.limits import Pace
from serve_app.engine.sweeper import NoSweeping, Sweeping

HOUSEKEEPING_S: Final = 0.5
"""How often an idle engine looks for leases that nobody opened."""
MEMORY_TICKS: Final = 200
"""Ticks that the measured step times remember: seconds, so that they follow growing conversations."""
DOUBT_ROWS: Final = 0.25
"""Variance of rows below which a slope says nothing: the whole tick counts as its fixed part then."""

NO_SWEEPING: Final = NoSweeping()


@dataclasses.dataclass(frozen=True, slots=True)
class Crowd:
    """Who is there at one moment.

    Attributes:
        live: sessions that converse.
        ready: those of them with a frame waiting.
        behind: whether one of them has two or more waiting.
        chores: whether an opening, a closing or a prompt waits.
    """

    live: int
    ready: int
    behind: bool
    chores: bool

    @property
    def idle(self) -> bool:
        """Nothing to do until somebody comes."""
        return not (self.ready or self.chores)

    @property
    def hurried(self) -> bool:
        """Nobody is to be waited for: everybody is there, or somebody has to catch up. Ends ``wait_for_others``."""
        return self.behind or self.ready >= self.live


class StepTimes:
    """A straight line through the measured ticks, seconds over rows; older ticks weigh less. Engine thread."""

    def __init__(self, memory_ticks: int = MEMORY_TICKS) -> None:
        self._forget = 1.0 / memory_ticks
        self._ticks = 0
        self._rows = 0.0  # weighted means and second moments about them
        self._spent_s = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def add(self, rows: int, spent_s: float) -> None:
        """A tick of so many rows took so long."""
        self._ticks += 1
        weight = max(self._forget, 1.0 / self._ticks)  # a plain mean until the memory is full
        off_rows, off_s = rows - self._rows, spent_s - self._spent_s
        self._rows += weight * off_rows
        self._spent_s += weight * off_s
        self._variance = (1 - weight) * (self._variance + weight * off_rows * off_rows)
        self._covariance = (1 - weight) * (self._covariance + weight * off_rows * off_s)

    @property
    def per_row_s(self) -> float:
        """What one more row costs; never negative, and 0 while all ticks had the same rows."""
        slope = self._covariance / self._variance if self._variance > DOUBT_ROWS else 0.0
        most = self._spent_s / self._rows if self._rows else 0.0
        return min(max(slope, 0.0), most)

    @property
    def fixed_s(self) -> float:
        """What a tick costs before its first row; 0 before the first tick."""
        return self._spent_s - self.per_row_s * self._rows

    def expected_s(self, rows: float) -> float:
        """What a tick of so many rows takes."""
        return self.fixed_s + self.per_row_s * rows


class Schedule:
    """Says when to tick. Engine thread.

    Args:
        pace: how eagerly.
        times: what ticks took so far; whoever ticks writes it.
    """

    def __init__(self, pace: Pace, times: StepTimes) -> None:
        self._pace = pace
        self._times = times
        self._ready_s: float | None = None  # since when somebody is ready
        self._last_start_s = -math.inf
        self._last_turn_s = -math.inf

    @property
    def interval_s(self) -> float:
        """The least time from the start of one tick of rows to the start of the next."""
        measured_s = self._times.fixed_s / self._pace.fixed_share
        return max(self._pace.interval_s, min(measured_s, self._pace.interval_limit_s))

    def start_s(self, crowd: Crowd, now_s: float) -> float:
        """When the next tick is due, with this crowd; not later than now: at once.

        Nobody is waited for when everybody is there, and when somebody has two frames: that tick is the step by which
        they catch up. Chores alone disturb nobody and are done at once.
        """
        if crowd.idle:
            return self._last_turn_s + HOUSEKEEPING_S
        if not crowd.ready:
            return now_s
        if self._ready_s is None:
            self._ready_s = now_s
        if crowd.hurried:
            return now_s
        return max(self._ready_s + self._pace.gather_s, self._last_start_s + self.interval_s)

    def ticked(self, rows: int, started_s: float) -> None:
        """A turn began then and stepped so many rows."""
        self._last_turn_s = started_s
        if rows:
            self._last_start_s = started_s
            self._ready_s = None


class Ticking(Protocol):
    """What is turned: the engine, or the simulation's stand-in for it."""

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds."""
        ...

    def crowd(self) -> Crowd:
        """Who is there now."""
        ...

    def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until there is anything to do. Returns whether there is."""
        ...

    def wait_for_others(self, timeout_s: float) -> None:
        """Wait for more rows, or until the crowd is hurried."""
        ...

    def tick(self) -> int:
        """One turn of the batch. Returns how many rows were stepped."""
        ...


class Timetable(Protocol):
    """What decides: ``Schedule``, or a policy that it is compared with."""

    def start_s(self, crowd: Crowd, now_s: float) -> float:
        """When the next tick is due."""
        ...

    def ticked(self, rows: int, started_s: float) -> None:
        """A turn began then."""
        ...


def turn(engine: Ticking, schedule: Timetable, sweeper: Sweeping = NO_SWEEPING) -> None:
    """Tick when a tick is due, else wait until then or until the crowd has changed. The loop is this, again and again.

    A stop is seen between turns, so that it comes within one wait.
    """
    now_s, crowd = engine.clock(), engine.crowd()
    wait_s = schedule.start_s(crowd, now_s) - now_s
    if wait_s <= 0:
        sweeper.turn_begins()
        schedule.ticked(engine.tick(), now_s)
        sweeper.turn_ended(idle=not engine.crowd().ready)
    elif crowd.idle:
        engine.wait_for_work(wait_s)
    else:
        engine.wait_for_others(wait_s)
