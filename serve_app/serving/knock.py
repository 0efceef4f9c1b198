"""What a visitor presents where there are tenants: a key in a header, or a ticket in the query, never a key there."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Final, Self
from urllib.parse import urlsplit

from serve_app.admission.answers import Answer
from serve_app.config import is_loopback
from serve_app.errors import NotAllowed

TICKET_PARAMETER: Final = "ticket"
BEARER: Final = "bearer"


@dataclasses.dataclass(frozen=True, slots=True)
class Knock:
    """A credential and where the page came from. Prints neither key nor ticket.

    Attributes:
        key: empty where none was presented.
        ticket: None where none was presented, or a key was.
        origin: of the page; None for programs.
        home: the page is the operator's own, and welcome whoever the tenant is.
    """

    key: str = dataclasses.field(repr=False)
    ticket: str | None = dataclasses.field(repr=False)
    origin: str | None
    home: bool = False

    @classmethod
    def of(cls, headers: Mapping[str, str], query: Mapping[str, str], homes: Collection[str] = ()) -> Self:
        """Read a request. Keys in its query are not looked at: URLs get logged.

        Args:
            headers: as Starlette's, which know what came twice; a mapping knows nothing twice.
            query: the same.
            homes: origins of the operator's pages, besides the one that this server serves on loopback.

        Raises:
            NotAllowed: a credential or an origin came twice, or two keys came: whoever stands in front of us may have
                judged the other one.
        """
        key = key_in(headers)
        ticket = once(query, TICKET_PARAMETER)
        origin = once(headers, "origin")
        home = origin is not None and (origin in homes or _is_served_here(origin, headers.get("host", "")))
        return cls(key, None if key else ticket, origin, home)


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """Who knocked, and the authority's first answer."""

    tenant: str
    answer: Answer


def key_in(headers: Mapping[str, str]) -> str:
    """The key in the headers, as Kyutai's clients spell it; empty where there is none. Raises NotAllowed: as `of`."""
    scheme, _, credential = (once(headers, "authorization") or "").partition(" ")
    bearer = credential.strip() if scheme.lower() == BEARER else ""
    own = once(headers, "kyutai-api-key") or ""
    if bearer and own and bearer != own:
        raise NotAllowed("two keys")
    return bearer or own


def once(values: Mapping[str, str], name: str) -> str | None:
    """The value of that name; None where there is none. Raises NotAllowed: there are several."""
    every: Callable[[str], list[str]] | None = getattr(values, "getlist", None)
    if every is not None and len(every(name)) > 1:
        raise NotAllowed("presented more than once")
    return values.get(name)


def _is_served_here(origin: str, host: str) -> bool:
    """Whether a page is this server's own, on loopback. Elsewhere the operator names it: any name may lead here."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name) and origin in (f"http://{host}", f"https://{host}")
