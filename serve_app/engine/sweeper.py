"""Keeps Python's garbage collector out of ticks: it runs in the gaps between them, as far as they are wide enough.

What was made until the start (weights, graphs, modules) is frozen: no collection looks at it again. From then on
nothing is collected by itself; after every turn the oldest generation that is due and fits into the gap is. The wait is
bounded: a generation at `_PATIENCE` times its threshold is collected whatever the gap, since memory is finite.

The collector is the process's: one sweeper in a process, and everybody else's objects are swept by it too.
"""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

_PATIENCE: Final = 20
"""How many times its threshold a generation may wait for a gap."""
_MEMORY: Final = 0.3
"""Weight of the newest collection, and of the newest gap, in the mean of their times."""
_SHARE: Final = 0.5
"""Of the usual gap, what a collection may take."""


class Sweeping(Protocol):
    """What the engine's loop tells of its turns."""

    def start(self) -> None:
        """The first turn is near."""
        ...

    def stop(self) -> None:
        """The last turn is over."""
        ...

    def turn_begins(self) -> None:
        """Work is there."""
        ...

    def turn_ended(self, *, idle: bool) -> None:
        """Everybody was answered; ``idle``: nobody waits."""
        ...


class NoSweeping:
    """Leaves the collector as it is."""

    def start(self) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""

    def turn_begins(self) -> None:
        """Nothing."""

    def turn_ended(self, *, idle: bool) -> None:
        """Nothing."""


class Sweeper:
    """Collects between turns. The engine thread; `counters` from any.

    Args:
        clock: monotonic seconds.
        collect: collects one generation.
        waiting: what each generation has waited for, as `gc.get_count`.
        thresholds: from which on it is due, as `gc.get_threshold`.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.perf_counter,
        collect: Callable[[int], int] = gc.collect,
        waiting: Callable[[], tuple[int, int, int]] = gc.get_count,
        thresholds: tuple[int, int, int] = (700, 10, 10),
    ) -> None:
        self._clock, self._collect, self._waiting, self._thresholds = clock, collect, waiting, thresholds
        self._cost_s = [0.0, 0.0, 0.0]  # usual, by generation; 0 until known, so that each is tried once
        self._gap_s = 0.0  # usual
        self._turn_ended_s: float | None = None
        self._was_enabled = False
        self._spent_s = 0.0
        self._longest_s = 0.0
        self._counted = dict.fromkeys(("gc_young", "gc_middle", "gc_old", "gc_forced"), 0)

    def start(self) -> None:
        """Collect once, set aside what is there, and take over."""
        self._was_enabled = gc.isenabled()
        gc.disable()
        self._collect(2)
        gc.freeze()

    def stop(self) -> None:
        """Give the collector back as it was."""
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()

    def turn_begins(self) -> None:
        """Work is there: the gap since the last turn is over."""
        if self._turn_ended_s is not None:
            self._gap_s += _MEMORY * (self._clock() - self._turn_ended_s - self._gap_s)

    def turn_ended(self, *, idle: bool) -> None:
        """Everybody was answered: collect what is due and fits.

        Args:
            idle: nobody waits. Otherwise there is no gap, and only what has waited too long is collected.
        """
        self._turn_ended_s = self._clock()
        budget_s = _SHARE * self._gap_s if idle else 0.0
        for generation in (2, 1, 0):  # an older one includes the younger ones
            waiting, threshold = self._waiting()[generation], self._thresholds[generation]
            forced = waiting > _PATIENCE * threshold
            fits = idle and self._cost_s[generation] <= budget_s
            if waiting > threshold and (fits or forced):
                self._sweep(generation, forced=forced and not fits)
                return

    def counters(self) -> Mapping[str, int]:
        """Collections by generation, those that no gap held, and microseconds in all and at most. Any thread."""
        spent = {"gc_us": int(1e6 * self._spent_s), "gc_longest_us": int(1e6 * self._longest_s)}
        return {**self._counted, **spent}

    def _sweep(self, generation: int, *, forced: bool) -> None:
        began_s = self._clock()
        self._collect(generation)
        spent_s = self._clock() - began_s
        usual_s = self._cost_s[generation] or spent_s
        self._cost_s[generation] = usual_s + _MEMORY * (spent_s - usual_s)
        self._spent_s += spent_s
        self._longest_s = max(self._longest_s, spent_s)
        self._counted[("gc_young", "gc_middle", "gc_old")[generation]] += 1
        self._counted["gc_forced"] += forced
