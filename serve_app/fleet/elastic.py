"""Engines that come and go with their use, in the simulation: the real decision, under its clock.

As Ray has it: more at once, fewer when fewer were wanted for a while without a break, the newest first, and an engine
that goes finishes what it has, beside the most that there may be. What is started costs from the first second, and
carries nobody until it is up.
"""

import collections
import dataclasses
from typing import Final

from serve_app.admission.answers import EngineName, Granted
from serve_app.admission.authority import Authority
from serve_app.admission.scaling import EngineLoad, ScalingRules, engines_wanted
from serve_app.admission.views import EngineView, LiveSession
from serve_app.units import SessionId

LOOK_S: Final = 5.0
"""From one decision to the next."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Elasticity:
    """How a fleet follows its use.

    Attributes:
        rules: of the decision.
        start_s: from the decision to the first session: a machine, and the weights.
        downscale_delay_s: as in the configuration.
    """

    rules: ScalingRules
    start_s: float = 120.0
    downscale_delay_s: float = 600.0


class ElasticEngines:
    """The engines of one authority.

    Args:
        authority: told of engines that come, drain and are gone.
        model, rows: of each engine.
        engines: at the start.
    """

    def __init__(self, authority: Authority, model: str, rows: int, engines: int, elasticity: Elasticity) -> None:
        self._authority = authority
        self._model = model
        self._rows = rows
        self._elasticity = elasticity
        self._held: dict[EngineName, dict[SessionId, LiveSession]] = {}
        self._starting: collections.deque[float] = collections.deque()  # when each is up
        self._running: list[EngineName] = []
        self._going: list[EngineName] = []
        self._fewer_since_s: float | None = None
        self.come = 0
        """Engines that ever were."""
        for _ in range(engines):
            self._open()

    def __len__(self) -> int:
        """Engines that cost, whatever they do."""
        return len(self._starting) + len(self._running) + len(self._going)

    def began(self, granted: Granted) -> None:
        """A session opened at the engine that was named."""
        asked = granted.request
        self._held[granted.engine][asked.session] = LiveSession(asked.session, asked.tenant, asked.rows)

    def ended(self, granted: Granted) -> None:
        """A session is over."""
        del self._held[granted.engine][granted.request.session]

    def look(self, now_s: float) -> None:
        """Let those start that are up, those go that are empty, and decide."""
        while self._starting and self._starting[0] <= now_s:
            self._starting.popleft()
            self._open()
        for name in [name for name in self._going if not self._held[name]]:
            self._going.remove(name)
            del self._held[name]
            self._authority.forget(name)
        self._move(self._wanted(now_s), now_s)

    def _wanted(self, now_s: float) -> int:
        """What the rules want, once the delay is over."""
        engines = len(self._starting) + len(self._running)
        wanted = engines_wanted(self._elasticity.rules, [self._load(name) for name in self._running], engines)
        if wanted >= engines:
            self._fewer_since_s = None
            return wanted
        if self._fewer_since_s is None:
            self._fewer_since_s = now_s
        if now_s - self._fewer_since_s < self._elasticity.downscale_delay_s:
            return engines
        self._fewer_since_s = None
        return wanted

    def _move(self, wanted: int, now_s: float) -> None:
        while len(self._starting) + len(self._running) < wanted:
            self._starting.append(now_s + self._elasticity.start_s)
        while len(self._starting) + len(self._running) > wanted:
            if self._starting:
                self._starting.pop()
            else:
                self._drain(self._running.pop())

    def _open(self) -> None:
        name = EngineName(f"engine-{self.come}")
        self.come += 1
        self._held[name] = {}
        self._running.append(name)
        self._authority.report(EngineView(name, self._model, self._rows))

    def _drain(self, name: EngineName) -> None:
        self._going.append(name)
        sessions = tuple(self._held[name].values())
        self._authority.report(EngineView(name, self._model, self._rows, sessions, draining=True))

    def _load(self, name: EngineName) -> EngineLoad:
        return EngineLoad(slots=self._rows, used=sum(session.rows for session in self._held[name].values()))
