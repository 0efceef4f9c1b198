"""A session outlives its holder: parked, taken over by another, and gone on with, or given back."""

from typing import Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.engine.batch import TickBatch
from serve_app.engine.events import DropCause, Ended, Opened, Stepped
from serve_app.engine.limits import Limits
from serve_app.engine.slots import Lease
from serve_app.errors import EngineDraining, EngineFull, EngineLost, StaleLease
from serve_app.spec import SessionSpec
from tests.engine.fakes import GUIDED, Bench, Listener, frame, prompted

SLOTS: Final = 3
ROWS: Final = 4


class Absent:
    """A bench with one live session whose holder has said some frames and is gone."""

    def __init__(self, frames: int = 2) -> None:
        self.bench = Bench()
        self.engine = self.bench.engine
        self.lease = self.bench.open()
        for number in range(frames):
            self.bench.push(self.lease, 1.0, number)
            self.engine.tick()
        self.aside = Listener()

    def park(self) -> bool:
        return self.engine.park(self.lease, self.aside)

    def back(self) -> tuple[Lease, Listener]:
        listener = Listener()
        lease = self.engine.retake(self.lease)
        self.engine.open(lease, listener)
        self.engine.tick()
        return lease, listener


def test_a_session_that_is_taken_over_goes_on_where_it_was() -> None:
    one = Absent(frames=2)
    assert one.park()
    lease, listener = one.back()
    one.bench.push(lease, 1.0, number=0)
    one.engine.tick()
    assert listener.events[0] == Opened(lease)
    assert [(step.number, step.step) for step in listener.steps(lease)] == [(0, 2)]
    assert listener.sums(lease) == [3.0]
    assert one.bench.runner.calls == [f"open {lease.slot}"]


def test_the_slot_stays_the_same_and_the_old_lease_is_stale() -> None:
    one = Absent()
    one.park()
    lease, listener = one.back()
    assert (lease.slot, lease.generation) == (one.lease.slot, one.lease.generation + 1)
    one.bench.push(one.lease, 5.0)
    one.engine.close(one.lease)
    one.engine.tick()
    assert one.engine.stats().stale_frames == 1
    assert listener.events == [Opened(lease)]


def test_the_old_holder_hears_nothing_once_the_session_is_parked() -> None:
    one = Absent()
    heard = list(one.bench.listener.events)
    one.park()
    lease, _ = one.back()
    one.bench.push(lease, 1.0)
    one.engine.tick()
    one.engine.close(lease)
    one.engine.tick()
    assert one.bench.listener.events == heard


def test_a_step_in_flight_while_hands_change_is_heard_by_nobody() -> None:
    one = Absent(frames=0)
    listener = Listener()
    leases: list[Lease] = []

    def hands_change(batch: TickBatch) -> None:
        one.park()
        leases.append(one.engine.retake(one.lease))
        one.engine.open(leases[0], listener)

    one.bench.runner.before_run = hands_change
    one.bench.push(one.lease, 1.0)
    one.engine.tick()
    one.bench.runner.before_run = lambda batch: None
    assert one.bench.listener.steps(one.lease) == []
    assert listener.events == []
    one.engine.tick()
    one.bench.push(leases[0], 1.0)
    one.engine.tick()
    assert [step.step for step in listener.steps(leases[0])] == [1]


def test_what_waits_when_the_holder_is_lost_is_dropped_and_not_stepped_later() -> None:
    one = Absent(frames=0)
    for number in range(3):
        one.bench.push(one.lease, 1.0, number)
    one.park()
    assert one.engine.tick() == 0
    assert one.engine.stats().pending_frames == 0
    lease, listener = one.back()
    assert listener.drops(lease) == [(3, DropCause.PARKED)]
    assert listener.steps(lease) == []


def test_a_frame_of_the_old_holder_after_the_parking_is_stale() -> None:
    one = Absent()
    one.park()
    one.bench.push(one.lease, 5.0)
    assert one.engine.tick() == 0
    assert one.engine.stats().stale_frames == 1


def test_frames_pushed_right_after_the_opening_are_stepped_after_it() -> None:
    one = Absent(frames=1)
    one.park()
    listener = Listener()
    lease = one.engine.retake(one.lease)
    one.engine.open(lease, listener)
    one.bench.push(lease, 1.0, number=7)
    one.engine.tick()
    assert listener.events[0] == Opened(lease)
    assert [step.number for step in listener.steps(lease)] == [7]


def test_a_parked_session_keeps_its_slot_and_its_rows_and_counts_as_no_live_one() -> None:
    bench = Bench(2, rows=4)
    lease = bench.open(spec=GUIDED)
    bench.open()
    assert bench.engine.park(lease, Listener())
    stats = bench.engine.stats()
    assert (stats.free, stats.live, stats.parked, stats.rows_free) == (0, 1, 1, 1)
    assert bench.engine.crowd().live == 1
    with pytest.raises(EngineFull):
        bench.acquire()


def test_the_next_holder_of_a_slot_that_was_parked_and_given_back_begins_afresh() -> None:
    bench = Bench(1)
    lease = bench.open()
    bench.push(lease, 5.0)
    bench.engine.tick()
    aside = Listener()
    bench.engine.park(lease, aside)
    bench.engine.close(lease)
    bench.engine.tick()
    assert aside.events == [Ended(lease, None)]
    listener = Listener()
    fresh = bench.open(listener)
    assert (fresh.slot, fresh.generation) == (lease.slot, lease.generation + 1)
    bench.push(fresh, 1.0)
    bench.engine.tick()
    assert [step.step for step in listener.steps(fresh)] == [0]
    assert listener.sums(fresh) == [1.0]


def test_a_session_that_is_not_live_cannot_be_parked() -> None:
    bench = Bench()
    leased = bench.acquire()
    primed = bench.open(spec=prompted(40))
    closed = bench.open()
    bench.engine.close(closed)
    assert not any(bench.engine.park(lease, Listener()) for lease in (leased, primed, closed))
    bench.engine.tick()
    assert not bench.engine.park(closed, Listener())


def test_only_a_parked_session_can_be_taken_over() -> None:
    one = Absent()
    with pytest.raises(StaleLease):
        one.engine.retake(one.lease)
    one.park()
    lease = one.engine.retake(one.lease)
    with pytest.raises(StaleLease):
        one.engine.retake(one.lease)
    with pytest.raises(StaleLease):
        one.engine.open(one.lease, Listener())
    one.engine.open(lease, Listener())
    with pytest.raises(StaleLease):
        one.engine.open(lease, Listener())


def test_one_who_came_back_and_was_lost_before_it_was_opened_can_come_back_again() -> None:
    one = Absent(frames=1)
    one.park()
    lost = Listener()
    first = one.engine.retake(one.lease)
    one.engine.open(first, lost)
    assert one.engine.park(first, one.aside)
    second = one.engine.retake(first)
    listener = Listener()
    one.engine.open(second, listener)
    one.engine.tick()
    assert (lost.events, listener.events) == ([], [Opened(second)])


def test_one_who_came_back_and_left_before_it_was_opened_is_told_the_end() -> None:
    one = Absent()
    one.park()
    listener = Listener()
    lease = one.engine.retake(one.lease)
    one.engine.open(lease, listener)
    one.engine.close(lease)
    one.engine.tick()
    assert listener.events == [Ended(lease, None)]
    assert one.aside.events == []


def test_a_gap_while_it_was_parked_is_no_underrun() -> None:
    one = Absent()
    one.park()
    one.bench.clock.now_s += 20.0
    lease, _ = one.back()
    one.bench.push(lease, 1.0)
    assert one.engine.stats().underruns == 0


def test_a_session_that_fails_in_flight_ends_for_whoever_stands_in() -> None:
    one = Absent(frames=0)
    one.bench.runner.poisoned = {int(one.lease.slot)}

    def park(batch: TickBatch) -> None:
        one.park()

    one.bench.runner.before_run = park
    one.bench.push(one.lease, 1.0)
    one.engine.tick()
    (ended,) = one.aside.ends(one.lease)
    assert ended.error is not None
    with pytest.raises(StaleLease):
        one.engine.retake(one.lease)


def test_a_draining_engine_keeps_its_parked_sessions_and_lets_them_come_back() -> None:
    one = Absent()
    one.park()
    one.engine.drain()
    assert not one.engine.drained
    with pytest.raises(EngineDraining):
        one.bench.acquire()
    _, listener = one.back()
    assert len(listener.events) == 1


def test_an_engine_that_is_shut_ends_its_parked_sessions() -> None:
    one = Absent()
    one.park()
    one.engine.shut(EngineLost())
    assert isinstance(one.aside.ends(one.lease)[0].error, EngineLost)
    assert one.engine.drained


def test_nobody_waits_for_the_frames_of_one_who_is_parked() -> None:
    bench = Bench(2, limits=Limits())
    here, gone = bench.open(), bench.open()
    bench.push(here, 1.0)
    assert not bench.engine.crowd().hurried
    bench.engine.park(gone, Listener())
    assert bench.engine.crowd().hurried


class Caller:
    """One conversation over all its holders."""

    def __init__(self, voice: float, lease: Lease, listener: Listener) -> None:
        self.voice = voice
        self.leases = [lease]
        self.listeners = [listener]
        self.aside: list[Listener] = []

    @property
    def lease(self) -> Lease:
        return self.leases[-1]

    def steps(self) -> list[Stepped]:
        return [step for listener in self.listeners for step in listener.events if isinstance(step, Stepped)]


class AnyOrderOfHands(RuleBasedStateMachine):
    """Sessions come, are parked, taken over, opened and closed in any order, between ticks and during them."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(SLOTS, rows=ROWS)
        self.callers: list[Caller] = []
        self.during: list[tuple[str, Caller]] = []
        self.bench.runner.before_run = self.interrupt

    def interrupt(self, batch: TickBatch) -> None:
        for what, caller in self.during:
            getattr(self, what)(caller)
        self.during.clear()

    @rule(spec=st.sampled_from([SessionSpec(), GUIDED, prompted(9)]))
    def arrive(self, spec: SessionSpec) -> None:
        try:
            lease = self.bench.acquire(spec)
        except EngineFull:
            return
        listener = Listener()
        self.bench.engine.open(lease, listener)
        self.callers.append(Caller(float(len(self.callers) + 1), lease, listener))

    @precondition(lambda self: self.callers)
    @rule(data=st.data(), what=st.sampled_from(["push", "push", "park", "back", "close"]), later=st.booleans())
    def do(self, data: st.DataObject, what: str, later: bool) -> None:
        caller = data.draw(st.sampled_from(self.callers[-2 * SLOTS :]))
        if later:
            self.during.append((what, caller))
        else:
            getattr(self, what)(caller)

    def push(self, caller: Caller) -> None:
        for lease in caller.leases:  # old holders too: nothing of theirs may count
            self.bench.engine.push(lease, 0, frame(caller.voice if lease == caller.lease else 1_000.0))

    def park(self, caller: Caller) -> None:
        aside = Listener()
        if self.bench.engine.park(caller.lease, aside):
            caller.aside.append(aside)

    def back(self, caller: Caller) -> None:
        try:
            lease = self.bench.engine.retake(caller.lease)
        except StaleLease:
            return
        caller.leases.append(lease)
        caller.listeners.append(Listener())
        self.bench.engine.open(lease, caller.listeners[-1])

    def close(self, caller: Caller) -> None:
        self.bench.engine.close(caller.lease)

    @rule()
    def tick(self) -> None:
        self.bench.engine.tick()

    @invariant()
    def every_conversation_is_one_and_only_its_own(self) -> None:
        for caller in self.callers:
            for step in caller.steps():
                assert step.pcm is not None
                assert float(step.pcm[0]) == caller.voice * (step.step + 1)
            steps = [step.step for step in caller.steps()]
            assert steps == sorted(set(steps))

    @invariant()
    def each_holder_hears_its_own_lease_from_opened_to_one_end(self) -> None:
        for caller in self.callers:
            for lease, listener in zip(caller.leases, caller.listeners, strict=True):
                assert {event.lease for event in listener.events} <= {lease}
                kinds = [type(event) for event in listener.events]
                assert kinds.count(Opened) <= 1
                assert Ended not in kinds[:-1]
                if Stepped in kinds:
                    assert kinds[0] is Opened
            ends = sum(
                isinstance(event, Ended) for listener in [*caller.listeners, *caller.aside] for event in listener.events
            )
            assert ends <= 1

    @invariant()
    def seats_are_conserved(self) -> None:
        stats = self.bench.engine.stats()
        taken = stats.leased + stats.live + stats.parked + stats.priming
        assert 0 <= stats.free <= stats.free + taken <= stats.slots == SLOTS
        assert SLOTS - stats.free <= ROWS - stats.rows_free <= 2 * (SLOTS - stats.free)
        for report in self.bench.observer.sessions:
            assert report.received == report.stepped + sum(report.dropped.values())

    def teardown(self) -> None:
        self.during.clear()
        for caller in self.callers:
            self.close(caller)
        self.bench.engine.tick()
        stats = self.bench.engine.stats()
        assert (stats.free, stats.rows_free, stats.parked, stats.pending_frames) == (SLOTS, ROWS, 0, 0)
        assert len(self.bench.observer.sessions) == len(self.callers)


TestConversationsSurviveAnyOrderOfHands = AnyOrderOfHands.TestCase
