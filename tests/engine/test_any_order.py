"""Anything may happen to the engine in any order; the seats, the books and the neighbours hold."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.engine.batch import TickBatch
from serve_app.engine.events import Dropped, Ended, Opened, Stepped
from serve_app.engine.slots import Lease
from serve_app.errors import EngineFull, EngineLost
from serve_app.spec import Prompt, SessionSpec
from tests.engine.fakes import GUIDED, Bench, Listener, frame, prompted

SLOTS = 3
ROWS = 4
SPECS = (SessionSpec(), GUIDED, prompted(9), SessionSpec(guidance=3.0, prompt=Prompt(text="a" * 9)))


def explode(batch: TickBatch) -> None:
    raise RuntimeError("out of memory")


class AnyOrder(RuleBasedStateMachine):
    """Every session pushes a number of its own; what it hears must be multiples of it and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(SLOTS, rows=ROWS)
        self.leases: list[Lease] = []
        self.listeners: dict[Lease, Listener] = {}
        self.pushed: dict[Lease, int] = {}

    def any_lease(self, data: st.DataObject) -> Lease:
        return data.draw(st.sampled_from(self.leases[-2 * SLOTS :]))

    @rule(open_it=st.booleans(), spec=st.sampled_from(SPECS))
    def arrive(self, open_it: bool, spec: SessionSpec) -> None:
        try:
            lease = self.bench.acquire(spec)
        except EngineFull:
            return
        except EngineLost:
            assert not self.bench.engine.healthy
            return
        self.leases.append(lease)
        if open_it:
            self.listeners[lease] = Listener()
            self.pushed[lease] = 0
            self.bench.engine.open(lease, self.listeners[lease])

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), frames=st.integers(1, 20), good=st.booleans())
    def push(self, data: st.DataObject, frames: int, good: bool) -> None:
        lease = self.any_lease(data)
        for _ in range(frames):
            number = self.pushed.get(lease, 0)
            value = self.voice(lease) if good or number % 5 else np.nan
            self.bench.engine.push(lease, number, frame(value))
            if lease in self.pushed:
                self.pushed[lease] += 1

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        self.bench.engine.close(self.any_lease(data))

    @rule(passed_s=st.floats(0, 1))
    def pass_time(self, passed_s: float) -> None:
        self.bench.clock.now_s += passed_s

    @precondition(lambda self: self.bench.engine.healthy)
    @rule(
        fault=st.sampled_from(["none", "none", "none", "poison", "explode", "break", "broken prompt", "bad prompt"]),
        slot=st.integers(0, ROWS - 1),
    )
    def tick(self, fault: str, slot: int) -> None:
        """One turn of the loop, which shuts an engine that is unhealthy after it."""
        self.bench.runner.prime_finite = fault != "bad prompt"
        self.bench.runner.prime_error = RuntimeError("out of memory") if fault == "broken prompt" else None
        self.bench.runner.poisoned = {slot} if fault == "poison" else set()
        self.bench.runner.before_run = explode if fault in ("explode", "break") else lambda batch: None
        self.bench.runner.wipe_error = RuntimeError("device fault") if fault == "break" else None
        self.bench.engine.tick()
        if not self.bench.engine.healthy:
            self.bench.engine.shut(EngineLost(), healthy=False)

    def voice(self, lease: Lease) -> float:
        return float(self.leases.index(lease) + 1)

    @invariant()
    def every_session_hears_only_itself_from_its_first_step(self) -> None:
        for lease, listener in self.listeners.items():
            expected = [self.voice(lease) * (step + 1) for step in range(len(listener.steps(lease)))]
            assert listener.sums(lease) == expected
            assert [step.step for step in listener.steps(lease)] == list(range(len(expected)))
            numbers = [step.number for step in listener.steps(lease)]
            assert numbers == sorted(set(numbers))

    @invariant()
    def events_come_as_opened_then_steps_then_one_end(self) -> None:
        for lease, listener in self.listeners.items():
            kinds = [type(event) for event in listener.events]
            assert {event.lease for event in listener.events} <= {lease}
            assert kinds.count(Opened) <= 1
            assert kinds.count(Ended) <= 1
            assert Ended not in kinds[:-1]
            assert set(kinds) <= {Opened, Stepped, Dropped, Ended}
            if Stepped in kinds:
                assert kinds[0] is Opened

    @invariant()
    def books_balance(self) -> None:
        for report in self.bench.observer.sessions:
            assert report.received == report.stepped + sum(report.dropped.values())
        stats = self.bench.engine.stats()
        assert 0 <= stats.free + stats.leased + stats.live + stats.priming <= stats.slots == SLOTS
        assert SLOTS - stats.free <= ROWS - stats.rows_free <= 2 * (SLOTS - stats.free)

    @precondition(lambda self: not self.bench.engine.healthy)
    @invariant()
    def dead_engine_holds_nobody(self) -> None:
        stats = self.bench.engine.stats()
        assert (stats.leased, stats.live, stats.priming, stats.pending_frames) == (0, 0, 0, 0)
        assert all(listener.ends(lease) for lease, listener in self.listeners.items())

    def teardown(self) -> None:
        engine = self.bench.engine
        if engine.healthy:
            self.bench.clock.now_s += 10.0
            self.bench.runner.poisoned = set()
            self.bench.runner.before_run = lambda batch: None
            self.bench.runner.wipe_error = None
            self.bench.runner.prime_error = None
            self.bench.runner.prime_finite = True
            for lease in self.leases:
                engine.close(lease)
            engine.tick()
            stats = engine.stats()
            assert (stats.free, stats.rows_free, stats.priming) == (SLOTS, ROWS, 0)
        assert engine.stats().pending_frames == 0
        ended = sum(len(listener.ends(lease)) for lease, listener in self.listeners.items())
        assert ended == len(self.listeners) == len(self.bench.observer.sessions)


def test_three_runs_that_fail_in_any_order_end_in_an_engine_that_takes_nobody() -> None:
    machine = AnyOrder()
    for _ in range(3):
        machine.arrive(open_it=True, spec=SessionSpec())
        machine.tick("none", 0)
        machine.bench.engine.push(machine.leases[-1], 0, frame(1.0))
        machine.tick("explode", 0)
    machine.arrive(open_it=True, spec=SessionSpec())
    assert len(machine.leases) == 3
    machine.dead_engine_holds_nobody()
    machine.teardown()


TestSeatsBooksAndNeighboursHoldInAnyOrder = AnyOrder.TestCase
