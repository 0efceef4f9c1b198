"""The engine that the policy names, and never more rows than it has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.answers import EngineName
from serve_app.admission.deadlines import DeadlineRules, Deadlines
from serve_app.admission.placement import Placement, Policy


def fleet(policy: Policy, *rows: int) -> Placement:
    placement = Placement(policy)
    for number, count in enumerate(rows):
        placement.put(EngineName(f"e{number}"), count, open_=True)
    return placement


@given(
    policy=st.sampled_from(Policy),
    rows=st.lists(st.integers(1, 8), min_size=1, max_size=6),
    wanted=st.lists(st.integers(1, 3), max_size=40),
)
def test_each_session_goes_where_a_look_at_every_engine_would_send_it(
    policy: Policy, rows: list[int], wanted: list[int]
) -> None:
    placement, free = fleet(policy, *rows), {f"e{number}": count for number, count in enumerate(rows)}
    for count in wanted:
        fitting = [left for left in free.values() if left >= count]
        name = placement.take(count)
        if not fitting:
            assert name is None
            continue
        assert name is not None
        assert free[name] == (min(fitting) if policy is Policy.TIGHTEST else max(fitting))
        free[name] -= count
    assert placement.used == sum(rows) - sum(free.values())


@given(
    policy=st.sampled_from(Policy),
    seats=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), min_size=1, max_size=5),
    moves=st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 63)), max_size=50),
)
def test_no_engine_lends_more_slots_or_rows_than_it_has_and_none_is_idle_while_it_fits(
    policy: Policy, seats: list[tuple[int, int]], moves: list[tuple[bool, int, int]]
) -> None:
    placement = Placement(policy)
    free = {EngineName(f"e{number}"): [rows, slots] for number, (rows, slots) in enumerate(seats)}
    for name, (rows, slots) in free.items():
        placement.put(name, rows, open_=True, slots=slots)
    lent: list[tuple[EngineName, int]] = []
    for take, count, which in moves:
        if take:
            fitting = [rows for rows, slots in free.values() if rows >= count and slots > 0]
            name_ = placement.take(count)
            assert (name_ is None) == (not fitting)
            if name_ is not None:
                assert free[name_][0] == (min(fitting) if policy is Policy.TIGHTEST else max(fitting))
                lent.append((name_, count))
                free[name_] = [free[name_][0] - count, free[name_][1] - 1]
        elif lent:
            name, rows = lent.pop(which % len(lent))
            placement.give(name, rows)
            free[name] = [free[name][0] + rows, free[name][1] + 1]
    assert all(rows >= 0 and slots >= 0 for rows, slots in free.values())
    assert placement.used == sum(rows for _, rows in lent)


def test_a_slot_that_comes_back_opens_its_engine_again_and_fewer_slots_close_it() -> None:
    placement, name = Placement(), EngineName("e")
    placement.put(name, 4, open_=True, slots=1)
    assert placement.take(2) == name
    assert placement.take(1) is None
    placement.put(name, 4, open_=True, slots=2)
    assert placement.take(1) == name
    placement.give(name, 2)
    assert placement.take(3) == name
    placement.put(name, 8, open_=True, slots=2)
    assert placement.take(1) is None


def test_a_closed_engine_gets_nobody_and_keeps_whom_it_has() -> None:
    placement = fleet(Policy.TIGHTEST, 4)
    name = placement.take(1)
    assert name is not None
    placement.put(name, 4, open_=False)
    assert placement.take(1) is None
    assert (placement.used, placement.open_rows, placement.open_engines) == (1, 0, 0)
    placement.put(name, 4, open_=True)
    assert placement.take(3) == name


def test_an_engine_that_holds_more_than_it_has_gets_nobody_until_it_has_room() -> None:
    placement = fleet(Policy.LEAST_LOADED, 2)
    name = EngineName("e0")
    placement.hold(name, 3)
    assert placement.take(1) is None
    placement.give(name, 1)
    assert placement.take(1) is None
    placement.give(name, 1)
    assert placement.take(1) == name


def test_a_removed_engine_takes_its_rows_along() -> None:
    placement = fleet(Policy.TIGHTEST, 2, 4)
    placement.hold(EngineName("e0"), 2)
    placement.remove(EngineName("e0"))
    assert (len(placement), placement.used, placement.open_rows, placement.largest) == (1, 0, 4, 4)


def test_more_rows_than_were_lent_cannot_come_back() -> None:
    with pytest.raises(AssertionError):
        fleet(Policy.TIGHTEST, 2).give(EngineName("e0"), 1)


class TestDeadlines:
    def setup_method(self) -> None:
        self.deadlines = Deadlines(DeadlineRules(close_share=0.05, open_share=0.01, good_reports=3, min_ticks=5))
        self.ticks = self.overruns = 0

    def second(self, overruns: int, ticks: int = 12) -> bool:
        self.ticks += ticks
        self.overruns += overruns
        self.deadlines.report(self.ticks, self.overruns)
        return self.deadlines.kept

    def test_an_engine_that_misses_deadlines_is_closed_until_it_has_kept_them_for_a_while(self) -> None:
        assert self.second(0)
        assert not self.second(3)
        assert [self.second(0) for _ in range(3)] == [False, False, True]

    def test_a_bad_report_begins_the_count_anew(self) -> None:
        self.second(12)
        assert [self.second(0), self.second(0), self.second(2), self.second(0), self.second(0)] == [False] * 5
        assert self.second(0)

    def test_an_empty_engine_recovers(self) -> None:
        self.second(12)
        assert [self.second(0, ticks=0) for _ in range(3)] == [False, False, True]

    def test_one_slow_tick_of_few_is_an_accident(self) -> None:
        assert self.second(1, ticks=3)

    def test_one_slow_tick_in_a_second_of_one_conversation_is_an_accident(self) -> None:
        assert self.second(1, ticks=12)
        assert not self.second(2, ticks=12)

    def test_an_engine_that_is_too_slow_to_tick_often_is_closed_and_stays_closed(self) -> None:
        for ticks in (4, 2, 1):
            assert not self.second(ticks, ticks=ticks)

    def test_a_slow_tick_of_few_keeps_a_closed_engine_closed(self) -> None:
        self.second(12)
        assert [self.second(1, ticks=3) for _ in range(4)] == [False] * 4

    def test_one_slow_tick_in_all_that_time_does_not_keep_it_closed(self) -> None:
        self.second(12)
        assert [self.second(0), self.second(1), self.second(0)] == [False, False, True]

    def test_slow_ticks_that_would_not_have_closed_it_keep_it_closed_while_they_go_on(self) -> None:
        self.second(12)
        assert [self.second(1) for _ in range(6)] == [False] * 6
        assert [self.second(0), self.second(0)] == [False, True]

    def test_counts_of_an_engine_that_began_anew_are_taken_as_they_are(self) -> None:
        self.second(0, ticks=1_000)
        self.ticks = self.overruns = 0
        assert not self.second(6)
