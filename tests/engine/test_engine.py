"""The engine's life of a session, tick by tick, with the test as the engine thread."""

import logging

import numpy as np
import pytest

from serve_app.engine.batch import TickBatch
from serve_app.engine.events import DropCause, Ended, Opened, Stepped
from serve_app.engine.limits import Limits
from serve_app.errors import EngineDraining, EngineFull, EngineLost, StaleLease
from tests.engine.fakes import Bench, Listener, frame

# --- the way of a frame -----------------------------------------------------------------------------------------------


def test_tick_of_16_sessions_runs_the_model_once() -> None:
    bench = Bench(16)
    leases = [bench.open() for _ in range(16)]
    for lease in leases:
        bench.push(lease, 1.0)
    assert bench.engine.tick() == 16
    assert bench.runner.batches == [[lease.slot for lease in leases]]


def test_tick_without_frames_does_not_run_the_model() -> None:
    bench = Bench()
    bench.open()
    assert bench.engine.tick() == 0
    assert bench.runner.batches == []


def test_tick_takes_only_who_has_a_frame() -> None:
    bench = Bench()
    bench.open()
    second = bench.open()
    bench.push(second, 1.0)
    bench.engine.tick()
    assert bench.runner.batches == [[second.slot]]


def test_session_is_told_when_its_slot_is_primed() -> None:
    bench = Bench()
    lease = bench.acquire()
    bench.engine.open(lease, bench.listener)
    assert bench.listener.events == []
    bench.engine.tick()
    assert bench.listener.events == [Opened(lease)]
    assert bench.runner.calls == [f"open {lease.slot}"]


def test_frames_pushed_before_priming_are_stepped_after_it() -> None:
    bench = Bench()
    lease = bench.acquire()
    bench.engine.open(lease, bench.listener)
    bench.push(lease, 2.0, number=7)
    bench.engine.tick()
    assert [step.number for step in bench.listener.steps(lease)] == [7]


def test_step_carries_numbers_tokens_codes_pcm_and_times() -> None:
    bench = Bench()
    lease = bench.open()
    bench.push(lease, 0.25, number=41)
    bench.clock.now_s += 0.5
    bench.engine.tick()
    (step,) = bench.listener.steps(lease)
    assert (step.number, step.step, step.text_token) == (41, 0, 3)
    assert step.codes.dtype == np.int16
    assert step.codes.tolist() == [0, lease.slot]
    assert step.pcm is not None
    assert step.pcm.dtype == np.float32
    np.testing.assert_array_equal(step.pcm, frame(0.25))
    assert (step.ready_s, step.started_s, step.done_s) == (100.0, 100.5, 100.5)


def test_no_audio_goes_out_before_the_models_delay_has_passed() -> None:
    bench = Bench(delay_steps=1)
    lease = bench.open()
    for _ in range(2):
        bench.push(lease, 1.0)
        bench.engine.tick()
    first, second = bench.listener.steps(lease)
    assert (first.pcm, first.text_token) == (None, -2)
    assert second.pcm is not None


def test_what_a_session_was_given_outlives_the_next_tick() -> None:
    bench = Bench()
    lease = bench.open()
    for _ in range(2):
        bench.push(lease, 1.0)
        bench.engine.tick()
    assert bench.listener.sums(lease) == [1.0, 2.0]


def test_steps_of_one_row_count_from_zero_for_every_session() -> None:
    bench = Bench(1)
    for _ in range(2):
        listener = Listener()
        lease = bench.open(listener)
        for _ in range(2):
            bench.push(lease, 1.0)
            bench.engine.tick()
        assert [step.step for step in listener.steps(lease)] == [0, 1]
        assert listener.sums(lease) == [1.0, 2.0]
        bench.engine.close(lease)
        bench.engine.tick()


def test_sink_that_sessions_share_is_called_once_per_tick() -> None:
    bench = Bench(16)
    leases = [bench.open() for _ in range(16)]
    before = bench.listener.calls
    for lease in leases:
        bench.push(lease, 1.0)
    bench.engine.tick()
    assert bench.listener.calls == before + 1
    assert all(len(bench.listener.steps(lease)) == 1 for lease in leases)


# --- leases -----------------------------------------------------------------------------------------------------------


def test_full_engine_refuses() -> None:
    bench = Bench(1)
    bench.acquire()
    with pytest.raises(EngineFull):
        bench.acquire()


def test_lease_is_granted_and_refused_while_a_tick_runs() -> None:
    bench = Bench(2)
    lease = bench.open()
    granted = []

    def arrive(batch: TickBatch) -> None:
        granted.append(bench.acquire())
        with pytest.raises(EngineFull):
            bench.acquire()

    bench.runner.before_run = arrive
    bench.push(lease, 1.0)
    bench.engine.tick()
    assert len(granted) == 1


def test_unopened_lease_expires_after_two_seconds() -> None:
    bench = Bench(1)
    lease = bench.acquire()
    bench.clock.now_s += 1.9
    with pytest.raises(EngineFull):
        bench.acquire()
    bench.clock.now_s += 0.1
    bench.acquire()
    with pytest.raises(StaleLease):
        bench.engine.open(lease, bench.listener)
    assert bench.engine.stats().expired == 1


def test_idle_tick_frees_unopened_leases() -> None:
    bench = Bench(1)
    bench.acquire()
    bench.clock.now_s += 2.0
    bench.engine.tick()
    assert bench.engine.stats().free == 1


def test_opened_lease_does_not_expire() -> None:
    bench = Bench(1)
    lease = bench.acquire()
    bench.engine.open(lease, bench.listener)
    bench.clock.now_s += 60.0
    bench.engine.tick()
    assert bench.listener.opened(lease)


def test_lease_opens_once() -> None:
    bench = Bench()
    lease = bench.open()
    with pytest.raises(StaleLease):
        bench.engine.open(lease, Listener())


def test_frame_of_a_stale_lease_is_dropped_and_counted() -> None:
    bench = Bench(1)
    old = bench.open()
    bench.engine.close(old)
    bench.engine.tick()
    listener = Listener()
    new = bench.open(listener)
    bench.push(old, 5.0)
    bench.push(new, 1.0)
    bench.engine.tick()
    assert listener.sums(new) == [1.0]
    assert bench.engine.stats().stale_frames == 1


def test_closing_a_stale_lease_leaves_the_next_holder_alone() -> None:
    bench = Bench(1)
    old = bench.open()
    bench.engine.close(old)
    bench.engine.tick()
    new = bench.open()
    bench.engine.close(old)
    bench.engine.tick()
    assert bench.listener.ends(new) == []


def test_sink_that_cannot_be_grouped_is_refused_at_once() -> None:
    class Unhashable(Listener):
        __hash__ = None  # type: ignore[assignment]

    bench = Bench()
    with pytest.raises(TypeError, match="unhashable"):
        bench.engine.open(bench.acquire(), Unhashable())


# --- the end of a session ---------------------------------------------------------------------------------------------


def test_closed_session_hears_ended_once_and_its_slot_is_free() -> None:
    bench = Bench()
    lease = bench.open()
    bench.engine.close(lease)
    bench.engine.close(lease)
    bench.engine.tick()
    bench.engine.close(lease)
    bench.engine.tick()
    assert bench.listener.events[1:] == [Ended(lease, None)]
    assert bench.engine.stats().free == 4


def test_closed_session_steps_no_more() -> None:
    bench = Bench()
    lease = bench.open()
    bench.push(lease, 1.0)
    bench.engine.close(lease)
    bench.push(lease, 1.0)
    bench.engine.tick()
    assert bench.runner.batches == []
    assert bench.observer.sessions[0].dropped == {DropCause.ENDED: 1}


def test_closing_an_unopened_lease_frees_it_without_a_tick() -> None:
    bench = Bench(1)
    bench.engine.close(bench.acquire())
    assert bench.engine.stats().free == 1


def test_session_closed_before_priming_never_reaches_the_model() -> None:
    bench = Bench()
    lease = bench.acquire()
    bench.engine.open(lease, bench.listener)
    bench.engine.close(lease)
    bench.engine.tick()
    assert bench.runner.calls == []
    assert bench.listener.events == [Ended(lease, None)]


def test_session_closed_while_its_tick_runs_gets_that_step_and_then_the_end() -> None:
    bench = Bench()
    lease = bench.open()
    bench.runner.before_run = lambda batch: bench.engine.close(lease)
    bench.push(lease, 1.0)
    bench.engine.tick()
    assert [type(event) for event in bench.listener.events] == [Opened, Stepped, Ended]
    assert bench.engine.stats().free == 4


def test_books_of_an_ended_session_balance() -> None:
    bench = Bench(limits=Limits(inbox_frames=4))
    lease = bench.open()
    for number in range(7):
        bench.push(lease, 1.0, number)
    bench.engine.tick()
    bench.engine.close(lease)
    bench.engine.tick()
    (report,) = bench.observer.sessions
    assert report.dropped == {DropCause.OVERFLOW: 3, DropCause.ENDED: 3}
    assert report.received == 7 == report.stepped + sum(report.dropped.values())


def test_session_writes_one_line_at_its_start_and_one_at_its_end(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    with caplog.at_level(logging.INFO, logger="serve_app.engine"):
        lease = bench.open()
        bench.push(lease, 1.0)
        bench.clock.now_s += 3.0
        bench.engine.tick()
        bench.engine.close(lease)
        bench.engine.tick()
    start, end = caplog.messages
    assert start == "session start slot=0 generation=0 tenant=local"
    assert end.startswith("session end slot=0 generation=0 cause=closed duration_s=3.00 frames=1 stepped=1 dropped=0")


# --- lag and bounds ---------------------------------------------------------------------------------------------------


def test_overflow_is_reported_before_the_step_that_follows() -> None:
    bench = Bench(limits=Limits(inbox_frames=4))
    lease = bench.open()
    for number in range(6):
        bench.push(lease, 1.0, number)
    bench.engine.tick()
    assert bench.listener.drops(lease) == [(2, DropCause.OVERFLOW)]
    assert bench.listener.steps(lease)[0].number == 2
    assert bench.observer.drops == [(lease, 2, DropCause.OVERFLOW)]
    assert bench.engine.stats().dropped_frames == {"overflow": 2}


def test_lag_above_a_second_is_cut_to_two_frames_and_told() -> None:
    bench = Bench()
    lease = bench.open()
    for number in range(13):
        bench.push(lease, 1.0, number)
    bench.engine.tick()
    assert bench.listener.drops(lease) == [(11, DropCause.LAG)]
    assert [step.number for step in bench.listener.steps(lease)] == [11]
    assert bench.engine.stats().pending_frames == 1


def test_lag_below_a_second_is_caught_up_without_a_drop() -> None:
    bench = Bench()
    lease = bench.open()
    for number in range(12):
        bench.push(lease, 1.0, number)
    while bench.engine.tick():
        pass
    assert [step.number for step in bench.listener.steps(lease)] == list(range(12))
    assert bench.listener.drops(lease) == []


def test_gap_between_frames_counts_as_an_underrun() -> None:
    bench = Bench()
    lease = bench.open()
    for gap_s in (0.0, 0.08, 0.3, 0.08):
        bench.clock.now_s += gap_s
        bench.push(lease, 1.0)
        bench.engine.tick()
    assert bench.engine.stats().underruns == 1


# --- draining and shutting --------------------------------------------------------------------------------------------


def test_draining_engine_takes_nobody_and_finishes_whom_it_has() -> None:
    bench = Bench()
    live, leased = bench.open(), bench.acquire()
    bench.engine.drain()
    with pytest.raises(EngineDraining):
        bench.acquire()
    bench.engine.open(leased, bench.listener)
    bench.push(live, 1.0)
    assert bench.engine.tick() == 1
    assert not bench.engine.drained
    bench.engine.close(live)
    bench.engine.close(leased)
    bench.engine.tick()
    assert bench.engine.drained


def test_engine_that_drains_without_sessions_is_drained_at_once() -> None:
    bench = Bench()
    assert not bench.engine.drained
    bench.engine.drain()
    assert bench.engine.drained


def test_shut_engine_ends_everybody_with_the_reason() -> None:
    bench = Bench()
    live, unopened, opening = bench.open(), bench.acquire(), bench.acquire()
    bench.engine.open(opening, bench.listener)
    bench.engine.shut(EngineLost(), healthy=False)
    for lease in (live, opening):
        assert [type(end.error) for end in bench.listener.ends(lease)] == [EngineLost]
    assert bench.listener.ends(unopened) == []
    assert bench.engine.stats().free == 4
    assert not bench.engine.healthy
    with pytest.raises(EngineLost):
        bench.acquire()


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_stats_and_observer_see_stages_waits_and_overruns() -> None:
    bench = Bench()
    lease = bench.open()

    def take_long(batch: TickBatch) -> None:
        bench.clock.now_s += 0.1

    bench.runner.before_run = take_long
    bench.push(lease, 1.0)
    bench.clock.now_s += 0.02
    bench.engine.tick()
    (tick,) = bench.observer.ticks
    assert tick.rows == 1
    assert tick.started_s == pytest.approx(bench.clock.now_s - 0.1)
    assert tick.overrun
    assert dict(tick.stage_ms) == pytest.approx({"lm": 1.0, "tick": 100.0, "wait": 20.0})
    stats = bench.engine.stats()
    assert (stats.ticks, stats.steps, stats.overruns, stats.live, stats.rows_per_tick) == (1, 1, 1, 1, 1.0)
    assert stats.stage_ms["tick"].p99_ms == pytest.approx(100.0)


def test_observer_that_raises_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    lease = bench.open()

    def explode(report: object) -> None:
        raise RuntimeError("metrics are down")

    monkeypatch.setattr(bench.observer, "tick_finished", explode)
    bench.push(lease, 1.0)
    assert bench.engine.tick() == 1
    assert bench.listener.sums(lease) == [1.0]
