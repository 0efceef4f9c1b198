"""When the next tick starts."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.limits import Pace
from serve_app.engine.schedule import HOUSEKEEPING_S, Crowd, Schedule, StepTimes, turn

NOBODY = Crowd(live=3, ready=0, behind=False, chores=False)
SOME = Crowd(live=3, ready=1, behind=False, chores=False)
ALL = Crowd(live=3, ready=3, behind=False, chores=False)
BEHIND = Crowd(live=3, ready=1, behind=True, chores=False)
PROMPT = Crowd(live=3, ready=0, behind=False, chores=True)


def learnt(fixed_s: float, per_row_s: float) -> StepTimes:
    times = StepTimes()
    for rows in (1, 5, 2, 9, 4, 7) * 5:
        times.add(rows, fixed_s + per_row_s * rows)
    return times


def schedule_after(pace: Pace, times: StepTimes, started_s: float) -> Schedule:
    schedule = Schedule(pace, times)
    schedule.ticked(1, started_s)
    return schedule


# --- step times -------------------------------------------------------------------------------------------------------


def test_step_times_find_the_line_through_the_ticks() -> None:
    times = learnt(0.007, 0.0004)
    assert times.fixed_s == pytest.approx(0.007)
    assert times.per_row_s == pytest.approx(0.0004)
    assert times.expected_s(10) == pytest.approx(0.011)


def test_ticks_of_one_size_are_all_fixed_part() -> None:
    times = StepTimes()
    for _ in range(20):
        times.add(4, 0.010)
    assert times.fixed_s == pytest.approx(0.010)
    assert times.per_row_s == 0.0


def test_step_times_follow_conversations_that_grow() -> None:
    times = learnt(0.007, 0.0004)
    for _ in range(400):
        for rows in (2, 6, 10):
            times.add(rows, 0.007 + 0.0009 * rows)
    assert times.per_row_s == pytest.approx(0.0009, rel=0.05)


def test_before_the_first_tick_nothing_is_known_and_nothing_is_waited_for() -> None:
    schedule = Schedule(Pace(), StepTimes())
    assert schedule.interval_s == 0.0
    assert schedule.start_s(SOME, 5.0) <= 5.0


@given(st.lists(st.tuples(st.integers(1, 128), st.floats(0, 10)), min_size=1))
def test_whatever_was_measured_no_part_of_a_tick_costs_less_than_nothing(ticks: list[tuple[int, float]]) -> None:
    times = StepTimes()
    for rows, spent_s in ticks:
        times.add(rows, spent_s)
    slowest_s = max(spent_s for _, spent_s in ticks)
    assert times.per_row_s >= 0
    assert -1e-9 <= times.fixed_s <= slowest_s + 1e-9


# --- the schedule -----------------------------------------------------------------------------------------------------


def test_whoever_is_ready_is_taken_at_once_after_a_pause() -> None:
    schedule = schedule_after(Pace(), learnt(0.008, 0.0), 1.0)
    assert schedule.start_s(SOME, 1.5) <= 1.5


def test_ticks_start_apart_by_the_measured_fixed_part_over_its_share() -> None:
    schedule = schedule_after(Pace(fixed_share=0.5), learnt(0.008, 0.0004), 1.0)
    assert schedule.start_s(SOME, 1.010) == pytest.approx(1.016)


def test_measured_interval_has_a_limit() -> None:
    schedule = schedule_after(Pace(fixed_share=0.5, interval_limit_s=0.02), learnt(0.3, 0.0004), 1.0)
    assert schedule.interval_s == 0.02


def test_configured_interval_counts_where_it_is_longer() -> None:
    schedule = schedule_after(Pace(interval_s=0.05), learnt(0.008, 0.0004), 1.0)
    assert schedule.start_s(SOME, 1.010) == pytest.approx(1.05)


def test_nobody_is_waited_for_when_everybody_is_there() -> None:
    schedule = schedule_after(Pace(gather_s=9.0, interval_s=9.0), StepTimes(), 1.0)
    assert schedule.start_s(ALL, 1.001) <= 1.001


def test_two_frames_waiting_earn_a_step_without_delay() -> None:
    schedule = schedule_after(Pace(gather_s=9.0, interval_s=9.0), StepTimes(), 1.0)
    assert schedule.start_s(BEHIND, 1.001) <= 1.001


def test_gathering_begins_with_the_first_frame_after_a_tick() -> None:
    schedule = schedule_after(Pace(gather_s=0.03), StepTimes(), 1.0)
    assert schedule.start_s(SOME, 2.0) == 2.03
    assert schedule.start_s(SOME, 2.01) == 2.03
    schedule.ticked(1, 2.03)
    assert schedule.start_s(SOME, 3.0) == 3.03


def test_prompts_alone_are_not_held_back() -> None:
    schedule = schedule_after(Pace(interval_s=9.0), StepTimes(), 1.0)
    assert schedule.start_s(PROMPT, 1.001) <= 1.001


def test_prompts_do_not_hold_frames_back() -> None:
    schedule = schedule_after(Pace(interval_s=0.05), StepTimes(), 1.0)
    schedule.ticked(0, 1.2)  # a turn that fed a prompt and stepped nobody
    assert schedule.start_s(SOME, 1.201) <= 1.201


def test_idle_engine_looks_around_now_and_then() -> None:
    schedule = Schedule(Pace(), StepTimes())
    assert schedule.start_s(NOBODY, 1.0) <= 1.0
    schedule.ticked(0, 1.0)
    assert schedule.start_s(NOBODY, 1.2) == 1.0 + HOUSEKEEPING_S


@given(st.floats(0, 1), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(0.01, 1), st.integers(1, 64), st.floats(0, 10))
def test_no_frame_is_held_back_longer_than_the_bounds(
    fixed_s: float, gather_s: float, interval_s: float, share: float, live: int, later_s: float
) -> None:
    pace = Pace(gather_s=gather_s, interval_s=interval_s, fixed_share=share)
    schedule = schedule_after(pace, learnt(fixed_s, 0.001), 1.0)
    now_s = 1.0 + later_s
    held_s = schedule.start_s(Crowd(live, 1, behind=False, chores=False), now_s) - now_s
    assert held_s <= max(gather_s, interval_s, pace.interval_limit_s) + 1e-9


@pytest.mark.parametrize("wrong", [{"fixed_share": 0.0}, {"fixed_share": 1.1}, {"interval_limit_s": -1.0}])
def test_pace_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pace(**wrong)


# --- one turn ---------------------------------------------------------------------------------------------------------


class Recorder:
    """An engine whose crowd is what the test says; it keeps what it is asked to do."""

    def __init__(self, crowd: Crowd) -> None:
        self.now_s = 1.0
        self.asked: list[tuple[str, float]] = []
        self._crowd = crowd

    def clock(self) -> float:
        return self.now_s

    def crowd(self) -> Crowd:
        return self._crowd

    def wait_for_work(self, timeout_s: float) -> bool:
        self.asked.append(("work", timeout_s))
        return False

    def wait_for_others(self, timeout_s: float) -> None:
        self.asked.append(("others", timeout_s))

    def tick(self) -> int:
        self.asked.append(("tick", math.nan))
        return self._crowd.ready


@pytest.mark.parametrize(("crowd", "asked"), [(NOBODY, "work"), (SOME, "others"), (ALL, "tick"), (PROMPT, "tick")])
def test_turn_ticks_or_waits_for_what_is_missing(crowd: Crowd, asked: str) -> None:
    engine = Recorder(crowd)
    turn(engine, schedule_after(Pace(interval_s=0.05), StepTimes(), 0.98))
    assert [name for name, _ in engine.asked] == [asked]
