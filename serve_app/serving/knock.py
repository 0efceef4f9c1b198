"""What a visitor presents where there are tenants: a key in a header, or a ticket in the query, never a key there."""

import dataclasses
from collections.abc import Mapping
from typing import Final, Self

TICKET_PARAMETER: Final = "ticket"
BEARER: Final = "bearer"


@dataclasses.dataclass(frozen=True, slots=True)
class Knock:
    """A credential and where the page came from. Prints neither key nor ticket.

    Attributes:
        key: empty where none was presented.
        ticket: None where none was presented, or a key was.
        origin: of the page; None for programs.
    """

    key: str = dataclasses.field(repr=False)
    ticket: str | None = dataclasses.field(repr=False)
    origin: str | None

    @classmethod
    def of(cls, headers: Mapping[str, str], query: Mapping[str, str]) -> Self:
        """Read a request. Keys in its query are not looked at: URLs get logged."""
        key = key_in(headers)
        return cls(key, None if key else query.get(TICKET_PARAMETER), headers.get("origin"))


def key_in(headers: Mapping[str, str]) -> str:
    """The key in the headers, as Kyutai's clients spell it; empty where there is none."""
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() == BEARER and credential:
        return credential.strip()
    return headers.get("kyutai-api-key", "")
