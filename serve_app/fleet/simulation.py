"""A fleet under a clock that jumps from event to event. Admission and placement are the real ones."""

import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Sequence
from typing import Final

from serve_app.admission.answers import AdmissionRequest, EngineName, Granted, Refused, Wait
from serve_app.admission.authority import Authority
from serve_app.admission.placement import Policy
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenants
from serve_app.admission.views import EngineView
from serve_app.fleet.arrivals import Callers
from serve_app.fleet.elastic import LOOK_S, ElasticEngines, Elasticity
from serve_app.units import SessionId

MODEL: Final = "moshi"
CURVE_POINTS: Final = 400


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is simulated.

    Attributes:
        engines, rows: how many, and of each engine.
        elasticity: how engines come and go with their use; None keeps ``engines``.
        queue_limit: 0 refuses at once, which is Erlang's case.
        split: each caller is sent to a random engine that admits for itself: a fleet without an authority.
        warm_up: share of the arrivals that is not counted.
    """

    engines: int
    rows: int
    callers: tuple[Callers, ...]
    arrivals: int
    queue_limit: int = 0
    policy: Policy = Policy.TIGHTEST
    split: bool = False
    elasticity: Elasticity | None = None
    patience_s: float = 900.0
    warm_up: float = 0.1
    seed: int = 1


@dataclasses.dataclass(slots=True)
class Tally:
    """What became of one tenant's callers, after the warm-up."""

    arrivals: int = 0
    refused: int = 0
    abandoned: int = 0
    waits_s: list[float] = dataclasses.field(default_factory=list)  # of those that were let in; 0 at once

    @property
    def blocking(self) -> float:
        return self.refused / self.arrivals if self.arrivals else 0.0

    @property
    def mean_wait_s(self) -> float:
        return math.fsum(self.waits_s) / len(self.waits_s) if self.waits_s else 0.0

    def wait_s(self, share: float) -> float:
        """A percentile of the waits, given as a share."""
        ordered = sorted(self.waits_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


@dataclasses.dataclass(slots=True)
class Outcome:
    """What a run showed.

    Attributes:
        tallies: by tenant.
        busy_row_s, open_row_s: rows held, and rows there, by seconds, after the warm-up.
        eta_error: mean of |first eta - wait| over the mean wait, of those that waited and were let in.
        curve: (hours, rows held, waiting, rows there) over the run.
        moves: engines that came after the start.
    """

    tallies: dict[str, Tally]
    simulated_s: float = 0.0
    busy_row_s: float = 0.0
    open_row_s: float = 0.0
    eta_error: float = 0.0
    questions: int = 0
    curve: list[tuple[float, int, int, int]] = dataclasses.field(default_factory=list)
    moves: int = 0

    @property
    def all(self) -> Tally:
        """Every tenant together."""
        some = self.tallies.values()
        return Tally(
            sum(tally.arrivals for tally in some),
            sum(tally.refused for tally in some),
            sum(tally.abandoned for tally in some),
            [wait_s for tally in some for wait_s in tally.waits_s],
        )

    @property
    def utilisation(self) -> float:
        return self.busy_row_s / self.open_row_s if self.open_row_s else 0.0


@dataclasses.dataclass(slots=True)
class _Caller:
    kind: Callers
    session: SessionId
    authority: Authority
    rows: int
    came_s: float
    length_s: float
    counted: bool
    eta_s: float | None = None
    waiting: bool = False
    granted: Granted | None = None


ARRIVE, OPEN, END, GIVE_UP, LOOK = range(5)


class Simulation:
    """One run. Deterministic in its seed."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._now_s = 0.0
        self._chance = random.Random(fleet.seed)
        self._events: list[tuple[float, int, int, _Caller | int | None]] = []
        self._serial = itertools.count()
        self._callers: dict[SessionId, _Caller] = {}
        self._busy = self._waiting = 0
        # Each tenant draws from chances of its own: its callers are the same whoever else is there.
        self._streams = [kind.times(random.Random(f"{fleet.seed} {kind.tenant.name}")) for kind in fleet.callers]
        self._lengths = {k.tenant.name: random.Random(f"{fleet.seed} {k.tenant.name} length") for k in fleet.callers}
        self._outcome = Outcome({kind.tenant.name: Tally() for kind in fleet.callers})
        self._eta_misses: list[tuple[float, float]] = []
        self._first_counted = int(fleet.warm_up * fleet.arrivals)
        self._arrived = 0
        self._elastic: ElasticEngines | None = None
        groups = [[number] for number in range(fleet.engines)] if fleet.split else [range(fleet.engines)]
        self._authorities = [self._authority(group) for group in groups]

    def run(self) -> Outcome:
        """Simulate until the last arrival; whoever is there then is not waited for."""
        for number in range(len(self._streams)):
            self._next_arrival(number)
        if self._elastic is not None:
            self._at(LOOK_S, LOOK, None)
        step = max(self._fleet.arrivals // CURVE_POINTS, 1)
        while self._arrived < self._fleet.arrivals:
            at_s, _, what, whom = heapq.heappop(self._events)
            self._pass(at_s)
            if isinstance(whom, int):
                self._next_arrival(whom)
                self._arrive(self._fleet.callers[whom])
                if self._arrived % step == 0:
                    self._outcome.curve.append((at_s / 3_600, self._busy, self._waiting, self._rows_there))
            elif whom is None:
                self._look()
            elif what == OPEN and whom.granted is not None:
                whom.authority.confirm(whom.granted)
            elif what == END:
                self._end(whom)
            elif what == GIVE_UP and whom.waiting:
                self._give_up(whom)
        return self._finished()

    def _authority(self, numbers: Sequence[int]) -> Authority:
        fleet = self._fleet
        never = math.inf  # gateways of a simulation neither vanish nor fall silent
        rules = Rules(
            queue_limit=fleet.queue_limit, abandon_s=never, silent_s=never, policy=fleet.policy,
            patience_s=fleet.patience_s, mean_session_s=fleet.callers[0].mean_s,
        )  # fmt: skip
        authority = Authority(
            Tenants(kind.tenant for kind in fleet.callers),
            models=[MODEL],
            rules=rules,
            clock=lambda: self._now_s,
            wall=lambda: self._now_s,
            granted=self._on_granted,
        )
        if fleet.elasticity is not None:
            assert not fleet.split, "engines that come and go share one authority"
            self._elastic = ElasticEngines(authority, MODEL, fleet.rows, fleet.engines, fleet.elasticity)
            return authority
        for number in numbers:
            authority.report(EngineView(EngineName(f"engine-{number}"), MODEL, fleet.rows))
        return authority

    @property
    def _rows_there(self) -> int:
        return (self._fleet.engines if self._elastic is None else len(self._elastic)) * self._fleet.rows

    def _look(self) -> None:
        assert self._elastic is not None
        self._elastic.look(self._now_s)
        self._at(self._now_s + LOOK_S, LOOK, None)

    def _next_arrival(self, number: int) -> None:
        heapq.heappush(self._events, (next(self._streams[number]), next(self._serial), ARRIVE, number))

    def _arrive(self, kind: Callers) -> None:
        self._arrived += 1
        session = SessionId(str(self._arrived))
        counted = self._arrived > self._first_counted
        length_s = kind.length_s(self._lengths[kind.tenant.name])
        rows = 2 if kind.guided and self._chance.random() < kind.guided else 1
        authority = self._chance.choice(self._authorities) if self._fleet.split else self._authorities[0]
        caller = self._callers[session] = _Caller(kind, session, authority, rows, self._now_s, length_s, counted)
        tally = self._outcome.tallies[kind.tenant.name]
        tally.arrivals += counted
        self._outcome.questions += 1
        match authority.admit(AdmissionRequest(session, kind.tenant.name, MODEL, rows)):
            case Granted() as granted:
                authority.confirm(granted)
                caller.granted = granted
                self._start(caller)
            case Wait(eta_s=eta_s):
                caller.waiting, caller.eta_s = True, eta_s
                self._waiting += 1
                if kind.patience_s < math.inf:
                    self._at(self._now_s + kind.patience_s, GIVE_UP, caller)
            case Refused():
                tally.refused += counted
                del self._callers[session]

    def _on_granted(self, granted: Granted) -> None:
        """Somebody who waited is let in. Confirms in an event: the authority must not be called from here."""
        caller = self._callers[granted.request.session]
        if not caller.waiting:
            return  # was let in by the very question that it asked
        caller.waiting = False
        self._waiting -= 1
        if caller.counted and caller.eta_s is not None:
            self._eta_misses.append((caller.eta_s, self._now_s - caller.came_s))
        caller.granted = granted
        self._at(self._now_s, OPEN, caller)
        self._start(caller)

    def _start(self, caller: _Caller) -> None:
        if caller.counted:
            self._outcome.tallies[caller.kind.tenant.name].waits_s.append(self._now_s - caller.came_s)
        self._busy += caller.rows
        if self._elastic is not None and caller.granted is not None:
            self._elastic.began(caller.granted)
        self._at(self._now_s + caller.length_s, END, caller)
        del self._callers[caller.session]

    def _end(self, caller: _Caller) -> None:
        self._busy -= caller.rows
        if self._elastic is not None and caller.granted is not None:
            self._elastic.ended(caller.granted)
        caller.authority.leave(caller.session)

    def _give_up(self, caller: _Caller) -> None:
        caller.waiting = False
        self._waiting -= 1
        self._outcome.tallies[caller.kind.tenant.name].abandoned += caller.counted
        caller.authority.leave(caller.session)
        del self._callers[caller.session]

    def _at(self, at_s: float, what: int, caller: _Caller | None) -> None:
        heapq.heappush(self._events, (at_s, next(self._serial), what, caller))

    def _pass(self, at_s: float) -> None:
        if self._arrived >= self._first_counted:
            self._outcome.busy_row_s += self._busy * (at_s - self._now_s)
            self._outcome.open_row_s += self._rows_there * (at_s - self._now_s)
        self._now_s = at_s

    def _finished(self) -> Outcome:
        self._outcome.simulated_s = self._now_s
        self._outcome.moves = self._elastic.come - self._fleet.engines if self._elastic is not None else 0
        waited_s = math.fsum(wait_s for _, wait_s in self._eta_misses)
        missed_s = math.fsum(abs(eta_s - wait_s) for eta_s, wait_s in self._eta_misses)
        self._outcome.eta_error = missed_s / waited_s if waited_s else 0.0
        return self._outcome
