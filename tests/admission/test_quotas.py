"""A tenant starts what its quotas allow, whatever the clocks do."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.day_book import DayBook
from serve_app.admission.quotas import Quotas, TokenBucket
from serve_app.admission.tenants import Tenant
from serve_app.errors import DaySpent, QuotaError, TooManySessions, TooManyStarts
from serve_app.units import SessionId
from tests.admission.clock import Clock

NOON_S = datetime.datetime(2026, 11, 22, 12, tzinfo=datetime.UTC).timestamp()
A, B = SessionId("a"), SessionId("b")


class Desk:
    """Quotas with both clocks in hand."""

    def __init__(self) -> None:
        self.clock, self.wall = Clock(), Clock(NOON_S)
        self.book = DayBook(self.wall)
        self.quotas = Quotas(self.book, self.clock)

    def start(self, tenant: Tenant, sessions: int = 0) -> None:
        self.quotas.require(tenant, sessions)
        self.quotas.started(tenant)


def test_one_more_session_than_allowed_is_refused_with_a_time() -> None:
    desk, tenant = Desk(), Tenant(name="acme", concurrent_sessions=5)
    desk.start(tenant, 4)
    with pytest.raises(TooManySessions) as caught:
        desk.start(tenant, 5)
    assert caught.value.http_status == 429
    assert caught.value.retry_after_s


def test_a_tenant_with_no_sessions_gets_none() -> None:
    with pytest.raises(TooManySessions):
        Desk().start(Tenant(name="acme", concurrent_sessions=0))


def test_a_minutes_worth_starts_at_once_and_the_next_when_it_says() -> None:
    desk, tenant = Desk(), Tenant(name="acme", sessions_per_minute=30.0)
    for _ in range(30):
        desk.start(tenant)
    with pytest.raises(TooManyStarts) as caught:
        desk.start(tenant)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    desk.clock.now_s += 2.0
    desk.start(tenant)
    with pytest.raises(TooManyStarts):
        desk.start(tenant)


def test_less_than_one_a_minute_still_lets_the_first_in() -> None:
    desk, tenant = Desk(), Tenant(name="acme", sessions_per_minute=0.5)
    desk.start(tenant)
    with pytest.raises(TooManyStarts) as caught:
        desk.start(tenant)
    assert caught.value.retry_after_s == pytest.approx(120.0)


def test_a_start_that_found_no_room_costs_nothing() -> None:
    desk, tenant = Desk(), Tenant(name="acme", sessions_per_minute=1.0)
    for _ in range(10):
        desk.quotas.require(tenant, 0)
    desk.start(tenant)
    with pytest.raises(TooManyStarts):
        desk.start(tenant)


def test_a_wall_clock_that_jumps_grants_no_burst() -> None:
    desk, tenant = Desk(), Tenant(name="acme", sessions_per_minute=2.0)
    desk.start(tenant)
    desk.start(tenant)
    for jump_s in (1e9, -1e9):
        desk.wall.now_s += jump_s
        with pytest.raises(TooManyStarts):
            desk.start(tenant)


def test_a_spent_day_is_refused_until_midnight_utc() -> None:
    desk, tenant = Desk(), Tenant(name="acme", audio_s_per_day=100.0)
    desk.book.note(A, "acme", 100.0)
    with pytest.raises(DaySpent) as caught:
        desk.start(tenant)
    assert caught.value.retry_after_s == 12 * 3600
    desk.wall.now_s += 12 * 3600
    desk.start(tenant)


def test_a_clock_that_jumps_a_day_ahead_and_back_forgives_nothing() -> None:
    desk, tenant = Desk(), Tenant(name="acme", audio_s_per_day=100.0)
    desk.book.note(A, "acme", 100.0)
    desk.wall.now_s += 86_400
    desk.start(tenant)
    desk.book.note(A, "acme", 130.0)
    desk.wall.now_s -= 86_400
    with pytest.raises(DaySpent):
        desk.start(tenant)
    assert desk.book.spent_s("acme") == 100.0


def test_a_changed_rate_takes_effect_and_the_old_bucket_is_forgotten() -> None:
    desk = Desk()
    desk.start(Tenant(name="acme", sessions_per_minute=1.0))
    doubled = Tenant(name="acme", sessions_per_minute=2.0)
    desk.start(doubled)
    desk.start(doubled)
    with pytest.raises(TooManyStarts) as caught:
        desk.start(doubled)
    assert caught.value.retry_after_s == pytest.approx(30.0)
    desk.quotas.keep(set())
    desk.start(doubled)


@given(
    per_minute=st.floats(0.1, 1e4),
    steps=st.lists(st.floats(-100, 100, allow_nan=False), min_size=1, max_size=60),
)
def test_no_clock_lets_more_through_than_size_and_rate(per_minute: float, steps: list[float]) -> None:
    bucket, now_s, latest_s, taken = TokenBucket(per_minute, 0.0), 0.0, 0.0, 0
    for step_s in steps:
        now_s += step_s
        latest_s = max(latest_s, now_s)
        if bucket.wait_s(now_s) == 0:
            bucket.take()
            taken += 1
        assert taken <= bucket.size + latest_s * per_minute / 60 + 1e-6


@given(per_minute=st.floats(0.1, 1e4), starts=st.integers(1, 50), passed_s=st.floats(0, 100))
def test_who_waits_as_told_gets_in(per_minute: float, starts: int, passed_s: float) -> None:
    desk, tenant = Desk(), Tenant(name="acme", sessions_per_minute=per_minute)
    desk.clock.now_s += passed_s
    for _ in range(starts):
        try:
            desk.start(tenant)
        except QuotaError as error:
            desk.clock.now_s += (error.retry_after_s or 0.0) * (1 + 1e-9) + 1e-6
            desk.start(tenant)


class TestDayBook:
    def setup_method(self) -> None:
        self.wall = Clock(NOON_S)
        self.book = DayBook(self.wall)

    def charges(self) -> dict[tuple[str, str], float]:
        return {(charge.session, charge.day): charge.seconds for charge in self.book.take_charges()}

    def test_a_report_that_comes_twice_counts_once(self) -> None:
        for _ in range(2):
            self.book.note(A, "acme", 5.0)
        assert self.book.spent_s("acme") == 5.0

    @pytest.mark.parametrize("audio_s", [-1.0, float("nan"), float("inf"), 4.0])
    def test_what_makes_no_sense_is_ignored(self, audio_s: float) -> None:
        self.book.note(A, "acme", 5.0)
        self.book.note(A, "acme", audio_s)
        assert self.book.spent_s("acme") == 5.0

    def test_a_session_over_midnight_belongs_to_both_days(self) -> None:
        self.book.note(A, "acme", 10.0)
        self.wall.now_s += 86_400
        self.book.note(A, "acme", 25.0)
        assert self.book.spent_s("acme") == 15.0
        assert self.charges() == {("a", "2026-11-22"): 10.0, ("a", "2026-11-23"): 15.0}

    def test_what_a_session_spoke_before_and_after_a_jump_adds_up(self) -> None:
        self.book.note(A, "acme", 10.0)
        self.wall.now_s += 86_400
        self.book.note(A, "acme", 11.0)
        self.wall.now_s -= 86_400
        self.book.note(A, "acme", 14.0)
        assert self.charges() == {("a", "2026-11-22"): 13.0, ("a", "2026-11-23"): 1.0}

    def test_charges_that_were_not_written_come_again_unless_newer_ones_are_there(self) -> None:
        self.book.note(A, "acme", 1.0)
        self.book.note(B, "acme", 2.0)
        taken = self.book.take_charges()
        self.book.note(A, "acme", 3.0)
        self.book.untake(taken)
        assert self.charges() == {("a", "2026-11-22"): 3.0, ("b", "2026-11-22"): 2.0}
        assert self.charges() == {}

    def test_a_successor_counts_what_its_predecessor_did_not_write(self) -> None:
        self.book.restore("2026-11-22", {"acme": 70.0})
        self.book.adopt(A, "acme", {"2026-11-21": 30.0, "2026-11-22": 20.0})
        self.book.note(A, "acme", 58.0)
        assert self.book.spent_s("acme") == 78.0
        assert self.charges() == {("a", "2026-11-22"): 28.0}

    def test_a_thousand_days_take_no_more_room_than_four(self) -> None:
        for _ in range(1_000):
            self.wall.now_s += 86_400
            self.book.restore(self.book.today, {"acme": 1.0})
        assert len(self.book._totals) == 4
