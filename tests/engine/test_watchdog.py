"""The watchdog, with an injected clock."""

from serve_app.engine.batch import TickBatch
from serve_app.engine.watchdog import Watchdog
from tests.engine.fakes import Bench, FakeClock


class Watched:
    """A tick that begins when told, and a watchdog on it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.began_s: float | None = None
        self.calls: list[tuple[str, float]] = []
        self.dog = Watchdog(
            lambda: self.began_s,
            self.clock,
            on_alarm=lambda stuck_s: self.calls.append(("alarm", stuck_s)),
            on_exit=lambda stuck_s: self.calls.append(("exit", stuck_s)),
        )

    def after(self, passed_s: float) -> list[tuple[str, float]]:
        self.clock.now_s += passed_s
        self.dog.check()
        return self.calls


def test_idle_engine_never_alarms() -> None:
    assert Watched().after(1_000.0) == []


def test_tick_that_returns_in_time_never_alarms() -> None:
    watched = Watched()
    for _ in range(10):
        watched.began_s = watched.clock()
        assert watched.after(0.75) == []


def test_stuck_tick_alarms_once_after_a_second_and_exits_once_after_five() -> None:
    watched = Watched()
    watched.began_s = watched.clock()
    assert watched.after(1.0) == [("alarm", 1.0)]
    assert watched.after(3.5) == [("alarm", 1.0)]
    assert watched.after(0.5) == [("alarm", 1.0), ("exit", 5.0)]
    assert watched.after(1.0) == [("alarm", 1.0), ("exit", 5.0)]


def test_second_stuck_tick_alarms_again() -> None:
    watched = Watched()
    for _ in range(2):
        watched.began_s = watched.clock()
        watched.after(1.5)
    assert [name for name, _ in watched.calls] == ["alarm", "alarm"]


def test_engine_shows_its_running_tick_to_the_watchdog() -> None:
    bench = Bench()
    lease = bench.open()
    calls: list[float] = []
    dog = Watchdog(lambda: bench.engine.busy_since, bench.clock, on_alarm=calls.append, on_exit=calls.append)

    def hang(batch: TickBatch) -> None:
        bench.clock.now_s += 1.25
        dog.check()

    bench.runner.before_run = hang
    bench.push(lease, 1.0)
    bench.engine.tick()
    assert calls == [1.25]
    dog.check()
    assert calls == [1.25]


def test_watchdog_thread_stops_when_told() -> None:
    watched = Watched()
    watched.dog.start()
    watched.dog.stop()
    assert watched.calls == []
