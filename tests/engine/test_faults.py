"""One bad session never ends a tick, and never reaches another."""

from collections.abc import Callable

import numpy as np
import pytest

from serve_app.engine.batch import TickBatch
from serve_app.engine.events import DropCause
from serve_app.engine.limits import Limits
from serve_app.engine.slots import Lease
from serve_app.errors import EngineLost, NotFinite, SessionFault
from serve_app.units import FRAME_SAMPLES
from tests.engine.fakes import Bench, Listener, frame


def play(slots: int, disturb: Callable[[Bench, list[Lease], int], None]) -> tuple[Bench, list[Lease], list[Listener]]:
    """Four rounds of a conversation in every slot, with something done before each."""
    bench = Bench(slots)
    listeners = [Listener() for _ in range(slots)]
    leases = [bench.open(listener) for listener in listeners]
    for round_number in range(4):
        disturb(bench, leases, round_number)
        for index, lease in enumerate(leases):
            bench.push(lease, float(index + 1), round_number)
        bench.engine.tick()
    return bench, leases, listeners


def undisturbed(bench: Bench, leases: list[Lease], round_number: int) -> None:
    pass


@pytest.mark.parametrize("victim", range(4))
def test_row_that_is_not_finite_ends_alone(victim: int) -> None:
    def poison(bench: Bench, leases: list[Lease], round_number: int) -> None:
        bench.runner.poisoned = {leases[victim].slot} if round_number == 2 else set()

    _, _, clean = play(4, undisturbed)
    bench, leases, listeners = play(4, poison)
    (end,) = listeners[victim].ends(leases[victim])
    assert isinstance(end.error, NotFinite)
    assert len(listeners[victim].steps(leases[victim])) == 2
    for index, lease in enumerate(leases):
        if index != victim:
            assert listeners[index].sums(lease) == clean[index].sums(lease)
            assert listeners[index].ends(lease) == []
    assert bench.engine.stats().free == 1


def test_slot_that_is_not_finite_is_wiped_before_its_next_holder() -> None:
    bench = Bench(1)
    lease = bench.open()
    bench.runner.poisoned = {lease.slot}
    bench.push(lease, 1.0)
    bench.engine.tick()
    bench.runner.poisoned = set()
    assert bench.runner.calls == ["open 0", "wipe 0"]
    listener = Listener()
    heir = bench.open(listener)
    bench.push(heir, 1.0)
    bench.engine.tick()
    assert listener.sums(heir) == [1.0]


def test_cleanly_closed_slot_is_not_wiped() -> None:
    bench = Bench(1)
    bench.engine.close(bench.open())
    bench.engine.tick()
    assert bench.runner.calls == ["open 0"]


@pytest.mark.parametrize(
    ("pcm", "error"),
    [
        (np.full(FRAME_SAMPLES, np.nan, np.float32), NotFinite),
        (np.full(FRAME_SAMPLES, 1e39), NotFinite),
        (np.zeros(7, np.float32), SessionFault),
        ("no audio", SessionFault),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_bad_frame_ends_its_session_and_never_reaches_the_model(pcm: object, error: type[SessionFault]) -> None:
    bench = Bench()
    bad, good = bench.open(), bench.open()
    bench.engine.push(bad, 0, pcm)
    bench.push(good, 1.0)
    assert bench.engine.tick() == 1
    assert bench.runner.batches == [[good.slot]]
    assert [type(end.error) for end in bench.listener.ends(bad)] == [error]
    assert bench.listener.sums(good) == [1.0]
    assert bench.listener.drops(bad) == [(1, DropCause.FAULT)]


def test_sink_that_raises_ends_its_session_alone() -> None:
    bench = Bench()
    deaf = Listener()
    bad, good = bench.open(deaf), bench.open()
    deaf.error = RuntimeError("the connection is gone")
    for lease in (bad, good):
        bench.push(lease, 1.0)
    bench.engine.tick()
    bench.push(good, 1.0)
    bench.engine.tick()
    assert bench.listener.sums(good) == [1.0, 2.0]
    assert bench.engine.stats().ended == {"session_failed": 1}
    assert bench.engine.stats().free == 3


def test_sink_that_raises_at_opening_ends_its_session_alone() -> None:
    bench = Bench()
    deaf = Listener()
    deaf.error = RuntimeError("the connection is gone")
    bench.open(deaf)
    assert bench.engine.stats().free == 4


def test_slot_that_cannot_be_opened_fails_its_session_and_is_wiped() -> None:
    bench = Bench()
    bench.runner.open_error = ValueError("no such voice")
    lease = bench.open()
    assert [type(end.error) for end in bench.listener.ends(lease)] == [SessionFault]
    assert bench.runner.calls == ["open 0", "wipe 0"]
    assert bench.engine.healthy


def explode(batch: TickBatch) -> None:
    raise RuntimeError("out of memory")


def test_run_that_raises_ends_its_rows_and_the_engine_goes_on() -> None:
    bench = Bench()
    first, second, idle = bench.open(), bench.open(), bench.open()
    bench.runner.before_run = explode
    for lease in (first, second):
        bench.push(lease, 1.0)
    assert bench.engine.tick() == 0
    for lease in (first, second):
        assert [type(end.error) for end in bench.listener.ends(lease)] == [SessionFault]
    bench.runner.before_run = lambda batch: None
    bench.push(idle, 1.0)
    bench.engine.tick()
    assert bench.listener.sums(idle) == [1.0]
    assert bench.engine.healthy


def test_wire_never_sees_why_a_run_failed() -> None:
    bench = Bench()
    lease = bench.open()
    bench.runner.before_run = explode
    bench.push(lease, 1.0)
    bench.engine.tick()
    (end,) = bench.listener.ends(lease)
    assert "memory" not in str(end.error)


def test_engine_is_unhealthy_after_three_failed_runs_in_a_row() -> None:
    bench = Bench(limits=Limits(run_failures=3))
    bench.runner.before_run = explode
    for failures in range(3):
        assert bench.engine.healthy, failures
        bench.push(bench.open(), 1.0)
        bench.engine.tick()
    assert not bench.engine.healthy


def test_device_that_fails_tells_its_rows_to_come_back() -> None:
    bench = Bench()
    leases = [bench.open(), bench.open()]
    bench.runner.before_run = explode
    bench.runner.wipe_error = RuntimeError("device fault")
    for lease in leases:
        bench.push(lease, 1.0)
    bench.engine.tick()
    assert not bench.engine.healthy
    for lease in leases:
        assert [type(end.error) for end in bench.listener.ends(lease)] == [EngineLost]


def test_run_that_makes_the_engine_unhealthy_tells_its_rows_to_come_back() -> None:
    bench = Bench(limits=Limits(run_failures=2))
    bench.runner.before_run = explode
    ends = []
    for _ in range(2):
        lease = bench.open()
        bench.push(lease, 1.0)
        bench.engine.tick()
        ends += [type(end.error) for end in bench.listener.ends(lease)]
    assert ends == [SessionFault, EngineLost]


def test_device_that_failed_is_not_asked_again() -> None:
    bench = Bench()
    leases = [bench.open() for _ in range(3)]
    bench.runner.before_run = explode
    bench.runner.wipe_error = RuntimeError("device fault")
    bench.push(leases[0], 1.0)
    bench.engine.tick()
    bench.engine.shut(EngineLost(), healthy=False)
    assert bench.runner.calls[3:] == ["wipe 0"]


def test_successful_run_forgives_the_failures_before_it() -> None:
    bench = Bench(limits=Limits(run_failures=2))
    for _ in range(3):
        bench.runner.before_run = explode
        bench.push(bench.open(), 1.0)
        bench.engine.tick()
        bench.runner.before_run = lambda batch: None
        lease = bench.open()
        bench.push(lease, 1.0)
        bench.engine.tick()
        bench.engine.close(lease)
    assert bench.engine.healthy


def test_slot_that_cannot_be_wiped_is_never_given_out_again() -> None:
    bench = Bench(1)
    lease = bench.open()
    bench.runner.poisoned = {lease.slot}
    bench.runner.wipe_error = RuntimeError("device fault")
    bench.push(lease, 1.0)
    bench.engine.tick()
    assert [type(end.error) for end in bench.listener.ends(lease)] == [NotFinite]
    assert bench.engine.stats().free == 0
    assert not bench.engine.healthy


def test_neighbour_that_fails_a_hundred_times_changes_nothing() -> None:
    bench = Bench(2)
    good = bench.open()
    for number in range(100):
        bad = bench.open(Listener())
        bench.engine.push(bad, 0, frame(np.nan))
        bench.push(good, 1.0, number)
        bench.engine.tick()
    assert bench.listener.sums(good) == [float(number + 1) for number in range(100)]
    assert bench.engine.stats().ended == {"not_finite": 100}
