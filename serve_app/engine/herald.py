"""Tells what happened: events to sinks, reports to the observer, one log line at each end of a session."""

import logging
from collections.abc import Callable, Mapping

from serve_app.engine.events import DropCause, Dropped, Ended, Event, Opened, Sink
from serve_app.engine.observer import Observer, SessionReport, TickReport
from serve_app.engine.session import Session

logger = logging.getLogger(__name__)


class Herald:
    """Collects the events of one moment by sink and delivers them with one call each. Engine thread."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._letters: dict[Sink, list[tuple[Session, Event]]] = {}

    def tell(self, session: Session, event: Event) -> None:
        """Keep an event for the next delivery."""
        assert session.sink is not None, "only opened sessions have something to hear"
        self._letters.setdefault(session.sink, []).append((session, event))

    def deliver(self) -> list[Session]:
        """Call every sink that has events. Returns the sessions of those that raised."""
        letters, self._letters = self._letters, {}
        deaf: list[Session] = []
        for sink, addressed in letters.items():
            try:
                sink([event for _, event in addressed])
            except Exception:
                logger.exception("a sink raised on %d events", len(addressed))
                deaf += [session for session, _ in addressed]
        return deaf

    def opened(self, session: Session) -> None:
        """A session is live."""
        logger.info(
            "session start slot=%(slot)d generation=%(generation)d tenant=%(tenant)s",
            {"slot": session.lease.slot, "generation": session.lease.generation, "tenant": session.spec.tenant},
        )
        self.tell(session, Opened(session.lease))

    def returned(self, session: Session) -> None:
        """A session has another holder and goes on."""
        logger.info("session back slot=%d generation=%d", session.lease.slot, session.lease.generation)
        self.tell(session, Opened(session.lease))

    def dropped(self, session: Session, drops: Mapping[DropCause, int]) -> None:
        """Frames of a session were thrown away."""
        for cause, frames in drops.items():
            if cause is not DropCause.ENDED:  # whoever ended it need not be told what was left
                self.tell(session, Dropped(session.lease, frames, cause))
            self._show(_drop_shown(session, frames, cause))

    def ended(self, session: Session, now_s: float) -> None:
        """A session is over and its slot given back."""
        report = SessionReport(
            lease=session.lease,
            duration_s=now_s - session.opened_s if session.opened_s is not None else 0.0,
            received=session.received,
            stepped=session.stepped,
            dropped=dict(session.dropped),
            underruns=session.underruns,
            error=session.error,
        )
        logger.info(
            "session end slot=%(slot)d generation=%(generation)d cause=%(cause)s duration_s=%(duration_s).2f "
            "frames=%(frames)d stepped=%(stepped)d dropped=%(dropped)d underruns=%(underruns)d",
            {
                "slot": session.lease.slot,
                "generation": session.lease.generation,
                "cause": session.end_reason,
                "duration_s": report.duration_s,
                "frames": report.received,
                "stepped": report.stepped,
                "dropped": session.dropped.total(),
                "underruns": report.underruns,
            },
        )
        self.tell(session, Ended(session.lease, session.error))
        self._show(lambda observer: observer.session_ended(report))

    def ticked(self, report: TickReport) -> None:
        """A tick is over."""
        self._show(lambda observer: observer.tick_finished(report))

    def _show(self, show: Callable[[Observer], None]) -> None:
        try:
            show(self._observer)
        except Exception:
            logger.exception("the observer raised")


def _drop_shown(session: Session, frames: int, cause: DropCause) -> Callable[[Observer], None]:
    return lambda observer: observer.frames_dropped(session.lease, frames, cause)
