"""Engines, gateways and callers around an authority: all fake, all honest, in one thread."""

import dataclasses
import itertools

from serve_app.admission.answers import AdmissionRequest, Answer, EngineName, Granted
from serve_app.admission.authority import Authority
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.views import EngineView, LiveSession
from serve_app.units import SessionId
from tests.admission.clock import Clock

MODEL = "moshi"
ROOMY = Tenants(
    Tenant(name=name, concurrent_sessions=10**6, sessions_per_minute=1e6, audio_s_per_day=1e9) for name in "abc"
)


@dataclasses.dataclass
class FakeEngine:
    """Holds sessions as the real one does; counts nothing that it was not told to hold."""

    name: EngineName
    rows: int
    model: str = MODEL
    sessions: dict[SessionId, AdmissionRequest] = dataclasses.field(default_factory=dict)
    audio_s: dict[SessionId, float] = dataclasses.field(default_factory=dict)
    draining: bool = False
    healthy: bool = True
    mute: bool = False
    ticks: int = 0
    overruns: int = 0

    @property
    def used(self) -> int:
        return sum(request.rows for request in self.sessions.values())

    def view(self) -> EngineView:
        live = tuple(
            LiveSession(session, request.tenant, request.rows, self.audio_s.get(session, 0.0))
            for session, request in self.sessions.items()
        )
        return EngineView(
            self.name, self.model, self.rows, live, self.draining, self.healthy, self.ticks, self.overruns
        )


class World:
    """A cluster in one hand.

    Args:
        rows: of each engine, named e0, e1, ...
    """

    def __init__(self, *rows: int, tenants: Tenants = ROOMY, rules: Rules = Rules(), settle_s: float = 0.0) -> None:  # noqa: B008
        self.clock, self.wall = Clock(), Clock(1_795_348_800.0)
        self.tenants = tenants
        self.rules = dataclasses.replace(rules, settle_s=settle_s)
        self.told: list[Granted] = []
        self.engines: dict[EngineName, FakeEngine] = {}
        self._numbers = itertools.count()
        self.authority = self.new_authority(self.rules)
        for count in rows:
            self.add_engine(count)

    def new_authority(self, rules: Rules) -> Authority:
        return Authority(
            self.tenants, models=[MODEL], rules=rules, clock=self.clock, wall=self.wall, granted=self.told.append
        )

    def succeed(self, settle_s: float) -> None:
        """The authority dies; a successor knows nothing until engines report."""
        self.authority = self.new_authority(dataclasses.replace(self.rules, settle_s=settle_s))

    def add_engine(self, rows: int, model: str = MODEL) -> FakeEngine:
        engine = FakeEngine(EngineName(f"e{next(self._numbers)}"), rows, model)
        self.engines[engine.name] = engine
        self.report(engine)
        return engine

    def report(self, *engines: FakeEngine) -> None:
        for engine in engines or self.engines.values():
            if not engine.mute:
                self.authority.report(engine.view())

    def pass_time(self, seconds: int) -> None:
        """Seconds in which engines report and the authority turns."""
        for _ in range(seconds):
            self.clock.now_s += 1.0
            self.wall.now_s += 1.0
            self.report()
            self.authority.turn()

    def request(self, tenant: str = "a", rows: int = 1, model: str = MODEL) -> AdmissionRequest:
        return AdmissionRequest(SessionId(f"s{next(self._numbers)}"), tenant, model, rows)

    def ask(self, tenant: str = "a", rows: int = 1, model: str = MODEL) -> Answer:
        return self.authority.admit(self.request(tenant, rows, model))

    def start(self, tenant: str = "a", rows: int = 1) -> Granted:
        """A session that is let in at once, opens and confirms."""
        granted = self.ask(tenant, rows)
        assert isinstance(granted, Granted), granted
        self.open(granted)
        return granted

    def open(self, granted: Granted) -> bool:
        if not self.authority.confirm(granted):
            return False
        self.engines[granted.engine].sessions[granted.request.session] = granted.request
        return True

    def end(self, session: SessionId) -> None:
        """The gateway closes the session, then tells the authority."""
        self.vanish(session)
        self.authority.leave(session)

    def vanish(self, session: SessionId) -> None:
        """The session ends at its engine, and nobody tells the authority."""
        for engine in self.engines.values():
            engine.sessions.pop(session, None)

    def lose(self, engine: FakeEngine) -> None:
        del self.engines[engine.name]

    @property
    def used(self) -> int:
        return sum(status.used for status in self.authority.status())

    @property
    def waiting(self) -> int:
        return sum(status.waiting for status in self.authority.status())
