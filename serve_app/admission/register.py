"""Everybody whom the authority knows: callers, engines, and who is where. Bookkeeping without decisions."""

import collections
from collections.abc import Callable, Collection, Mapping, Sequence

from serve_app.admission.answers import AdmissionRequest, EngineName
from serve_app.admission.day_book import Day, DayBook
from serve_app.admission.deadlines import Deadlines
from serve_app.admission.pool import EngineRecord, Entry, Pool, State
from serve_app.admission.rules import Rules
from serve_app.admission.views import LiveSession
from serve_app.units import SessionId

Charged = Callable[[Sequence[SessionId]], Mapping[SessionId, Mapping[Day, float]]]
"""What the ledger has of these sessions, by day."""


class Register:
    """Keeps entries, tenants' counts, engines and pools in step.

    Args:
        models: known before any engine reports.
        book: hears what sessions spoke.
        charged: asked about sessions that turn up and were granted by a predecessor.
    """

    def __init__(self, models: Collection[str], rules: Rules, book: DayBook, charged: Charged) -> None:
        self._rules = rules
        self.settled = rules.settle_s <= 0
        """Whether the authority grants: until then more may wait."""
        self._book = book
        self._charged = charged
        self.pools = {model: Pool(model, rules, settled=self.settled) for model in models}
        self.engines: dict[EngineName, EngineRecord] = {}
        self.entries: dict[SessionId, Entry] = {}
        self._sessions: dict[str, int] = {}  # by tenant, those that wait included
        # Who left lately, with the time until which a report may still list it. Ordered, for a cheap first.
        self._left: collections.OrderedDict[SessionId, float] = collections.OrderedDict()

    def sessions_of(self, tenant: str) -> int:
        """A tenant's callers, those that wait included."""
        return self._sessions.get(tenant, 0)

    def add(self, entry: Entry) -> None:
        """A caller that was not known."""
        self.entries[entry.request.session] = entry
        self._sessions[entry.request.tenant] = self.sessions_of(entry.request.tenant) + 1

    def drop(self, entry: Entry) -> None:
        """Forget a caller, whatever its state, and give back what it had."""
        entry.pool.release(entry)
        entry.state = State.GONE
        del self.entries[entry.request.session]
        tenant = entry.request.tenant
        self._sessions[tenant] -= 1
        if not self._sessions[tenant]:
            del self._sessions[tenant]
        self._book.forget(entry.request.session)

    def left(self, entry: Entry, now_s: float) -> None:
        """Drop a caller that its gateway says is gone; a report on its way may still list it, or list it first."""
        if entry.engine is not None:
            session = entry.request.session
            self._left[session] = now_s + self._rules.left_s
            self._left.move_to_end(session)
        self.drop(entry)

    def expire(self, now_s: float) -> None:
        """Forget who left long enough ago."""
        while self._left:
            session, until_s = next(iter(self._left.items()))
            if until_s > now_s:
                break
            del self._left[session]

    def engine(self, name: EngineName, model: str, now_s: float) -> EngineRecord:
        """The record of an engine. One not heard of takes nobody until it reports."""
        engine = self.engines.get(name)
        if engine is not None and engine.pool.model != model:
            self.forget(name)
            engine = None
        if engine is None:
            pool = self.pools.get(model)
            if pool is None:
                pool = self.pools[model] = Pool(model, self._rules, settled=self.settled)
            engine = EngineRecord(name, pool, Deadlines(self._rules.deadlines), now_s)
            self.engines[name] = pool.engines[name] = engine
            pool.placement.put(name, 0, open_=False)
        return engine

    def forget(self, name: EngineName) -> Pool | None:
        """Drop an engine with its sessions. Returns whose it was; None when it is gone already."""
        engine = self.engines.pop(name, None)
        if engine is None:
            return None
        for entry in list(engine.entries.values()):
            self.drop(entry)
        del engine.pool.engines[name]
        engine.pool.placement.remove(name)
        engine.pool.measured()
        return engine.pool

    def adopt(self, request: AdmissionRequest, engine: EngineRecord, now_s: float) -> Entry:
        """A session that lives there already, granted by somebody else or moved."""
        entry = Entry(request, engine.pool, State.LIVE, now_s)
        engine.pool.adopt(entry, engine, now_s)
        self.add(entry)
        return entry

    def reconcile(self, engine: EngineRecord, sessions: Sequence[LiveSession], now_s: float) -> None:
        """Make our account of an engine say what the engine says."""
        listed = {session.session for session in sessions}
        for gone in [one for one in engine.entries.values() if one.request.session not in listed]:
            if gone.listed:
                gone.pool.lasted(now_s - gone.since_s)
                self.drop(gone)
            elif gone.state is State.LIVE and now_s - gone.since_s > self._rules.unlisted_s:
                self.drop(gone)  # confirmed, and never opened
        here = [session for session in sessions if session.session not in self._left]
        unknown = [session.session for session in here if session.session not in self.entries]
        charged = self._charged(unknown) if unknown else {}
        for session in here:
            entry = self.entries.get(session.session)
            if entry is None:
                self._book.adopt(session.session, session.tenant, charged.get(session.session, {}))
            if entry is None or entry.engine is not engine or entry.request.rows != session.rows:
                entry = self._move_in(session, entry, engine, now_s)
            entry.listed = True
            entry.went_live(now_s)
            self._book.note(session.session, session.tenant, session.audio_s)

    def _move_in(self, session: LiveSession, before: Entry | None, engine: EngineRecord, now_s: float) -> Entry:
        """It waits with us and lives there, or it moved, or we never knew it: the engine that has it is right."""
        if before is not None:
            self.drop(before)
        request = AdmissionRequest(session.session, session.tenant, engine.pool.model, session.rows)
        return self.adopt(request, engine, now_s)
