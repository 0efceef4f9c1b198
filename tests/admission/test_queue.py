"""The queue is bounded, first come within a tenant, and between tenants fair in rows held for the weight."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.queue import FairQueue, Waiter
from serve_app.units import SessionId


class Line:
    """A queue whose waiters come one second apart and are let in one second apart."""

    def __init__(self, limit: int = 100, patience_s: float = 900.0) -> None:
        self.queue = FairQueue(limit, patience_s)
        self.now_s = 0.0
        self.number = 0

    def join(self, tenant: str, weight: float = 1.0, rows: int = 1, arrived_s: float | None = None) -> Waiter | None:
        self.now_s += 1.0
        self.number += 1
        at_s = self.now_s if arrived_s is None else arrived_s
        return self.queue.join(Waiter(SessionId(str(self.number)), tenant, weight, rows, at_s))

    def let_in(self) -> Waiter:
        self.now_s += 1.0
        waiter = self.queue.head()
        assert waiter is not None
        self.queue.leave(waiter)
        self.queue.held(waiter.tenant, waiter.rows, self.now_s)
        return waiter

    def all_in(self) -> list[Waiter]:
        return [self.let_in() for _ in range(len(self.queue))]


def test_one_tenants_callers_are_let_in_as_they_came() -> None:
    line = Line()
    for _ in range(5):
        line.join("a")
    assert [waiter.session for waiter in line.all_in()] == ["1", "2", "3", "4", "5"]


def test_who_holds_less_goes_first_whoever_came_first() -> None:
    line = Line()
    line.queue.held("a", 3)
    line.queue.held("b", 1)
    for _ in range(4):
        line.join("a")
    for _ in range(4):
        line.join("b")
    assert "".join(waiter.tenant for waiter in line.all_in()) == "bbababaa"


def test_rows_that_come_back_count_at_once() -> None:
    line = Line()
    line.queue.held("a", 2)
    line.queue.held("b", 1)
    line.join("a")
    line.join("b")
    line.queue.held("a", -2)
    assert line.let_in().tenant == "a"


def test_rows_are_shared_by_weight() -> None:
    line = Line(patience_s=float("inf"))
    for _ in range(40):
        line.join("light", 1.0)
        line.join("heavy", 3.0)
    assert Counter(line.let_in().tenant for _ in range(40)) == {"heavy": 30, "light": 10}


def test_a_share_of_less_than_a_row_is_served_in_the_end() -> None:
    line = Line(limit=10_000, patience_s=900.0)
    for _ in range(2_000):
        line.join("heavy", 1_000.0)
    line.join("light", 1.0)
    line.queue.held("heavy", 4, line.now_s)
    turns = 0
    while line.let_in().tenant != "light":
        line.queue.held("heavy", -1)
        turns += 1
    assert 100 < turns < 900


def test_two_rows_weigh_as_two() -> None:
    line = Line()
    for _ in range(3):
        line.join("guided", rows=2)
    for _ in range(6):
        line.join("plain")
    tenants = [line.let_in().tenant for _ in range(6)]
    assert Counter(tenants) == {"plain": 4, "guided": 2}


def test_a_full_queue_refuses_the_newcomer_of_the_greediest() -> None:
    line = Line(limit=3)
    for _ in range(3):
        assert line.join("a") is None
    newcomer = line.join("a")
    assert newcomer is not None
    assert newcomer.session == "4"
    assert len(line.queue) == 3


def test_a_full_queue_makes_room_for_a_tenant_with_less_of_it() -> None:
    line = Line(limit=3)
    for _ in range(3):
        line.join("a")
    pushed = line.join("b")
    assert pushed is not None
    assert (pushed.tenant, pushed.session) == ("a", "3")
    assert len(line.queue) == 3
    assert line.join("b") is not None, "a has two, b would have two: no reason to push"


def test_a_place_in_the_queue_goes_by_weight_too() -> None:
    line = Line(limit=4)
    for _ in range(4):
        line.join("heavy", weight=4.0)
    newcomer = line.join("light", weight=1.0)
    assert newcomer is not None
    assert newcomer.tenant == "light"


def test_a_queue_of_nobody_refuses_everybody() -> None:
    assert Line(limit=0).join("a") is not None


def test_who_waited_under_a_predecessor_stands_where_it_was() -> None:
    line = Line()
    line.now_s = 100.0
    line.join("a")
    line.join("a", arrived_s=10.0)
    line.join("a", arrived_s=50.0)
    assert [waiter.session for waiter in line.all_in()] == ["2", "3", "1"]


@given(
    held=st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)),
    arrivals=st.text("abc", min_size=1, max_size=20),
)
def test_with_one_row_each_a_place_is_when_one_is_let_in(held: dict[str, int], arrivals: str) -> None:
    line = Line(patience_s=float("inf"))
    for tenant, rows in held.items():
        line.queue.held(tenant, rows)
    waiters = []
    for tenant in arrivals:
        line.join(tenant)
        waiters.append(next(reversed(line.queue._lines[tenant].waiters.values())))
    places = {waiter.session: line.queue.place(waiter) for waiter in waiters}
    order = [waiter.session for waiter in line.all_in()]
    for session, place in places.items():
        # Ties between tenants go by arrival, which the place of one far behind does not look at.
        assert abs(place - (order.index(session) + 1)) <= len(set(arrivals)) - 1
    assert places[order[0]] == 1


@given(st.data())
def test_any_order_of_joining_and_leaving_keeps_the_count(data: st.DataObject) -> None:
    line = Line(limit=6)
    inside: list[Waiter] = []
    for _ in range(data.draw(st.integers(0, 40))):
        leaving = data.draw(st.booleans())
        if inside and leaving:
            waiter = inside.pop(data.draw(st.integers(0, len(inside) - 1)))
            line.queue.leave(waiter)
        else:
            tenant = data.draw(st.sampled_from("abc"))
            pushed = line.join(tenant)
            if pushed is None or pushed.session != str(line.number):
                inside.append(next(reversed(line.queue._lines[tenant].waiters.values())))
            if pushed in inside:
                inside.remove(pushed)
        assert len(line.queue) == len(inside) <= 6
        assert (line.queue.head() is None) == (not inside)
    for waiter in inside:
        line.queue.leave(waiter)
    assert line.queue.head() is None
    assert not line.queue._lines


def test_a_heap_of_stale_entries_is_swept() -> None:
    line = Line()
    line.join("a")
    for _ in range(10_000):
        line.queue.held("a", 1)
    assert len(line.queue._heap) < 100


def test_giving_back_more_than_was_held_is_our_fault() -> None:
    with pytest.raises(AssertionError):
        Line().queue.held("a", -1)
