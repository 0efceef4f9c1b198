"""Seconds of conversation, by session and day: what a day's quota is measured with and what the ledger keeps.

Engines report how much a session has spoken so far, not what was added, so that a report that comes twice, or to a
successor of this process, is counted once.
"""

import collections
import dataclasses
import datetime
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from serve_app.units import SessionId

DAY_S: Final = 86_400
EPOCH: Final = datetime.date(1970, 1, 1)
KEPT_DAYS: Final = 4
"""Days whose totals are kept: after a clock that jumped has come back, the day that it left still counts."""

Day = str
"""A date in UTC as ISO 8601 writes it."""
Usage = Sequence[tuple[Day, str, int, float]]
"""Day, tenant, sessions, seconds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Charge:
    """What one session has spoken on one day so far. Writing it twice, or an older one after it, changes nothing."""

    session: SessionId
    tenant: str
    day: Day
    seconds: float


@dataclasses.dataclass(slots=True)
class _Meter:
    """One session's part of the book."""

    tenant: str
    audio_s: float = 0.0
    by_day: dict[Day, float] = dataclasses.field(default_factory=dict)


class DayBook:
    """Who spoke how long. Not thread-safe.

    Args:
        wall: Unix seconds. A jump moves to another day and back; within a day it changes nothing.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._today = 0, EPOCH.isoformat()  # kept, because every session asks every second
        self._totals: collections.OrderedDict[Day, dict[str, float]] = collections.OrderedDict()
        self._meters: dict[SessionId, _Meter] = {}
        self._unwritten: dict[tuple[SessionId, Day], Charge] = {}
        self.heard_s: dict[str, float] = {}
        """Tenant to what was noted since this book was opened; only grows, whatever the clock does."""

    @property
    def today(self) -> Day:
        number = int(self._wall() // DAY_S)
        if number != self._today[0]:
            self._today = number, (EPOCH + datetime.timedelta(number)).isoformat()
        return self._today[1]

    @property
    def to_midnight_s(self) -> float:
        """Until the next day begins."""
        return DAY_S - self._wall() % DAY_S

    def spent_s(self, tenant: str) -> float:
        """What a tenant spoke today."""
        totals = self._totals.get(self.today)
        return totals.get(tenant, 0.0) if totals else 0.0

    def restore(self, day: Day, totals: Mapping[str, float]) -> None:
        """Begin a day with what the ledger has of it."""
        self._of(day).update(totals)

    def adopt(self, session: SessionId, tenant: str, by_day: Mapping[Day, float]) -> None:
        """Go on with a session that the ledger knows: what it spoke up to there is in the totals already."""
        self._meters[session] = _Meter(tenant, sum(by_day.values()), dict(by_day))

    def note(self, session: SessionId, tenant: str, audio_s: float) -> None:
        """Hear that a session has spoken so long in all. Less than before, or no number, is ignored."""
        meter = self._meters.get(session)
        if meter is None:
            meter = self._meters[session] = _Meter(tenant)
        added_s = audio_s - meter.audio_s
        if not 0 < added_s < math.inf:
            return
        day = self.today
        meter.audio_s = audio_s
        meter.by_day[day] = meter.by_day.get(day, 0.0) + added_s
        totals = self._of(day)
        totals[meter.tenant] = totals.get(meter.tenant, 0.0) + added_s
        self.heard_s[meter.tenant] = self.heard_s.get(meter.tenant, 0.0) + added_s
        self._unwritten[session, day] = Charge(session, meter.tenant, day, meter.by_day[day])

    def forget(self, session: SessionId) -> None:
        """A session has ended; what is unwritten of it stays to be taken."""
        self._meters.pop(session, None)

    def take_charges(self) -> list[Charge]:
        """What changed since the last call, for the ledger. Give back with `untake` what could not be written."""
        charges = list(self._unwritten.values())
        self._unwritten.clear()
        return charges

    def untake(self, charges: Iterable[Charge]) -> None:
        """Keep charges for the next `take_charges`; newer ones stay."""
        for charge in charges:
            self._unwritten.setdefault((charge.session, charge.day), charge)

    def _of(self, day: Day) -> dict[str, float]:
        if day not in self._totals:
            self._totals[day] = {}
            while len(self._totals) > KEPT_DAYS:
                self._totals.popitem(last=False)
        self._totals.move_to_end(day)
        return self._totals[day]
