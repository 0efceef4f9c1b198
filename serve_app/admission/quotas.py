"""What a tenant may start now: sessions at a time, starts a minute, seconds a day.

Rates run on a monotonic clock and days on the wall clock, so that a wall clock that jumps grants no burst.
"""

from collections.abc import Callable
from typing import Final

from serve_app.admission.day_book import DayBook
from serve_app.admission.tenants import Tenant
from serve_app.errors import DaySpent, TooManySessions, TooManyStarts

MINUTE_S: Final = 60.0
SESSIONS_RETRY_S: Final = 5.0
"""Nobody knows when a tenant hangs up: what `Retry-After` says then."""


class TokenBucket:
    """So many a minute, so many at once at most; full at first.

    Args:
        per_minute: the rate, and the size if it is above one: less than one a minute still means one at once.
        now_s: monotonic seconds.
    """

    __slots__ = ("_level", "_per_s", "_stamp_s", "size")

    def __init__(self, per_minute: float, now_s: float) -> None:
        self.size = max(per_minute, 1.0)
        self._per_s = per_minute / MINUTE_S
        self._level = self.size
        self._stamp_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long until a token is there; 0 when one is."""
        if now_s > self._stamp_s:
            self._level = min(self.size, self._level + (now_s - self._stamp_s) * self._per_s)
            self._stamp_s = now_s
        missing = 1.0 - self._level
        return missing / self._per_s if missing > 1e-9 else 0.0

    def take(self) -> None:
        """Use the token that `wait_s` found."""
        self._level -= 1.0


class Quotas:
    """Says no with a reason and a time. Not thread-safe.

    Args:
        book: how much each tenant spoke today.
        clock: monotonic seconds.
    """

    def __init__(self, book: DayBook, clock: Callable[[], float]) -> None:
        self._book = book
        self._clock = clock
        self._buckets: dict[str, tuple[float, TokenBucket]] = {}

    def require(self, tenant: Tenant, sessions: int) -> None:
        """Let one more session of a tenant pass that has so many. Takes nothing: `started` does.

        Raises:
            TooManySessions, TooManyStarts, DaySpent: with the seconds after which to come again.
        """
        if sessions >= tenant.concurrent_sessions:
            raise TooManySessions(tenant.concurrent_sessions, SESSIONS_RETRY_S)
        if self.left_s(tenant) <= 0:
            raise DaySpent(tenant.audio_s_per_day, self._book.to_midnight_s)
        wait_s = self._bucket(tenant).wait_s(self._clock())
        if wait_s > 0:
            raise TooManyStarts(tenant.sessions_per_minute, wait_s)

    def started(self, tenant: Tenant) -> None:
        """A session that `require` let pass was granted or queued. One that found no room costs nothing."""
        self._bucket(tenant).take()

    def left_s(self, tenant: Tenant) -> float:
        """Seconds of today's quota that are left; below 0 when sessions that ran on have overdrawn it."""
        return tenant.audio_s_per_day - self._book.spent_s(tenant.name)

    def keep(self, names: set[str]) -> None:
        """Forget tenants that are gone. A rate that changed starts with a full minute."""
        self._buckets = {name: kept for name, kept in self._buckets.items() if name in names}

    def _bucket(self, tenant: Tenant) -> TokenBucket:
        rate, bucket = self._buckets.get(tenant.name, (0.0, None))
        if bucket is None or rate != tenant.sessions_per_minute:
            bucket = TokenBucket(tenant.sessions_per_minute, self._clock())
            self._buckets[tenant.name] = tenant.sessions_per_minute, bucket
        return bucket
