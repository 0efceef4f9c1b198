"""Callers, engines and authorities come and go in any order; no row is lent twice and none is lost."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serve_app.admission.answers import AdmissionRequest, Granted, Refused, Wait
from serve_app.admission.placement import Policy
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.units import SessionId
from tests.admission.world import FakeEngine, World

QUOTA = 4
TENANTS = Tenants(
    Tenant(name=name, weight=weight, concurrent_sessions=QUOTA, sessions_per_minute=1e6)
    for name, weight in (("a", 1.0), ("b", 1.0), ("c", 3.0))
)
CONFIRM_S, ABANDON_S, SILENT_S = 4.0, 3.0, 3.0
SETTLE_S = CONFIRM_S + 2.0


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            2,
            1,
            tenants=TENANTS,
            rules=Rules(queue_limit=5, confirm_s=CONFIRM_S, abandon_s=ABANDON_S, silent_s=SILENT_S, policy=self.policy),
        )
        self.waiting: dict[SessionId, AdmissionRequest] = {}
        self.granted: dict[SessionId, tuple[Granted, float]] = {}
        self.live: list[SessionId] = []
        self.unsettled_until_s = 0.0

    policy = Policy.TIGHTEST

    def hear(self, request: AdmissionRequest) -> None:
        answer = self.world.authority.admit(request)
        self.waiting.pop(request.session, None)
        self.granted.pop(request.session, None)
        match answer:
            case Granted():
                self.granted[request.session] = answer, self.world.clock.now_s + answer.confirm_s
            case Wait(place=place):
                self.waiting[request.session] = request
                assert 1 <= place <= self.world.waiting
            case Refused(error=error):
                assert error.reason in {"queue_full", "too_many_sessions", "engine_lost", "bad_parameter"}

    @rule(
        callers=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([1, 1, 1, 1, 2, 3])), min_size=1, max_size=4)
    )
    def arrive(self, callers: list[tuple[str, int]]) -> None:
        for tenant, rows in callers:
            self.hear(self.world.request(tenant, rows))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), waited_s=st.floats(0, 100))
    def ask_again(self, data: st.DataObject, waited_s: float) -> None:
        session = data.draw(st.sampled_from(list(self.waiting)))
        asked = self.waiting[session]
        self.hear(AdmissionRequest(session, asked.tenant, asked.model, asked.rows, waited_s=waited_s))

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), confirm_first=st.booleans(), everybody=st.booleans())
    def open(self, data: st.DataObject, confirm_first: bool, everybody: bool) -> None:
        """A gateway keeps to the time of its grant. The engine would refuse a row too many, and never has to."""
        here = list(self.granted)
        for session in here if everybody else [data.draw(st.sampled_from(here))]:
            self.open_one(session, confirm_first)

    def open_one(self, session: SessionId, confirm_first: bool) -> None:
        granted, until_s = self.granted.pop(session)
        engine = self.world.engines.get(granted.engine)
        if engine is None or self.world.clock.now_s >= until_s:
            self.world.authority.leave(session)
            return
        if not confirm_first:
            assert engine.used + granted.request.rows <= engine.rows
            engine.sessions[session] = granted.request
            self.world.report(engine)
        if self.world.open(granted):
            self.live.append(session)
        else:
            assert confirm_first or engine.mute
            self.world.end(session)

    @rule(data=st.data(), told=st.booleans())
    def go(self, data: st.DataObject, told: bool) -> None:
        """Anybody goes at any time; the authority is told, or has to find out."""
        everybody = [*self.waiting, *self.granted, *self.live]
        if not everybody:
            return
        session = data.draw(st.sampled_from(everybody))
        self.waiting.pop(session, None)
        self.granted.pop(session, None)
        if session in self.live:
            self.live.remove(session)
        (self.world.end if told else self.world.vanish)(session)

    @rule(seconds=st.integers(1, 6))
    def pass_time(self, seconds: int) -> None:
        self.world.pass_time(seconds)

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), what=st.sampled_from(["draining", "healthy", "mute"]))
    def turn_over(self, data: st.DataObject, what: str) -> None:
        engine = self.any_engine(data)
        setattr(engine, what, not getattr(engine, what))
        self.world.report(engine)

    @precondition(lambda self: len(self.world.engines) < 3)
    @rule(rows=st.integers(1, 2))
    def add_engine(self, rows: int) -> None:
        self.world.add_engine(rows)

    @precondition(lambda self: self.world.engines)
    @rule(data=st.data(), told=st.booleans())
    def lose_engine(self, data: st.DataObject, told: bool) -> None:
        engine = self.any_engine(data)
        self.world.lose(engine)
        self.live = [session for session in self.live if session not in engine.sessions]
        if told:
            self.world.authority.forget(engine.name)
        self.world.add_engine(engine.rows)

    @rule()
    def succeed(self) -> None:
        self.world.succeed(SETTLE_S)
        self.unsettled_until_s = self.world.clock.now_s + SETTLE_S

    def any_engine(self, data: st.DataObject) -> FakeEngine:
        return data.draw(st.sampled_from(list(self.world.engines.values())))

    @invariant()
    def no_engine_holds_more_than_its_rows(self) -> None:
        assert all(engine.used <= engine.rows for engine in self.world.engines.values())

    @invariant()
    def the_account_adds_up(self) -> None:
        authority = self.world.authority
        for pool in authority._register.pools.values():
            for engine in pool.engines.values():
                assert pool.placement.used_of(engine.name) == sum(e.request.rows for e in engine.entries.values())
            assert len(pool.queue) == sum(
                e.waiter is not None for e in authority._register.entries.values() if e.pool is pool
            )
            held = sum(pool.queue.held_by(name) for name in "abc")
            assert held == pool.placement.used
        assert sum(authority.sessions_of(name) for name in "abc") == len(authority._register.entries)

    @invariant()
    def nobody_waits_beside_rows_that_fit(self) -> None:
        if self.world.clock.now_s >= self.unsettled_until_s:
            self.world.authority.turn()
            for pool in self.world.authority._register.pools.values():
                head = pool.queue.head()
                assert head is None or pool.placement._filled >> head.rows == 0

    @invariant()
    def no_tenant_holds_more_sessions_than_its_quota(self) -> None:
        sessions = [one for engine in self.world.engines.values() for one in engine.sessions.values()]
        for name in "abc":
            assert sum(one.tenant == name for one in sessions) <= QUOTA

    def teardown(self) -> None:
        """When all are gone and time has passed, nothing is held, waited for or remembered."""
        for session in [*self.waiting, *self.granted, *self.live]:
            self.world.vanish(session)
        for engine in self.world.engines.values():
            engine.mute = False
        self.world.pass_time(30)
        assert (self.world.used, self.world.waiting) == (0, 0)
        authority = self.world.authority
        assert not any(
            (authority._register.entries, authority._timers, authority._register._left, authority._register._sessions)
        )
        for pool in authority._register.pools.values():
            assert not any((pool.queue._lines, pool.queue._waiting))
            open_rows = sum(e.rows for e in self.world.engines.values() if e.healthy and not e.draining)
            assert pool.placement.open_rows == open_rows


class LeastLoaded(AnyOrder):
    policy = Policy.LEAST_LOADED


AnyOrder.TestCase.settings = LeastLoaded.TestCase.settings = settings(stateful_step_count=40, max_examples=100)
TestRowsAreConservedInAnyOrder = AnyOrder.TestCase
TestRowsAreConservedUnderLeastLoadedToo = LeastLoaded.TestCase
