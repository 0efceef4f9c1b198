"""What tenants ask over HTTP: a ticket for a key, and what they spoke."""

import csv
import datetime
import io
from collections.abc import Collection
from typing import Final, Protocol

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.requests import Request

from serve_app.accounts.ledger import CSV_FIELDS
from serve_app.admission.day_book import Day, Usage
from serve_app.admission.tickets import Ticket
from serve_app.errors import ChorusError, ParameterRefused
from serve_app.serving.answers import refusal
from serve_app.serving.knock import Knock

FIRST_DAY: Final = "0001-01-01"
LAST_DAY: Final = "9999-12-31"
PRIVATE: Final = {"Cache-Control": "no-store"}


class Desk(Protocol):
    """The admission host, as these pages need it."""

    async def ticket(self, knock: Knock) -> Ticket | ChorusError:
        """Trade a key for a ticket."""
        ...

    async def usage(self, knock: Knock, first: Day, last: Day) -> Usage | ChorusError:
        """What the holder of a key spoke."""
        ...


class TenantPages:
    """Two routes; each wants a tenant's key in a header. A ticket opens neither.

    Args:
        desk: whom to ask.
        homes: origins of the operator's pages.
    """

    def __init__(self, desk: Desk, homes: Collection[str] = ()) -> None:
        self._desk = desk
        self._homes = homes

    async def ticket(self, request: Request) -> Response:
        """``POST /api/ticket``: a ticket for one session, for a page that opens ``/api/chat?ticket=...``."""
        try:
            ticket = await self._desk.ticket(Knock.of(request.headers, {}, self._homes))
        except ChorusError as error:
            return refusal(error)
        if isinstance(ticket, ChorusError):
            return refusal(ticket)
        return JSONResponse({"ticket": ticket.text, "expires_in_s": ticket.life_s}, 201, PRIVATE)

    async def usage(self, request: Request) -> Response:
        """``GET /api/usage?first=DAY&last=DAY&format=json|csv``: the tenant's own rows of the ledger."""
        try:
            first, last = (_day(request, name, default) for name, default in (("first", FIRST_DAY), ("last", LAST_DAY)))
            form = request.query_params.get("format", "json")
            if form not in ("json", "csv"):
                raise ParameterRefused("format", form, "must be json or csv")
            rows = await self._desk.usage(Knock.of(request.headers, {}, self._homes), first, last)
        except ChorusError as error:
            return refusal(error)
        if isinstance(rows, ChorusError):
            return refusal(rows)
        if form == "csv":
            return Response(_csv(rows), headers=PRIVATE, media_type="text/csv")
        days = [{"day": day, "sessions": sessions, "audio_s": round(spoken, 2)} for day, _, sessions, spoken in rows]
        return JSONResponse({"days": days}, headers=PRIVATE)


def _day(request: Request, name: str, default: Day) -> Day:
    text = request.query_params.get(name, default)
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ParameterRefused(name, text, "must be a day such as 2026-11-01") from None


def _csv(rows: Usage) -> str:
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(CSV_FIELDS)
    lines.writerows((day, tenant, sessions, f"{spoken:.2f}") for day, tenant, sessions, spoken in rows)
    return file.getvalue()
