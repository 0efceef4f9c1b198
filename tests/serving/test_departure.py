"""Who is replaced leaves with notice: the word of it, the date, the reminder, the end."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import EngineDraining
from serve_app.serving.departure import NEWS_S, Departure, mind_departure, soonest
from serve_app.serving.retirement import Roll
from serve_app.serving.term import WARNING_S
from tests.link.fakes import on_loop


class Stage:
    """A client that listens and a clock that sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.told: list[tuple[float, Mapping[str, Any]]] = []

    def clock(self) -> float:
        return self.now_s

    async def tell(self, value: Mapping[str, Any]) -> None:
        self.told.append((self.now_s, value))

    async def sleep(self, spent_s: float) -> None:
        self.now_s += spent_s

    async def mind(self, ends_s: Mapping[float, float | None]) -> None:
        """Live where from each moment on something goes at the given one."""

        def left_s() -> float | None:
            ends = next(end for since, end in sorted(ends_s.items(), reverse=True) if self.now_s >= since)
            return None if ends is None else max(0.0, ends - self.now_s)

        await mind_departure(left_s, self.tell, self.clock, self.sleep)

    def promises(self) -> list[tuple[float, int]]:
        return [(at_s, value["going_away"]["s"]) for at_s, value in self.told]


@on_loop
async def test_a_client_is_told_once_and_again_a_minute_before_and_then_it_is_over() -> None:
    stage = Stage()
    with pytest.raises(EngineDraining) as over:
        await stage.mind({0.0: None, 10.0: 610.0})
    assert stage.told[0] == (10.0, {"going_away": {"s": 600, "why": "rollout"}})
    assert stage.promises() == [(10.0, 600), (610.0 - WARNING_S, 60)]
    assert stage.now_s == 610.0
    assert (over.value.close_code, over.value.retry) == (1012, True)


@on_loop
async def test_less_than_a_minute_is_told_once() -> None:
    stage = Stage()
    with pytest.raises(EngineDraining):
        await stage.mind({0.0: 20.0})
    assert stage.promises() == [(0.0, 20)]


@on_loop
async def test_no_time_at_all_is_told_before_the_end() -> None:
    stage = Stage()
    with pytest.raises(EngineDraining):
        await stage.mind({0.0: 0.0})
    assert stage.promises() == [(0.0, 0)]


@on_loop
async def test_an_earlier_end_is_news_and_another_clocks_second_is_none() -> None:
    stage = Stage()
    with pytest.raises(EngineDraining):
        await stage.mind({0.0: 900.0, 100.0: 900.0 - NEWS_S / 2, 200.0: 500.0})
    assert stage.promises() == [(0.0, 900), (200.0, 300), (500.0 - WARNING_S, 60)]


@on_loop
async def test_an_engine_that_stays_after_all_is_forgotten_and_the_next_one_told_anew() -> None:
    stage = Stage()
    with pytest.raises(EngineDraining):
        await stage.mind({0.0: 300.0, 10.0: None, 20.0: 320.0})
    assert stage.promises()[:2] == [(0.0, 300), (20.0, 300)]


@on_loop
async def test_a_departure_has_no_end_before_it_begins_and_begins_once() -> None:
    stage = Stage()
    departure = Departure(30.0, stage.clock)
    waiting = asyncio.create_task(departure.begun())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert (departure.left_s, departure.since_s) == (None, 0.0)
    stage.now_s = 5.0
    departure.begin()
    stage.now_s = 10.0
    departure.begin()
    await waiting
    assert (departure.left_s, departure.since_s) == (25.0, 5.0)
    stage.now_s = 100.0
    assert (departure.left_s, departure.since_s) == (0.0, 95.0)


def test_the_first_end_counts() -> None:
    assert soonest(None, 3.0, 2.0) == 2.0
    assert soonest(None, None) is None


def test_a_replica_that_has_not_stood_on_the_list_yet_is_not_retired() -> None:
    struck: list[bool] = []
    roll = Roll("new", lambda: struck.append(True))
    roll.read({"old"})
    roll.read({"old", "new"})
    assert not struck
    roll.read({"other"})
    roll.read(set())
    assert struck == [True]


@given(st.lists(st.sets(st.sampled_from(["me", "one", "two"]))))
def test_a_replica_is_retired_at_most_once_and_only_after_it_stood_there(lists: list[set[str]]) -> None:
    struck: list[int] = []
    roll = Roll("me", lambda: struck.append(1))
    for names in lists:
        roll.read(names)
    stood = [index for index, names in enumerate(lists) if "me" in names]
    gone = bool(stood) and any("me" not in names for names in lists[stood[0] :])
    assert len(struck) == gone
