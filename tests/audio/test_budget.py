import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.budget import AUDIO_BURST_S, AUDIO_RATE, audio_budget
from serve_app.budget import Budget

STEPS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), max_size=60)


def test_budget_starts_full() -> None:
    assert audio_budget().take(AUDIO_BURST_S, 0.0)


def test_all_or_nothing_is_taken() -> None:
    budget = Budget(rate=1.0, burst=2.0)
    assert not budget.take(2.5, 0.0)
    assert budget.available(0.0) == 2.0


@given(STEPS)
def test_no_schedule_takes_more_than_rate_and_burst(steps: list[tuple[float, float]]) -> None:
    budget = audio_budget()
    now_s = taken_s = 0.0
    for pause_s, wanted_s in steps:
        now_s += pause_s
        taken_s += wanted_s if budget.take(wanted_s, now_s) else 0.0
    assert taken_s <= AUDIO_BURST_S + AUDIO_RATE * now_s + 1e-6


def test_real_time_with_a_clock_that_is_fast_never_runs_dry() -> None:
    budget = audio_budget()
    assert all(budget.take(0.08 * 1.2, index * 0.08) for index in range(10_000))


def test_time_that_goes_backwards_adds_nothing() -> None:
    budget = Budget(rate=1.0, burst=5.0)
    budget.take(5.0, 100.0)
    assert budget.available(50.0) == 0.0
    assert budget.available(101.0) == pytest.approx(1.0)
