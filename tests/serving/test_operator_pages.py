"""The operator's page over made-up engines: who may see it, and what is on it."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from serve_app.engine.observer import TickReport
from serve_app.errors import EngineLost
from serve_app.serving.operator_pages import SHOWN_TICKS, OperatorPages
from serve_app.serving.tick_trace import KEPT_TICKS, EngineTicks, TickTrace
from tests.link.fakes import on_loop

KEY = "operator-0123456789"


def tick(number: int) -> TickReport:
    return TickReport(float(number), number, {"tick": 10.0 + number, "wait": 1.0}, overrun=number % 2 == 1)


def request(presented: str | None = KEY, **query: str) -> Request:
    headers = [] if presented is None else [(b"authorization", f"Bearer {presented}".encode())]
    return Request({"type": "http", "headers": headers, "query_string": urlencode(query).encode()})


async def asked(question: Request, ticks: int = 3) -> Response:
    async def ask() -> Sequence[EngineTicks]:
        return [EngineTicks("one", 99.0, tuple(tick(number) for number in range(ticks)))]

    return await OperatorPages(KEY, ask).ticks(question)


def body(response: Response) -> Any:
    return json.loads(bytes(response.body))


@on_loop
async def test_the_operator_sees_the_ticks_of_every_engine() -> None:
    response = await asked(request(), ticks=2)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert body(response) == {
        "engines": [
            {
                "engine": "one",
                "now_s": 99.0,
                "ticks": [
                    {"started_s": 0.0, "rows": 0, "overrun": False, "stage_ms": {"tick": 10.0, "wait": 1.0}},
                    {"started_s": 1.0, "rows": 1, "overrun": True, "stage_ms": {"tick": 11.0, "wait": 1.0}},
                ],
            }
        ]
    }


@pytest.mark.parametrize("key", [None, "", "operator", KEY + "x", KEY[:-1], KEY.upper(), "ü" * 19], ids=repr)
@on_loop
async def test_any_other_key_is_refused(key: str | None) -> None:
    response = await asked(request(key))
    assert (response.status_code, body(response)["reason"]) == (401, "not_allowed")
    assert KEY not in bytes(response.body).decode()


@pytest.mark.parametrize("name", ["key", "auth_id", "worker_auth_id", "ticket"])
@on_loop
async def test_a_key_in_the_query_opens_nothing(name: str) -> None:
    assert (await asked(request(None, **{name: KEY}))).status_code == 401


@pytest.mark.parametrize(("query", "shown"), [({}, SHOWN_TICKS), ({"last": "1"}, 1), ({"last": str(KEPT_TICKS)}, 200)])
@on_loop
async def test_the_newest_ticks_are_shown(query: dict[str, str], shown: int) -> None:
    ticks = body(await asked(request(**query), ticks=200))["engines"][0]["ticks"]
    assert [each["rows"] for each in ticks] == list(range(200 - shown, 200))


@pytest.mark.parametrize(
    "last", ["0", "-1", str(KEPT_TICKS + 1), "", "x", "1e2", "٣", "9" * 5000], ids=lambda text: text[:5]
)
@on_loop
async def test_a_count_that_is_none_is_a_bad_request(last: str) -> None:
    response = await asked(request(last=last))
    assert (response.status_code, body(response)["reason"]) == (400, "bad_parameter")


@on_loop
async def test_who_may_not_ask_learns_nothing_about_the_question() -> None:
    assert (await asked(request("wrong", last="x"))).status_code == 401


@on_loop
async def test_a_directory_that_is_gone_is_said() -> None:
    async def ask() -> Sequence[EngineTicks]:
        raise EngineLost

    assert (await OperatorPages(KEY, ask).ticks(request())).status_code == 503


@given(size=st.integers(1, 8), added=st.integers(0, 30))
def test_the_trace_holds_the_last_ticks_in_order(size: int, added: int) -> None:
    trace = TickTrace(size)
    for number in range(added):
        trace.add(tick(number))
    assert [report.rows for report in trace.last()] == list(range(max(0, added - size), added))
