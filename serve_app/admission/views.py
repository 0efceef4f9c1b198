"""What an engine tells the authority, about once a second, and what it is told back. Plain values."""

import dataclasses

from serve_app.admission.answers import EngineName
from serve_app.units import SessionId


@dataclasses.dataclass(frozen=True, slots=True)
class LiveSession:
    """A session as its engine sees it.

    Attributes:
        audio_s: seconds of conversation since it began, never less than before.
    """

    session: SessionId
    tenant: str
    rows: int = 1
    audio_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class EngineView:
    """One engine, whole: the authority needs nothing else to rebuild what it knows.

    Attributes:
        rows: of its batch.
        slots: sessions at a time, of however many rows; None where rows are the only bound.
        sessions: everyone who holds rows.
        draining: takes no new sessions and finishes the old.
        healthy: as it judges itself.
        ticks, overruns: since it started; ticks past 80 ms are what makes frames late.
    """

    engine: EngineName
    model: str
    rows: int
    sessions: tuple[LiveSession, ...] = ()
    draining: bool = False
    healthy: bool = True
    ticks: int = 0
    overruns: int = 0
    slots: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """What the engine is told.

    Attributes:
        spent: sessions of tenants whose day is spent: to be ended, with a word to the client.
    """

    spent: tuple[SessionId, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class PoolStatus:
    """One model's engines and queue, for metrics and `/info`.

    Attributes:
        engines, open_engines: all, and those that take new sessions.
        rows, used: of the open engines, and held on any.
        waiting: callers in the queue.
        mean_session_s: what eta is reckoned with.
    """

    model: str
    engines: int
    open_engines: int
    rows: int
    used: int
    waiting: int
    mean_session_s: float
