"""What a load test asks a server over HTTP, beside its conversations: ``/info``, and tickets for keys."""

import dataclasses
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit, urlunsplit

from serve_app.client.address import chat_url
from serve_app.client.failures import RequestRefused, ServerUnreachable, UnexpectedServer

ASK_S: Final = 5.0
POLL_S: Final = 0.25
SCHEMES: Final = {"ws": "http", "wss": "https"}
DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Whatever proxy the environment names: what is measured is the server."""


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """Of all engines together."""

    total: int
    used: int


def slots(url: str, headers: Mapping[str, str]) -> Slots:
    """Ask ``/info``.

    Raises:
        ServerUnreachable, RequestRefused, UnexpectedServer.
    """
    body = asked(url, "/info", headers)
    try:
        return Slots(int(body["slots"]), int(body["slots_used"]))
    except (KeyError, TypeError, ValueError):
        raise UnexpectedServer(url, "/info tells no slots") from None


def ticket(url: str, headers: Mapping[str, str]) -> str:
    """Trade a key for a ticket: good for one session.

    Raises:
        ServerUnreachable, RequestRefused, UnexpectedServer.
    """
    try:
        return str(asked(url, "/api/ticket", headers, "POST")["ticket"])
    except KeyError:
        raise UnexpectedServer(url, "/api/ticket gave none") from None


def with_ticket(url: str, text: str) -> str:
    """The address of a chat that presents a ticket."""
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode({"ticket": text})) if part)
    return urlunsplit(parts._replace(query=query))


def seconds_until_free(
    used: Callable[[], int],
    at_most: int,
    limit_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[float, int]:
    """Ask again and again until no more slots than before are used.

    Returns:
        How long it took, infinite where it did not happen in time, and how many too many there are at the end.
    """
    begin_s = clock()
    while True:
        leaked = max(0, used() - at_most)
        passed_s = clock() - begin_s
        if not leaked:
            return passed_s, 0
        if passed_s >= limit_s:
            return float("inf"), leaked
        sleep(POLL_S)


def asked(url: str, path: str, headers: Mapping[str, str], method: str = "GET") -> dict[str, Any]:
    """A JSON body.

    Raises:
        ServerUnreachable: nobody there, or not in time.
        RequestRefused: any status of 400 and above.
        UnexpectedServer: no JSON object.
    """
    parts = urlsplit(chat_url(url))
    address = urlunsplit((SCHEMES[parts.scheme], parts.netloc, path, "", ""))
    request = urllib.request.Request(address, headers=dict(headers), method=method)
    try:
        with DIRECT.open(request, timeout=ASK_S) as answer:
            body = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise RequestRefused(error.code, path, "see the server's log") from None
    except OSError as error:
        raise ServerUnreachable(address, str(error)) from None
    except ValueError:
        raise UnexpectedServer(address, "no JSON") from None
    if not isinstance(body, dict):
        raise UnexpectedServer(address, "no JSON object")
    return body
