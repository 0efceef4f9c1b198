"""The one place that says who may start: quotas, queue and placement behind one question.

There is one authority in a cluster. It holds nothing that the engines do not know: when it dies, its successor hears
every engine's sessions, adopts them, and grants nothing until its predecessor's grants are opened or have expired. No
session notices. Callers in the queue ask again with how long they have waited.

Pure: no thread, no socket, no clock of its own. Every call costs microseconds; none may come from two threads at once.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from serve_app.admission.answers import AdmissionRequest, Answer, EngineName, Granted, Refused, Wait
from serve_app.admission.day_book import Charge, Day, DayBook
from serve_app.admission.pool import Entry, Pool, State
from serve_app.admission.queue import Waiter
from serve_app.admission.quotas import SESSIONS_RETRY_S, Quotas
from serve_app.admission.register import Charged, Register
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.views import EngineView, LiveSession, Orders, PoolStatus
from serve_app.errors import (
    ChorusError,
    EngineLost,
    Forbidden,
    ModelUnknown,
    NotAllowed,
    ParameterRefused,
    QueueFull,
    TooManySessions,
)
from serve_app.units import SessionId

MAX_ROWS: Final = 1_024
RETRY_S: Final = 30.0
"""When to come again if nothing is known about the queue."""


class Authority:
    """Grants rows, at most once each.

    Args:
        tenants: as of now; `replace` gives newer ones.
        models: that this cluster serves, so that a caller may wait for one whose engine is about to come.
        rules: bounds and times.
        clock: monotonic seconds.
        wall: Unix seconds; only days depend on it.
        charged: asked when a session turns up that was granted by a predecessor.
        granted: told when a caller that waits is let in, so that it need not ask to know. Must not call back.
    """

    def __init__(
        self,
        tenants: Tenants,
        *,
        models: Collection[str] = (),
        rules: Rules = Rules(),  # noqa: B008 -- frozen
        clock: Callable[[], float],
        wall: Callable[[], float],
        charged: Charged = lambda sessions: {},
        granted: Callable[[Granted], None] = lambda granted: None,
    ) -> None:
        self._tenants = tenants
        self._rules = rules
        self._clock = clock
        self._on_granted = granted
        self._book = DayBook(wall)
        self._quotas = Quotas(self._book, clock)
        self._register = Register(models, rules, self._book, charged)
        self._timers: list[tuple[float, int, Entry]] = []
        self._serial = itertools.count()
        self._settled_s = clock() + rules.settle_s

    # --- gateways -----------------------------------------------------------------------------------------------------

    def admit(self, request: AdmissionRequest) -> Answer:
        """May it start, and where? Ask again with the same session until the answer is not `Wait`.

        Safe to repeat: a session that was granted gets the same grant. Refusals carry NotAllowed, Forbidden,
        ModelUnknown, ParameterRefused, TooManySessions, TooManyStarts, DaySpent, QueueFull or EngineLost.
        """
        now_s = self._clock()
        self._expire(now_s)
        entry = self._register.entries.get(request.session)
        try:
            tenant = self._tenants.require(request.tenant)
            if entry is None:
                return self._arrive(request, tenant, now_s)
            return self._again(entry, request, tenant, now_s)
        except ChorusError as error:
            return Refused(error)

    def require_start(self, name: str) -> None:
        """Let pass a tenant who might start a session now. Takes nothing: asked before a page is given a ticket.

        Raises:
            NotAllowed, TooManySessions, TooManyStarts, DaySpent: as `admit` would refuse it.
        """
        self._expire(self._clock())
        self._quotas.require(self._tenants.require(name), self._register.sessions_of(name))

    def confirm(self, granted: Granted) -> bool:
        """The engine has opened the session. False: the grant had expired, so close it; its rows may be another's."""
        now_s = self._clock()
        self._expire(now_s)
        entry = self._register.entries.get(granted.request.session)
        if entry is None and not self._register.settled:
            entry = self._register.adopt(
                granted.request, self._register.engine(granted.engine, granted.request.model, now_s), now_s
            )
        if entry is None or entry.engine is None or entry.engine.name != granted.engine:
            return False
        entry.went_live(now_s)
        return True

    def leave(self, session: SessionId, audio_s: float | None = None) -> None:
        """The caller is gone: from the queue, before it opened, or at its session's end. Idempotent.

        Args:
            audio_s: what the session spoke in all, where the gateway knows it better than the last report.
        """
        now_s = self._clock()
        self._expire(now_s)
        entry = self._register.entries.get(session)
        if entry is None:
            return
        if entry.state is State.LIVE:
            entry.pool.lasted(now_s - entry.since_s)
        if audio_s is not None and entry.engine is not None:
            self._book.note(session, entry.request.tenant, audio_s)
        self._register.left(entry, now_s)
        self._pump(entry.pool, now_s)

    # --- engines ------------------------------------------------------------------------------------------------------

    def report(self, view: EngineView) -> Orders:
        """Hear from an engine: its rows, its sessions, its state. This is also how a successor learns everything."""
        now_s = self._clock()
        self._expire(now_s)
        engine = self._register.engine(view.engine, view.model, now_s)
        engine.seen_s = now_s
        engine.deadlines.report(view.ticks, view.overruns)
        self._register.reconcile(engine, view.sessions, now_s)
        takes = view.healthy and not view.draining and engine.deadlines.kept
        engine.pool.placement.put(view.engine, view.rows, open_=takes, slots=view.slots)
        engine.pool.measured()
        for pool in self._register.pools.values():  # a session that moved may have left another model's
            self._pump(pool, now_s)
        return self._orders(view.sessions)

    def forget(self, name: EngineName) -> None:
        """An engine is gone, with its sessions. Unknown ones are gone already."""
        pool = self._register.forget(name)
        if pool is not None:
            self._pump(pool, self._clock())

    # --- the host -----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let time do its work when nobody calls. The host calls it about once a second."""
        now_s = self._clock()
        self._expire(now_s)
        for engine in list(self._register.engines.values()):
            if now_s - engine.seen_s > self._rules.silent_s:
                self.forget(engine.name)

    def replace(self, tenants: Tenants) -> None:
        """Take tenants read anew. Sessions that live go on; who waits is judged again at its next question."""
        self._tenants = tenants
        self._quotas.keep({tenant.name for tenant in tenants})

    def restore(self, day: Day, totals: Mapping[str, float]) -> None:
        """Begin with what the ledger has of a day."""
        self._book.restore(day, totals)

    def take_charges(self) -> list[Charge]:
        """What was spoken since the last call, for the ledger; `untake` what could not be written."""
        return self._book.take_charges()

    def untake(self, charges: Sequence[Charge]) -> None:
        """Keep charges that could not be written."""
        self._book.untake(charges)

    def status(self) -> list[PoolStatus]:
        """Every model's numbers."""
        return [pool.status() for pool in self._register.pools.values()]

    @property
    def spoken_s(self) -> Mapping[str, float]:
        """Tenant to seconds, since this authority began."""
        return self._book.heard_s

    def sessions_of(self, tenant: str) -> int:
        """A tenant's callers, those that wait included."""
        return self._register.sessions_of(tenant)

    # --- a caller's way -----------------------------------------------------------------------------------------------

    def _arrive(self, request: AdmissionRequest, tenant: Tenant, now_s: float) -> Answer:
        tenant.permit(request.model, request.parameters)
        pool = self._register.pools.get(request.model)
        if pool is None:
            raise ModelUnknown(request.model)
        if not 1 <= request.rows <= (pool.largest or MAX_ROWS):
            raise ParameterRefused("rows", request.rows, f"must be between 1 and {pool.largest or MAX_ROWS}")
        self._quotas.require(tenant, self._register.sessions_of(tenant.name))
        entry = Entry(request, pool, State.WAITING, now_s)
        name = pool.placement.take(request.rows) if self._register.settled and not len(pool.queue) else None
        if name is None:
            self._enqueue(entry, tenant, now_s)
        self._quotas.started(tenant)
        self._register.add(entry)
        if name is None:
            self._pump(pool, now_s)  # it may be next, and fit where who was next did not
        else:
            self._reserve(entry, name, now_s)
        return self._answer(entry, tenant, now_s)

    def _again(self, entry: Entry, request: AdmissionRequest, tenant: Tenant, now_s: float) -> Answer:
        if entry.request.tenant != request.tenant:
            raise Forbidden("another tenant's session")
        if entry.state is State.WAITING:
            entry.since_s = now_s
        return self._answer(entry, tenant, now_s)

    def _enqueue(self, entry: Entry, tenant: Tenant, now_s: float) -> None:
        """Raises QueueFull: nobody else has to leave for it."""
        request, pool = entry.request, entry.pool
        waited_s = request.waited_s if 0 < request.waited_s < math.inf else 0.0
        entry.waiter = Waiter(request.session, tenant.name, tenant.weight, request.rows, now_s - waited_s)
        pushed = pool.queue.join(entry.waiter)
        if pushed is not None:
            full = QueueFull(len(pool.queue), pool.eta_s(1) or RETRY_S)
            if pushed is entry.waiter:
                raise full
            self._push_out(self._register.entries[pushed.session], full)
        self._remind(now_s + self._rules.abandon_s, entry)

    def _push_out(self, entry: Entry, refusal: ChorusError) -> None:
        """Out of the queue already; its gateway hears it at the next question, or never asks and is forgotten."""
        entry.state, entry.waiter, entry.refusal = State.PUSHED_OUT, None, refusal
        self._remind(entry.since_s + self._rules.abandon_s, entry)

    def _pump(self, pool: Pool, now_s: float) -> None:
        """Let in whoever is next while there is room.

        One who needs two rows and finds them on no engine holds up those behind it, so that it is not passed for ever;
        rows idle meanwhile, a few in a large fleet.
        """
        while self._register.settled and (waiter := pool.queue.head()) is not None:
            entry = self._register.entries[waiter.session]
            tenant = self._tenants.get(waiter.tenant)
            refusal = self._too_late(waiter, tenant, pool)
            if refusal is not None:
                pool.queue.leave(waiter)
                self._push_out(entry, refusal)
                continue
            name = pool.placement.take(waiter.rows)
            if name is None:
                return
            pool.queue.leave(waiter)
            entry.waiter = None
            self._reserve(entry, name, now_s)
            self._on_granted(self._grant(entry, tenant, now_s))

    def _too_late(self, waiter: Waiter, tenant: Tenant | None, pool: Pool) -> ChorusError | None:
        """Why one that waits may not start: tenants or engines have changed, or a predecessor's sessions count."""
        if tenant is None:
            return NotAllowed("no such tenant")
        if self._register.sessions_of(tenant.name) > tenant.concurrent_sessions:
            return TooManySessions(tenant.concurrent_sessions, SESSIONS_RETRY_S)
        if not tenant.may_use(pool.model):
            return Forbidden(f"model {pool.model[:64]!r}")
        return EngineLost() if 0 < pool.largest < waiter.rows else None

    def _reserve(self, entry: Entry, name: EngineName, now_s: float) -> None:
        entry.pool.reserve(entry, self._register.engines[name], now_s)
        self._remind(now_s + self._rules.confirm_s, entry)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _grant(self, entry: Entry, tenant: Tenant | None, now_s: float) -> Granted:
        assert entry.engine is not None
        left_s = self._rules.confirm_s - (now_s - entry.since_s) if entry.state is State.RESERVED else 0.0
        return Granted(entry.request, entry.engine.name, max(left_s, 0.0), tenant.longest_s if tenant else 0.0)

    def _answer(self, entry: Entry, tenant: Tenant, now_s: float) -> Answer:
        """Where the caller stands. Raises the error of one that was pushed out, and forgets it."""
        if entry.state is State.PUSHED_OUT:
            self._register.drop(entry)
            raise entry.refusal or EngineLost()
        if entry.waiter is None:
            return self._grant(entry, tenant, now_s)
        place = entry.pool.queue.place(entry.waiter)
        return Wait(place, entry.pool.eta_s(place), self._rules.ask_again_s)

    def _orders(self, sessions: Sequence[LiveSession]) -> Orders:
        spent = set()
        for name in {session.tenant for session in sessions}:
            tenant = self._tenants.get(name)
            if tenant is not None and self._quotas.left_s(tenant) <= 0:
                spent.add(name)
        return Orders(tuple(session.session for session in sessions if session.tenant in spent) if spent else ())

    # --- time ---------------------------------------------------------------------------------------------------------

    def _remind(self, due_s: float, entry: Entry) -> None:
        if due_s < math.inf:
            heapq.heappush(self._timers, (due_s, next(self._serial), entry))

    def _settle(self, now_s: float) -> None:
        """A predecessor's grants are over: let in who fits, and tell those who came meanwhile and may not wait."""
        self._register.settled = True
        for pool in self._register.pools.values():
            self._pump(pool, now_s)
            for waiter in pool.queue.limit(self._rules.queue_limit):
                full = QueueFull(len(pool.queue), pool.eta_s(1) or RETRY_S)
                self._push_out(self._register.entries[waiter.session], full)

    def _expire(self, now_s: float) -> None:
        """Give back what nobody came for. A timer only says when to look: the entry knows whether it is time."""
        if not self._register.settled and now_s >= self._settled_s:
            self._settle(now_s)
        while self._timers and self._timers[0][0] <= now_s:
            _, _, entry = heapq.heappop(self._timers)
            match entry.state:
                case State.WAITING | State.PUSHED_OUT:
                    due_s = entry.since_s + self._rules.abandon_s
                case State.RESERVED:
                    due_s = entry.since_s + self._rules.confirm_s
                case _:
                    continue
            if due_s > now_s:
                self._remind(due_s, entry)
            else:
                self._register.drop(entry)
                self._pump(entry.pool, now_s)
        self._register.expire(now_s)
