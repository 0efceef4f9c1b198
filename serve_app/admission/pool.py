"""One model's engines, the callers that they hold, and the queue for them."""

import dataclasses
import enum
from typing import Final

from serve_app.admission.answers import AdmissionRequest, EngineName
from serve_app.admission.deadlines import Deadlines
from serve_app.admission.placement import Placement
from serve_app.admission.queue import FairQueue, Waiter
from serve_app.admission.rules import Rules
from serve_app.admission.views import PoolStatus
from serve_app.errors import ChorusError
from serve_app.units import SessionId

NEWEST_SHARE: Final = 0.02
"""Of the last session in the mean length: fifty sessions of memory."""


class State(enum.Enum):
    """Where a caller stands. Every move is one method of `Authority` or `Pool`."""

    WAITING = "waiting"
    PUSHED_OUT = "pushed_out"  # told at its next question
    RESERVED = "reserved"  # rows set aside, the engine not yet open
    LIVE = "live"
    GONE = "gone"


@dataclasses.dataclass(slots=True, eq=False)
class Entry:
    """One caller.

    Attributes:
        since_s: monotonic, of the last move; of a waiter, of its last question.
        refusal: of one that was pushed out.
        listed: whether its engine has reported it.
    """

    request: AdmissionRequest
    pool: "Pool"
    state: State
    since_s: float
    waiter: Waiter | None = None
    engine: "EngineRecord | None" = None
    refusal: ChorusError | None = None
    listed: bool = False

    def went_live(self, now_s: float) -> None:
        """Its engine opened it, as its gateway or the engine says. Changes nothing the second time."""
        if self.state is State.RESERVED:
            self.state, self.since_s = State.LIVE, now_s


@dataclasses.dataclass(slots=True, eq=False)
class EngineRecord:
    """One engine as last heard of."""

    name: EngineName
    pool: "Pool"
    deadlines: Deadlines
    seen_s: float
    entries: dict[SessionId, Entry] = dataclasses.field(default_factory=dict)


class Pool:
    """Keeps placement and queue of one model in step with each other."""

    def __init__(self, model: str, rules: Rules, *, settled: bool = True) -> None:
        self.model = model
        self.placement = Placement(rules.policy)
        limit = rules.queue_limit if settled else max(rules.queue_limit, rules.settling_limit)
        self.queue = FairQueue(limit, rules.patience_s)
        self.engines: dict[EngineName, EngineRecord] = {}
        self.largest = 0
        self._mean_session_s = rules.mean_session_s

    def reserve(self, entry: Entry, engine: EngineRecord, now_s: float) -> None:
        """Rows that `Placement.take` lent are this caller's now."""
        entry.state, entry.engine, entry.since_s = State.RESERVED, engine, now_s
        engine.entries[entry.request.session] = entry
        self.queue.held(entry.request.tenant, entry.request.rows, now_s)

    def adopt(self, entry: Entry, engine: EngineRecord, now_s: float) -> None:
        """A session that lives there already, whatever we know of it."""
        entry.state, entry.engine, entry.since_s = State.LIVE, engine, now_s
        engine.entries[entry.request.session] = entry
        self.placement.hold(engine.name, entry.request.rows)
        self.queue.held(entry.request.tenant, entry.request.rows)

    def release(self, entry: Entry) -> None:
        """Take back whatever a caller has of this pool: its place in the queue, or its rows."""
        if entry.waiter is not None:
            self.queue.leave(entry.waiter)
            entry.waiter = None
        if entry.engine is not None:
            del entry.engine.entries[entry.request.session]
            self.placement.give(entry.engine.name, entry.request.rows)
            self.queue.held(entry.request.tenant, -entry.request.rows)
            entry.engine = None

    def measured(self) -> None:
        """Engines came, went or changed."""
        self.largest = self.placement.largest

    def lasted(self, session_s: float) -> None:
        """A session has ended: how long they last decides how long others wait."""
        self._mean_session_s += NEWEST_SHARE * (session_s - self._mean_session_s)

    def eta_s(self, place: int) -> float | None:
        """When so many sessions will have ended, if they end as they did."""
        return place * self._mean_session_s / self.placement.used if self.placement.used else None

    def status(self) -> PoolStatus:
        """Numbers for metrics."""
        return PoolStatus(
            model=self.model,
            engines=len(self.engines),
            open_engines=self.placement.open_engines,
            rows=self.placement.open_rows,
            used=self.placement.used,
            waiting=len(self.queue),
            mean_session_s=self._mean_session_s,
        )
