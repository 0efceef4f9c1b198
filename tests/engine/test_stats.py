"""Rings of the last ticks."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.stats import Percentiles, Recent, Ring, Tally
from tests.engine.fakes import Bench


@given(st.lists(st.floats(-1e6, 1e6), max_size=30), st.integers(1, 8))
def test_ring_holds_the_last_values(values: list[float], size: int) -> None:
    ring = Ring(size)
    for value in values:
        ring.add(value)
    assert sorted(ring.values().tolist()) == sorted(values[-size:])


def test_stage_percentiles_forget_old_ticks() -> None:
    tally = Tally(ring_ticks=4)
    for spent_ms in (900.0, 1.0, 1.0, 1.0, 1.0):
        tally.tick(2, {"lm": spent_ms}, overrun=False)
    assert tally.recent().percentiles()["lm"].p99_ms == 1.0
    assert (tally.ticks, tally.steps) == (5, 10)


def test_stats_of_an_idle_engine_are_zero() -> None:
    recent = Tally().recent()
    assert recent.percentiles() == {}
    assert recent.rows_per_tick() == 0.0


def test_stage_has_its_mean_beside_its_percentiles() -> None:
    tally = Tally()
    for spent_ms in (1.0, 1.0, 4.0):
        tally.tick(1, {"lm": spent_ms}, overrun=False)
    spent = tally.recent().percentiles()["lm"]
    assert (spent.p50_ms, spent.mean_ms) == (1.0, 2.0)


def test_recent_ticks_are_a_copy() -> None:
    tally = Tally()
    tally.tick(2, {"lm": 1.0}, overrun=False)
    recent = tally.recent()
    tally.tick(4, {"lm": 900.0}, overrun=False)
    assert (recent.percentiles()["lm"].p99_ms, recent.rows_per_tick()) == (1.0, 2.0)


def test_percentiles_are_computed_while_others_may_push(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    lease = bench.open()
    bench.push(lease, 1.0)
    bench.engine.tick()
    compute, pushed = Recent.percentiles, threading.Event()

    def push() -> None:
        bench.push(lease, 1.0)
        pushed.set()

    def with_a_push(recent: Recent) -> dict[str, Percentiles]:
        threading.Thread(target=push, daemon=True).start()
        assert pushed.wait(10)
        return compute(recent)

    monkeypatch.setattr(Recent, "percentiles", with_a_push)
    assert bench.engine.stats().stage_ms["lm"].p50_ms == 1.0
