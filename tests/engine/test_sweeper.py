"""Garbage is collected between turns, and not for ever later."""

import gc
from typing import Final

from serve_app.engine.sweeper import Sweeper
from tests.engine.fakes import FakeClock

THRESHOLDS: Final = (700, 10, 10)


class Heap:
    """A collector whose every collection takes so many milliseconds on the clock."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.waiting = [0, 0, 0]
        self.cost_ms = [1.0, 4.0, 40.0]
        self.collected: list[int] = []
        self.sweeper = Sweeper(
            clock=self.clock,
            collect=self.collect,
            waiting=lambda: (self.waiting[0], self.waiting[1], self.waiting[2]),
            thresholds=THRESHOLDS,
        )

    def collect(self, generation: int) -> int:
        self.clock.now_s += self.cost_ms[generation] / 1_000
        self.collected.append(generation)
        for younger in range(generation + 1):
            self.waiting[younger] = 0
        if generation < 2:
            self.waiting[generation + 1] += 1
        return 0

    def turn(self, *, objects: int = 0, gap_ms: float = 20.0, idle: bool = True) -> None:
        self.sweeper.turn_begins()
        self.waiting[0] += objects
        self.sweeper.turn_ended(idle=idle)
        self.clock.now_s += gap_ms / 1_000


def test_nothing_is_collected_before_it_is_due() -> None:
    heap = Heap()
    for _ in range(7):
        heap.turn(objects=100)
    assert heap.collected == []
    heap.turn(objects=100)
    assert heap.collected == [0]


def test_nothing_is_collected_while_somebody_waits() -> None:
    heap = Heap()
    for _ in range(100):
        heap.turn(objects=100, idle=False)
    assert heap.collected == []


def test_memory_is_bounded_though_there_is_never_a_gap() -> None:
    heap, most = Heap(), 0
    for _ in range(5_000):
        heap.turn(objects=1_000, gap_ms=0.0, idle=False)
        most = max(most, heap.waiting[0])
    assert most <= 21 * THRESHOLDS[0]
    assert set(heap.collected) == {0, 1}
    assert heap.sweeper.counters()["gc_forced"] == len(heap.collected)


def test_an_old_generation_waits_for_a_gap_that_holds_it() -> None:
    heap = Heap()
    heap.waiting[2] = 50
    heap.turn(gap_ms=200.0)  # tried once: what it costs is not known before
    heap.turn(gap_ms=200.0)
    heap.collected.clear()
    for _ in range(30):  # the usual gap becomes narrow
        heap.turn(gap_ms=10.0)
    heap.waiting[2] = 50
    heap.turn(gap_ms=10.0)
    assert heap.collected == []
    for _ in range(30):
        heap.turn(gap_ms=200.0)
    assert heap.collected == [2]


def test_what_was_spent_is_counted() -> None:
    heap = Heap()
    heap.turn(objects=1_000)
    heap.turn(objects=1_000)
    assert heap.sweeper.counters() == {
        "gc_young": 2,
        "gc_middle": 0,
        "gc_old": 0,
        "gc_forced": 0,
        "gc_us": 2_000,
        "gc_longest_us": 1_000,
    }


def test_the_collector_is_given_back_as_it_was() -> None:
    assert gc.isenabled()
    sweeper = Sweeper()
    sweeper.start()
    try:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        sweeper.stop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
