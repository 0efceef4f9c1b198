"""Sessions that share pages: who comes in, who waits, and that nobody live is cut."""

import pytest

from serve_app.engine.events import DropCause
from serve_app.engine.limits import Limits
from serve_app.errors import EngineFull
from serve_app.model.page_pool import PagePool
from tests.engine.fakes import GUIDED, Bench, prompted

STEPS = 4


def _bench(pages: int, *, slots: int = 4, reserve: int = 0, context: int = 12) -> Bench:
    return Bench(slots, rows=2 * slots, pool=PagePool(pages, STEPS, context, reserve=reserve))


def _free(bench: Bench) -> int:
    assert bench.runner.pool is not None
    return bench.runner.pool.free


def test_a_session_takes_pages_as_it_grows_and_gives_all_back() -> None:
    bench = _bench(3)
    lease = bench.open()
    free = []
    for number in range(20):
        bench.push(lease, 1.0, number)
        assert bench.engine.tick() == 1
        free.append(_free(bench))
    assert free == [2] * 4 + [1] * 4 + [0] * 12, "past the context the window slides within its pages"
    bench.engine.close(lease)
    bench.engine.tick()
    assert _free(bench) == 3


def test_admission_asks_for_the_first_pages_and_the_reserve() -> None:
    bench = _bench(4, reserve=1)
    bench.open(spec=prompted(7))  # two pages: seven steps and the first one
    with pytest.raises(EngineFull):
        bench.acquire(GUIDED)
    assert _free(bench) == 2
    bench.open()
    with pytest.raises(EngineFull):
        bench.acquire()
    stats = bench.engine.stats()
    assert (stats.free, stats.rows_free, _free(bench)) == (2, 6, 1)


def test_a_lease_that_nobody_opened_gives_its_pages_back() -> None:
    bench = _bench(2)
    bench.acquire(GUIDED)
    bench.clock.now_s += 10.0
    bench.open(spec=GUIDED)
    assert _free(bench) == 0


def test_where_pages_are_short_the_newest_waits_and_goes_on_when_somebody_leaves() -> None:
    bench = _bench(4)
    old, new, third = bench.open(), bench.open(), bench.open()
    for number in range(STEPS):
        for lease in (old, new):
            bench.push(lease, 1.0, number)
        bench.engine.tick()
    bench.push(new, 1.0, STEPS)
    bench.push(old, 1.0, STEPS)
    assert bench.engine.tick() == 1
    assert (len(bench.listener.steps(old)), len(bench.listener.steps(new))) == (STEPS + 1, STEPS)
    assert not bench.engine.wait_for_work(0.0), "a loop must not spin on somebody who waits"
    bench.push(new, 1.0, STEPS + 1)
    assert not bench.engine.wait_for_work(0.0)
    bench.engine.close(third)
    bench.engine.tick()
    bench.engine.tick()
    bench.engine.tick()
    assert [step.number for step in bench.listener.steps(new)] == list(range(STEPS + 2))
    assert bench.listener.sums(new) == [float(step + 1) for step in range(STEPS + 2)]
    assert not bench.listener.ends(new)


def test_who_waits_keeps_a_bounded_inbox_and_what_it_loses_is_counted() -> None:
    bench = _bench(2)
    waiting, other = bench.open(), bench.open()
    for number in range(STEPS):
        bench.push(waiting, 1.0, number)
        bench.engine.tick()
    for number in range(40):
        bench.push(waiting, 1.0, STEPS + number)
        bench.engine.tick()
    stats = bench.engine.stats()
    assert stats.pending_frames == Limits().inbox_frames
    assert bench.runner.pool is not None
    assert bench.runner.pool.counters()["page_waits"] == 1
    bench.engine.close(other)
    for _ in range(4):
        bench.engine.tick()
    assert len(bench.listener.steps(waiting)) > STEPS
    assert {cause for _, cause in bench.listener.drops(waiting)} <= {DropCause.OVERFLOW, DropCause.LAG}
    assert sum(frames for frames, _ in bench.listener.drops(waiting)) > 0


def test_who_waits_may_leave() -> None:
    bench = _bench(2)
    waiting, other = bench.open(), bench.open()
    for number in range(STEPS + 1):
        bench.push(waiting, 1.0, number)
        bench.engine.tick()
    bench.engine.close(waiting)
    bench.engine.tick()
    assert bench.listener.ends(waiting)
    bench.push(other, 1.0)
    assert bench.engine.tick() == 1
    assert _free(bench) == 1


def test_a_guided_session_steps_with_both_rows_or_waits() -> None:
    bench = _bench(5)
    bench.open()
    guided = bench.open(spec=GUIDED)
    last = bench.open()
    for number in range(STEPS + 1):
        bench.push(guided, 1.0, number)
        bench.engine.tick()
    assert len(bench.listener.steps(guided)) == STEPS
    assert _free(bench) == 1
    bench.engine.close(last)
    bench.engine.tick()
    bench.engine.tick()
    assert len(bench.listener.steps(guided)) == STEPS + 1
    assert _free(bench) == 0
