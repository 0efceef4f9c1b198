import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.account import Account, Report, report
from load_tests.shapes import Churn, Steady
from load_tests.stage import GATE_S, LAST_S, LEAD_S, Crew, Stage
from tests.load_tests.test_account import spoken

STEADY = Steady(sessions=4, seconds=10.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def stage(course: Steady | Churn = STEADY) -> tuple[Stage, Clock, list[float]]:
    clock, begun = Clock(), list[float]()
    return Stage(course, lambda: begun.append(clock.now_s), clock), clock, begun


@given(st.lists(st.builds(spoken, st.integers(1, 12), delay=st.integers(0, 2), lost=st.integers(0, 2)), max_size=6))
def test_accounts_of_many_workers_add_up_as_those_of_one(accounts: list[Account]) -> None:
    merged, _, _ = stage()
    for worker in range(3):
        crew = Crew(STEADY, worker, 3, lambda: 0.0, begin_s=0.0)
        for account in accounts[worker::3]:
            crew.tries()
            crew.gives(account)
        if told := crew.told():
            merged.hear(told)
    assert merged.missing == 0
    alone = [account for worker in range(3) for account in accounts[worker::3]]
    assert rounded(report(merged.accounts, 1.0)) == rounded(report(alone, 1.0))


def rounded(outcome: Report) -> dict[str, object]:
    """Lateness travels in single precision."""
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in outcome.plain().items()}


@given(st.builds(spoken, st.integers(0, 12)), st.floats(-100.0, 100.0))
def test_a_record_keeps_everything_and_moves_its_times(account: Account, origin_s: float) -> None:
    account.tried_s = 5.0
    copy = Account.of_record(account.record(origin_s))
    assert copy.tried_s == 5.0 - origin_s
    assert copy.trips.sent_s == [time_s - origin_s for time_s in account.trips.sent_s]
    assert copy.late_s == pytest.approx(account.late_s)
    same = ("sent", "received", "received_bytes", "underruns", "underrun_s", "open_s", "refusal", "ending", "shifts")
    assert [getattr(copy, name) for name in same] == [getattr(account, name) for name in same]


def test_a_record_leaves_no_field_out() -> None:
    told = set(Account().record())
    assert {field.name for field in dataclasses.fields(Account)} - told == {"trips", "_due_s"}


@given(st.integers(1, 5), st.integers(0, 40))
def test_users_have_numbers_of_their_own_over_all_workers(size: int, users: int) -> None:
    crews = [Crew(STEADY, index, size) for index in range(size)]
    numbers = [crews[user % size].number() for user in range(users)]  # Locust deals them out in turn
    assert sorted(numbers) == list(range(users))


def test_time_starts_for_all_when_everybody_has_opened_or_was_refused() -> None:
    play, _, begun = stage()
    assert play.users() == 4
    play.hear({"tried": 4, "arrived": 3, "accounts": []})
    assert play.users() == 4
    assert not begun
    play.hear({"tried": 0, "arrived": 1, "accounts": [Account(refusal="HTTP 503").record()]})
    play.users()
    play.users()
    assert begun == [1_000.0]


def test_who_never_comes_is_not_waited_for_without_end() -> None:
    play, clock, begun = stage()
    play.users()
    clock.now_s += GATE_S
    play.users()
    assert begun == [clock.now_s]


def begun_stage() -> tuple[Stage, Clock]:
    play, clock, _ = stage()
    play.hear({"tried": 4, "arrived": 4, "accounts": []})
    play.users()
    return play, clock


def test_it_is_over_when_time_is_and_everybody_gave_account() -> None:
    play, clock = begun_stage()
    clock.now_s += STEADY.seconds + LEAD_S + 1.0
    assert play.users() == 4
    play.hear({"tried": 0, "arrived": 0, "accounts": [Account().record()] * 4})
    assert play.users() is None


def test_sessions_of_a_dead_worker_are_missing_and_do_not_hold_up_the_end() -> None:
    play, clock = begun_stage()
    clock.now_s += STEADY.seconds + LEAD_S + LAST_S + 0.1
    assert play.users() is None
    assert play.missing == 4


def test_a_churn_is_over_with_its_last_session() -> None:
    play, _, _ = stage(Churn(sessions=2, connects=3, session_s=2.0))
    assert play.users() == 2
    play.hear({"tried": 3, "arrived": 2, "accounts": [Account().record()] * 3})
    assert play.users() is None


def test_a_crew_counts_from_the_word_that_time_starts() -> None:
    clock = Clock()
    crew = Crew(STEADY, clock=clock)
    assert not crew.over
    assert math.isnan(crew.begin_s)
    crew.begin()
    begin_s = crew.begin_s
    clock.now_s += 1.0
    crew.begin()
    assert crew.begin_s == begin_s == 1_000.0 + LEAD_S
    clock.now_s += STEADY.seconds
    assert crew.over


def test_what_was_told_is_not_told_again() -> None:
    crew = Crew(STEADY)
    crew.tries()
    assert crew.told() == {"tried": 1, "arrived": 0, "accounts": []}
    assert crew.told() is None
