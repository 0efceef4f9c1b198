"""Rings of the last ticks."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.stats import Ring, Tally


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
    assert tally.percentiles()["lm"].p99_ms == 1.0
    assert (tally.ticks, tally.steps) == (5, 10)


def test_stats_of_an_idle_engine_are_zero() -> None:
    tally = Tally()
    assert tally.percentiles() == {}
    assert tally.rows_per_tick() == 0.0
