"""What the engine shows to whoever measures it; serving injects metrics, tests inject a list."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from serve_app.engine.events import DropCause
from serve_app.engine.slots import Lease
from serve_app.errors import ChorusError


@dataclasses.dataclass(frozen=True, slots=True)
class TickReport:
    """One turn of the batch. ``stage_ms`` has the runner's stages, "tick" and "wait".

    Attributes:
        started_s: the engine's clock.
    """

    started_s: float
    rows: int
    stage_ms: Mapping[str, float]
    overrun: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SessionReport:
    """One session from opening to end; frames obey ``received == stepped + sum(dropped)``."""

    lease: Lease
    duration_s: float
    received: int
    stepped: int
    dropped: Mapping[DropCause, int]
    underruns: int
    error: ChorusError | None


class Observer(Protocol):
    """Told on the engine thread; must not block. What it raises is logged and ignored."""

    def tick_finished(self, report: TickReport) -> None:
        """After every tick that ran rows."""
        ...

    def session_ended(self, report: SessionReport) -> None:
        """After a session's slot is free again."""
        ...

    def frames_dropped(self, lease: Lease, frames: int, cause: DropCause) -> None:
        """When frames of a session were thrown away."""
        ...


class SilentObserver:
    """Sees nothing."""

    def tick_finished(self, report: TickReport) -> None:
        """Ignored."""

    def session_ended(self, report: SessionReport) -> None:
        """Ignored."""

    def frames_dropped(self, lease: Lease, frames: int, cause: DropCause) -> None:
        """Ignored."""
