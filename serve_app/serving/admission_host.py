"""The one authority of a cluster with its gate, its files and its ledger. Knows nothing of Ray.

It hears engines through the directory, once a second, so that engines know of no tenants. Refusals are answers and no
exceptions: they cross processes, and Ray logs a trace for what is raised.
"""

import asyncio
import dataclasses
import datetime
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from serve_app.admission.answers import AdmissionRequest, Answer, Granted, Refused, Wait, refuses
from serve_app.admission.authority import Authority
from serve_app.admission.credentials import KeyRing, Randomness
from serve_app.admission.day_book import DAY_S, Day, Usage
from serve_app.admission.gate import Gate
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.tickets import Ticket
from serve_app.admission.views import EngineView, PoolStatus
from serve_app.errors import ChorusError, DaySpent, EngineLost, LedgerError, ModelUnknown
from serve_app.serving.books import Books
from serve_app.serving.knock import Knock, Opened
from serve_app.units import SessionId

SETTLE_S: Final = 7.0
"""A successor's patience: a grant of its predecessor lives 5 s, a report and the question for it take a second each."""
SETTLING: Final = 1_000
"""Callers that may wait for a successor to settle, where there is no queue: none is refused for rows that are free."""
UNBOUNDED: Final = 1_000_000
EVERYONE: Final = Tenant(
    name="everyone",
    concurrent_sessions=UNBOUNDED,
    sessions_per_minute=float(UNBOUNDED),
    audio_s_per_day=math.inf,
    longest_s=math.inf,
)
"""Who asks where there are no tenants."""

logger = logging.getLogger(__name__)


class Engines(Protocol):
    """How the host hears of engines."""

    async def views(self) -> list[EngineView]:
        """Those that live, with their sessions."""
        ...

    async def succeed(self) -> bool:
        """Whether there was an authority before."""
        ...


class AdmissionHost:
    """Serialises every question to the authority. Belongs to one event loop.

    Args:
        engines: the directory.
        books: tenants, keys and ledger; None lets everybody in as one tenant without quotas.
        queue: callers that may wait.
        clock: monotonic seconds.
        wall: Unix seconds.
        random: as `secrets.token_bytes`.
    """

    def __init__(
        self,
        engines: Engines,
        books: Books | None,
        *,
        queue: int,
        clock: Callable[[], float],
        wall: Callable[[], float],
        random: Randomness,
    ) -> None:
        self._engines = engines
        self._books = books
        self._queue = queue
        self._clock = clock
        self._wall = wall
        self._tenants = books.tenants if books is not None else Tenants([EVERYONE])
        self._gate = Gate(self._tenants, books.ring if books is not None else KeyRing([], wall), clock, random)
        self._authority: Authority | None = None
        self._waking: dict[SessionId, asyncio.Event] = {}
        self._spent: dict[SessionId, ChorusError] = {}

    async def begin(self) -> None:
        """Start to answer: hear whether there was somebody before, what the ledger has, and which engines there are."""
        settle_s = SETTLE_S if await self._engines.succeed() else 0.0
        authority = Authority(
            self._tenants,
            rules=Rules(queue_limit=self._queue, settling_limit=SETTLING, settle_s=settle_s),
            clock=self._clock,
            wall=self._wall,
            charged=self._charged,
            granted=self._wake,
        )
        if self._books is not None:
            today = datetime.datetime.fromtimestamp(self._wall(), datetime.UTC).date().isoformat()
            authority.restore(today, await asyncio.to_thread(self._books.ledger.day_totals, today))
        await self._hear(authority)
        self._authority = authority  # not before: one that has heard of no engine would refuse every model

    # --- gateways -----------------------------------------------------------------------------------------------------

    def identify(self, knock: Knock) -> Tenant | ChorusError:
        """Whose key or ticket it is; a ticket is used up."""
        try:
            if knock.ticket is not None:
                return self._gate.by_ticket(knock.ticket, knock.origin, home=knock.home)
            return self._gate.by_key(knock.key, knock.origin, home=knock.home)
        except ChorusError as error:
            return error

    def ticket(self, knock: Knock) -> Ticket | ChorusError:
        """Trade a key for a ticket. One that would open nothing is not given: browsers hide from a page why a
        WebSocket was refused, and this answer they show.
        """
        try:
            tenant = self._gate.by_key(knock.key, knock.origin, home=knock.home)
            if self._authority is not None:
                self._authority.require_start(tenant.name)
            return self._gate.ticket(knock.key, knock.origin, home=knock.home)
        except ChorusError as error:
            return error

    async def open(self, knock: Knock, request: AdmissionRequest) -> Opened | ChorusError:
        """Let a visitor in, or tell it to wait: the first question of a session, whose tenant nobody knows yet."""
        tenant = self.identify(knock) if self._books is not None else EVERYONE
        if isinstance(tenant, ChorusError):
            return tenant
        answer = self._admit(dataclasses.replace(request, tenant=tenant.name))
        if self._authority is not None and refuses(answer, ModelUnknown):
            await self._hear(self._authority)  # an engine may have come within the second
            answer = self._admit(dataclasses.replace(request, tenant=tenant.name))
        return Opened(tenant.name, answer)

    async def again(self, request: AdmissionRequest, hold_s: float) -> Answer:
        """Ask for one that waits; the answer comes when it is let in, and in `hold_s` at the latest."""
        answer = self._admit_again(request)
        if not isinstance(answer, Wait):
            return answer
        woken = self._waking.setdefault(request.session, asyncio.Event())
        try:
            async with asyncio.timeout(hold_s):  # wait_for of Python 3.11 may swallow that the caller has gone
                await woken.wait()
        except TimeoutError:
            pass
        finally:
            self._waking.pop(request.session, None)
        return self._admit_again(request)

    def confirm(self, granted: Granted) -> bool:
        """An engine has given the slot. False: it is another's."""
        return self._authority is not None and self._authority.confirm(granted)

    def leave(self, session: SessionId, audio_s: float | None = None) -> None:
        """A caller is gone. Idempotent."""
        if self._authority is not None:
            self._authority.leave(session, audio_s)

    def spent(self) -> Mapping[SessionId, ChorusError]:
        """Sessions that are to be ended, and why."""
        return self._spent

    async def usage(self, knock: Knock, first: Day, last: Day) -> Usage | ChorusError:
        """What the holder of a key spoke, by day."""
        tenant = self.identify(knock)
        if isinstance(tenant, ChorusError):
            return tenant
        assert self._books is not None, "without books nobody is identified"
        try:
            await self._write()
            return await asyncio.to_thread(self._books.ledger.days, tenant.name, first, last)
        except LedgerError as error:
            return error

    # --- once a second ------------------------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Hear the engines, let time pass, write the ledger. Raises what the directory raises."""
        if self._authority is None:
            await self.begin()
        assert self._authority is not None
        await self._hear(self._authority)
        self._authority.turn()
        await self._write()

    async def reload(self) -> None:
        """Read the files again where they changed."""
        if self._books is None or not await asyncio.to_thread(self._books.reload):
            return
        self._tenants = self._books.tenants
        self._gate.replace(self._tenants, self._books.ring)
        if self._authority is not None:
            self._authority.replace(self._tenants)

    async def close(self) -> None:
        """Write what is not written and let the ledger go."""
        await self._write()
        if self._books is not None:
            self._books.ledger.close()

    def status(self) -> list[PoolStatus]:
        """Numbers for metrics."""
        return self._authority.status() if self._authority is not None else []

    def spoken_s(self) -> Mapping[str, float]:
        """Tenant to seconds, since this process began."""
        return self._authority.spoken_s if self._authority is not None else {}

    async def _hear(self, authority: Authority) -> None:
        spent: dict[SessionId, ChorusError] = {}
        for view in await self._engines.views():
            orders = authority.report(view)
            owners = {session.session: session.tenant for session in view.sessions}
            spent.update((session, self._day_spent(owners[session])) for session in orders.spent)
        self._spent = spent

    def _day_spent(self, name: str) -> ChorusError:
        tenant = self._tenants.get(name)
        return DaySpent(tenant.audio_s_per_day if tenant else 0.0, DAY_S - self._wall() % DAY_S)

    def _admit(self, request: AdmissionRequest) -> Answer:
        return self._authority.admit(request) if self._authority is not None else Refused(EngineLost())

    def _admit_again(self, request: AdmissionRequest) -> Answer:
        """It waits, so somebody knew its model: no engine that has it has reported to this authority yet."""
        answer = self._admit(request)
        return Refused(EngineLost()) if refuses(answer, ModelUnknown) else answer

    def _wake(self, granted: Granted) -> None:
        waiting = self._waking.get(granted.request.session)
        if waiting is not None:
            waiting.set()

    def _charged(self, sessions: Sequence[SessionId]) -> Mapping[SessionId, Mapping[Day, float]]:
        """Asked once, by a successor: a moment of blocking is cheaper than a session that is counted twice."""
        if self._books is None:
            return {}
        try:
            return self._books.ledger.charged(sessions)
        except LedgerError as error:
            logger.error("sessions of before may count twice today: %s", error)
            return {}

    async def _write(self) -> None:
        if self._authority is None:
            return
        charges = self._authority.take_charges()
        if not charges or self._books is None:
            return
        try:
            await asyncio.to_thread(self._books.ledger.write, charges)
        except LedgerError as error:
            self._authority.untake(charges)
            logger.error("%d charges wait: %s", len(charges), error)
