"""Tickets: what a browser presents in a URL instead of a key. They live for seconds and open one session.

A table of hashes rather than signed tickets: single use needs a table anyway, and without a signing key there is none
to keep. A successor of the process that holds the table knows none of its tickets; the page fetches another.
"""

import base64
import collections
import dataclasses
from collections.abc import Callable
from typing import Final

from serve_app.admission.credentials import KEY_BYTES, KeyRecord, Randomness, digest_of
from serve_app.errors import NotAllowed, TooManyTickets

LIFE_S: Final = 30.0
PER_TENANT: Final = 1_000
MAX_TICKET_CHARS: Final = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket on its way to a page."""

    text: str = dataclasses.field(repr=False)
    life_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Holder:
    """Who may use a ticket: the tenant, by which key, from which page (None: any of the tenant's)."""

    tenant: str
    key: str
    origin: str | None
    expires_s: float


class Tickets:
    """Unused tickets. Not thread-safe.

    Args:
        clock: monotonic seconds, so that a wall clock that jumps neither kills nor prolongs them.
        random: as `secrets.token_bytes`.
        life_s: how long a ticket is good for.
        per_tenant: unused ones at a time; bounds the memory.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        random: Randomness,
        *,
        life_s: float = LIFE_S,
        per_tenant: int = PER_TENANT,
    ) -> None:
        self._clock = clock
        self._random = random
        self._life_s = life_s
        self._per_tenant = per_tenant
        self._holders: dict[str, Holder] = {}
        self._by_age: collections.deque[tuple[float, str]] = collections.deque()
        self._unused: collections.Counter[str] = collections.Counter()

    def __len__(self) -> int:
        return len(self._holders)

    def issue(self, record: KeyRecord, origin: str | None = None) -> Ticket:
        """Make a ticket for the holder of a verified key, good for one page's origin where one is named.

        Raises:
            TooManyTickets: of this tenant are unused.
        """
        self._expire()
        if self._unused[record.tenant] >= self._per_tenant:
            raise TooManyTickets(self._per_tenant, self._life_s)
        text = base64.urlsafe_b64encode(self._random(KEY_BYTES)).rstrip(b"=").decode()
        digest, expires_s = digest_of(text), self._clock() + self._life_s
        self._holders[digest] = Holder(record.tenant, record.key, origin, expires_s)
        self._by_age.append((expires_s, digest))
        self._unused[record.tenant] += 1
        return Ticket(text, self._life_s)

    def redeem(self, presented: str, origin: str | None = None) -> Holder:
        """Use a ticket up. Whatever it was presented with, it is gone afterwards.

        Raises:
            NotAllowed: unknown, expired, used, or from another page; does not say which.
        """
        self._expire()
        readable = len(presented) <= MAX_TICKET_CHARS and presented.isascii()
        holder = self._holders.get(digest_of(presented)) if readable else None
        if holder is None:
            raise NotAllowed("missing or wrong ticket")
        self._forget(digest_of(presented))
        if holder.origin is not None and holder.origin != origin:
            raise NotAllowed("missing or wrong ticket")
        return holder

    def _expire(self) -> None:
        now_s = self._clock()
        while self._by_age and self._by_age[0][0] <= now_s:
            _, digest = self._by_age.popleft()
            if digest in self._holders:
                self._forget(digest)

    def _forget(self, digest: str) -> None:
        tenant = self._holders.pop(digest).tenant
        self._unused[tenant] -= 1
        if not self._unused[tenant]:
            del self._unused[tenant]
