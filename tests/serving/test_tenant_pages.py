"""The two pages of tenants, over a made-up host."""

import json
from typing import Any, cast
from urllib.parse import urlencode

import pytest
from fastapi import Response
from starlette.requests import Request

from serve_app.admission.day_book import Day, Usage
from serve_app.admission.tickets import Ticket
from serve_app.errors import ChorusError, EngineLost, LedgerError, NotAllowed, TooManyTickets
from serve_app.serving.knock import Knock
from serve_app.serving.tenant_pages import TenantPages
from tests.link.fakes import on_loop

KEY = "chorus_0123456789ab_" + "s" * 43


class Desk:
    """Says what it was made with."""

    def __init__(self, says: Any) -> None:
        self.says = says
        self.asked: list[Any] = []

    async def ticket(self, knock: Knock) -> Ticket | ChorusError:
        self.asked.append(knock)
        return cast("Ticket | ChorusError", self._answer())

    async def usage(self, knock: Knock, first: Day, last: Day) -> Usage | ChorusError:
        self.asked.append((knock, first, last))
        return cast("Usage | ChorusError", self._answer())

    def _answer(self) -> Any:
        if isinstance(self.says, EngineLost):
            raise self.says
        return self.says


def request(**query: str) -> Request:
    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"origin", b"https://a.example")]
    return Request({"type": "http", "headers": headers, "query_string": urlencode(query).encode()})


def body(response: Response) -> Any:
    return json.loads(bytes(response.body))


@on_loop
async def test_a_ticket_is_given_and_kept_by_nobody_on_the_way() -> None:
    desk = Desk(Ticket("t", 30.0))
    response = await TenantPages(desk).ticket(request(ticket="other"))
    assert (response.status_code, body(response)) == (201, {"ticket": "t", "expires_in_s": 30.0})
    assert response.headers["cache-control"] == "no-store"
    assert desk.asked == [Knock(KEY, None, "https://a.example")]


@pytest.mark.parametrize(
    ("error", "status"), [(NotAllowed("no"), 401), (TooManyTickets(3, 12.3), 429), (EngineLost(), 503)]
)
@on_loop
async def test_a_refusal_has_its_status_and_when_to_come_again(error: ChorusError, status: int) -> None:
    response = await TenantPages(Desk(error)).ticket(request())
    assert (response.status_code, body(response)["reason"]) == (status, error.reason)
    assert response.headers.get("retry-after") == {401: None, 429: "13", 503: "5"}[status]


@on_loop
async def test_usage_is_told_by_day_as_json_and_as_csv() -> None:
    desk = Desk([("2026-11-22", "a", 2, 61.239)])
    told = await TenantPages(desk).usage(request(first="2026-11-01"))
    assert body(told) == {"days": [{"day": "2026-11-22", "sessions": 2, "audio_s": 61.24}]}
    assert desk.asked[0][1:] == ("2026-11-01", "9999-12-31")
    text = await TenantPages(desk).usage(request(format="csv"))
    assert bytes(text.body).decode() == "day,tenant,sessions,audio_s\n2026-11-22,a,2,61.24\n"


@pytest.mark.parametrize("query", [{"first": "yesterday"}, {"last": "2026-13-01"}, {"format": "xml"}])
@on_loop
async def test_what_cannot_be_read_is_refused_before_anybody_is_asked(query: dict[str, str]) -> None:
    desk = Desk([])
    assert (await TenantPages(desk).usage(request(**query))).status_code == 400
    assert desk.asked == []


@on_loop
async def test_a_ledger_in_trouble_shows_no_internals() -> None:
    response = await TenantPages(Desk(LedgerError("OperationalError"))).usage(request())
    assert (response.status_code, body(response)["message"]) == (500, "internal error")
