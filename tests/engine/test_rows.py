"""Sessions that own two rows of the batch among sessions that own one."""

import pytest

from serve_app.errors import EngineFull, ParameterRefused
from serve_app.spec import SessionSpec
from tests.engine.fakes import GUIDED, Bench


def test_guided_sessions_take_two_rows_and_give_both_back() -> None:
    bench = Bench(slots=4, rows=5)
    leases = [bench.open(spec=spec) for spec in (SessionSpec(), GUIDED, SessionSpec())]
    assert bench.engine.stats().rows_free == 1
    for lease in leases:
        bench.engine.close(lease)
    bench.engine.tick()
    stats = bench.engine.stats()
    assert (stats.free, stats.rows_free) == (4, 5)


def test_guided_session_is_refused_by_rows_where_an_unguided_one_still_fits() -> None:
    bench = Bench(slots=4, rows=4)
    bench.open(spec=GUIDED)
    bench.open()
    with pytest.raises(EngineFull, match="a guided session needs 2 rows of the batch and 1 is free") as caught:
        bench.acquire(GUIDED)
    assert (caught.value.http_status, caught.value.reason) == (503, "full")
    bench.open()


def test_no_free_row_refuses_though_slots_are_free() -> None:
    bench = Bench(slots=4, rows=2)
    bench.open(spec=GUIDED)
    with pytest.raises(EngineFull, match="all rows"):
        bench.acquire()
    assert bench.engine.stats().free == 3


def test_no_free_slot_is_said_though_rows_are_free() -> None:
    bench = Bench(slots=1, rows=4)
    bench.open()
    with pytest.raises(EngineFull, match="all 1 slots"):
        bench.acquire(GUIDED)


def test_lease_that_nobody_opened_gives_its_rows_back() -> None:
    bench = Bench(slots=2, rows=2)
    bench.acquire(GUIDED)
    bench.clock.now_s += 10.0
    bench.open(spec=GUIDED)
    assert bench.engine.stats().rows_free == 0


def test_guided_and_unguided_sessions_hear_themselves_in_one_batch() -> None:
    bench = Bench(slots=3, rows=5)
    leases = [bench.open(spec=spec) for spec in (GUIDED, SessionSpec(), GUIDED)]
    for number in range(3):
        for voice, lease in enumerate(leases):
            bench.push(lease, voice + 1.0, number)
        assert bench.engine.tick() == 3
    assert [bench.listener.sums(lease) for lease in leases] == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 6.0, 9.0]]


def test_failed_guided_session_has_both_rows_wiped_before_anybody_gets_them() -> None:
    bench = Bench(slots=2, rows=2)
    lease = bench.open(spec=GUIDED)
    bench.runner.poisoned = {1}  # the twin alone
    bench.push(lease, 1.0)
    bench.engine.tick()
    bench.runner.poisoned = set()
    assert [str(end.error) for end in bench.listener.ends(lease)] == [
        "session failed: a value of its row is not finite"
    ]
    assert bench.runner.calls == ["open 0 and 1", "wipe 0", "wipe 1"]
    after = bench.open(spec=GUIDED)
    bench.push(after, 2.0)
    bench.engine.tick()
    assert bench.listener.sums(after) == [2.0]


def test_row_that_cannot_be_wiped_is_never_given_out_again() -> None:
    bench = Bench(slots=2, rows=2)
    lease = bench.open(spec=GUIDED)
    bench.runner.poisoned, bench.runner.wipe_error = {0}, RuntimeError("no")
    bench.push(lease, 1.0)
    bench.engine.tick()
    stats = bench.engine.stats()
    assert (stats.rows_free, stats.healthy) == (0, False)


def test_what_the_runner_does_not_offer_is_refused_before_a_slot_is_leased() -> None:
    bench = Bench(slots=1)
    with pytest.raises(ParameterRefused, match=r"condition\.mood"):
        bench.acquire(SessionSpec(conditions=(("mood", "good"),)))
    bench.open()


def test_heads_are_told_to_those_who_asked() -> None:
    bench = Bench()
    curious, plain = bench.open(spec=SessionSpec(extra_heads=True)), bench.open()
    for lease in (curious, plain):
        bench.push(lease, 4.0)
    bench.engine.tick()
    heads = bench.listener.steps(curious)[0].heads
    assert heads is not None
    assert heads.tolist() == [[4.0], [4.0]]
    assert bench.listener.steps(plain)[0].heads is None
