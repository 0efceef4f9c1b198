"""The engine: sessions in, ticks through a runner, events out. No Ray, no asyncio, no thread of its own.

Any thread may acquire, open, push, close, drain and read. Those calls hold one lock for microseconds and never wait
for a tick. The engine thread alone calls ``tick``: it alone touches the runner, and it alone makes the transitions that
need the runner; the two that need none (FREE to LEASED, LEASED to PRIMING or back) are made under the lock by whoever
asks, so that a lease is granted and refused at once while a tick runs.
"""

import collections
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.events import DropCause, Dropped, Ended, Event, Opened, Sink, Stepped
from serve_app.engine.limits import Limits
from serve_app.engine.observer import Observer, SessionReport, SilentObserver, TickReport
from serve_app.engine.runner import Runner
from serve_app.engine.session import Frame, Session, checked_pcm
from serve_app.engine.slots import Lease, SlotState, SlotTable
from serve_app.engine.stats import EngineStats, Tally
from serve_app.errors import (
    ChorusError,
    EngineDraining,
    EngineLost,
    NotFinite,
    ParameterRefused,
    SessionFault,
    StaleLease,
)
from serve_app.spec import SessionSpec
from serve_app.units import Slot, StepNumber

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One row of a tick: whose it is, and the checked frame that goes in."""

    session: Session
    frame: Frame
    pcm: npt.NDArray[np.float32]


class _Outbox:
    """The events of one moment, by sink."""

    def __init__(self) -> None:
        self.by_sink: dict[Sink, list[Event]] = {}

    def add(self, session: Session, event: Event) -> None:
        if session.sink is not None:
            self.by_sink.setdefault(session.sink, []).append(event)


class Engine:
    """Many sessions, one batch.

    Args:
        runner: the model.
        limits: every bound.
        clock: monotonic seconds; all times in events are on it.
        observer: told of ticks, ends and drops, on the engine thread.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float],
        observer: Observer | None = None,
    ) -> None:
        self.runner = runner
        self.limits = limits if limits is not None else Limits()
        self.clock = clock
        self._observer: Observer = observer if observer is not None else SilentObserver()
        self._changed = threading.Condition(threading.Lock())
        self._table = SlotTable(runner.slots, unopened_s=self.limits.unopened_s)
        self._sessions: dict[Slot, Session] = {}
        self._ready: dict[Slot, Session] = {}  # live sessions with a frame waiting
        # The mailbox: a session enters each queue once at most, so the slots bound both.
        self._opening: collections.deque[Session] = collections.deque()
        self._closing: collections.deque[Session] = collections.deque()
        self._failed: list[Session] = []  # engine thread only
        self._tally = Tally()
        self._draining = False
        self._healthy = True
        self._woken = False
        self._run_failures = 0
        self._busy_since: float | None = None

    # --- any thread ---------------------------------------------------------------------------------------------------

    def acquire(self, spec: SessionSpec) -> Lease:
        """Lease a slot; it must be opened within ``limits.unopened_s``.

        Raises: EngineFull; EngineDraining; EngineLost when unhealthy; ParameterRefused for a session of several rows.
        """
        if spec.rows != 1:
            raise ParameterRefused("rows", spec.rows, "sessions that own several rows are not built")
        with self._changed:
            if not self._healthy:
                raise EngineLost
            if self._draining:
                raise EngineDraining
            now_s = self.clock()
            self._expire(now_s)
            lease = self._table.acquire(now_s)
            self._sessions[lease.slot] = Session(lease, spec, now_s)
            return lease

    def open(self, lease: Lease, sink: Sink) -> None:
        """Open the leased slot; the sink gets Opened once its rows are reset. Frames may be pushed at once.

        Raises: StaleLease when the lease has expired, was closed or is open already.
        """
        hash(sink)  # sinks are grouped by equality: an unhashable one must fail here and not in the tick
        with self._changed:
            session = self._sessions.get(lease.slot)
            if session is None or session.lease != lease or self._table.state(lease) is not SlotState.LEASED:
                raise StaleLease(lease.slot, lease.generation)
            self._table.move(lease, SlotState.PRIMING)
            session.sink = sink
            self._opening.append(session)
            self._changed.notify_all()

    def push(self, lease: Lease, number: int, pcm: Any) -> None:
        """Queue a frame, ``float32[1920]``, owned by the engine from now on. Never blocks and never raises.

        A full inbox drops its oldest frame. A stale lease's frame is dropped and counted. What the frame holds is
        checked on the engine thread and ends that session only.
        """
        with self._changed:
            session = self._sessions.get(lease.slot)
            if session is None or session.lease != lease or session.sink is None or session.closing:
                self._tally.stale_frames += 1
                return
            now_s = self.clock()
            if session.last_push_s is not None and now_s - session.last_push_s > self.limits.gap_s:
                session.underruns += 1
                self._tally.underruns += 1
            session.last_push_s = now_s
            session.push(Frame(number, pcm, now_s), self.limits.inbox_frames)
            if session.opened_s is not None and session.error is None:
                self._ready[lease.slot] = session
                self._changed.notify_all()

    def close(self, lease: Lease) -> None:
        """End a session; the sink gets Ended(None) last. Idempotent; a stale lease is nothing to close."""
        with self._changed:
            session = self._sessions.get(lease.slot)
            if session is None or session.lease != lease or session.closing:
                return
            session.closing = True
            if session.sink is None:
                self._table.move(lease, SlotState.FREE)
                del self._sessions[lease.slot]
                return
            self._ready.pop(lease.slot, None)
            self._closing.append(session)
            self._changed.notify_all()

    def drain(self) -> None:
        """No new leases from now on; what is leased goes on to its end."""
        with self._changed:
            self._draining = True

    @property
    def drained(self) -> bool:
        """Whether the engine drains and nobody is left."""
        with self._changed:
            return self._draining and not self._sessions

    @property
    def healthy(self) -> bool:
        """False after too many failed runs in a row, a failed wipe or a crash of the loop. Never true again."""
        return self._healthy

    @property
    def busy_since(self) -> float | None:
        """When the running tick began, on the engine's clock; None between ticks. For the watchdog."""
        return self._busy_since

    def stats(self) -> EngineStats:
        """A snapshot of the counters."""
        with self._changed:
            return EngineStats(
                slots=self._table.slots,
                free=self._table.count(SlotState.FREE),
                leased=self._table.count(SlotState.LEASED),
                live=self._table.count(SlotState.LIVE),
                draining=self._draining,
                healthy=self._healthy,
                pending_frames=sum(session.pending for session in self._sessions.values()),
                ticks=self._tally.ticks,
                steps=self._tally.steps,
                overruns=self._tally.overruns,
                underruns=self._tally.underruns,
                stale_frames=self._tally.stale_frames,
                dropped_frames=dict(self._tally.dropped),
                ended=dict(self._tally.ended),
                expired=self._tally.expired,
                stage_ms=self._tally.percentiles(),
                rows_per_tick=self._tally.rows_per_tick(),
            )

    # --- waiting, for the loop ----------------------------------------------------------------------------------------

    def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until a frame, an opening or a closing is there, or somebody wakes. Returns whether something is."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._work(), timeout_s)
            return self._work()

    def wait_for_others(self, timeout_s: float) -> None:
        """Wait a little for more rows; cut short when every live session has a frame or one is behind."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._complete() or self._behind(), timeout_s)

    def wake(self) -> None:
        """Make both waits return at once, for ever: the loop stops."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def _work(self) -> bool:
        return bool(self._ready or self._opening or self._closing)

    def _complete(self) -> bool:
        return len(self._ready) >= self._table.count(SlotState.LIVE)

    def _behind(self) -> bool:
        return any(len(session.inbox) > self.limits.keep_frames for session in self._ready.values())

    # --- the engine thread --------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """One turn: admit, gather, run, scatter, retire. Returns how many rows were stepped.

        One bad session never ends a tick. Raises nothing but what the clock raises.
        """
        with self._stopwatch():
            self._admit()
            started_s = self.clock()
            rows = self._gather()
            result = self._run(rows)
            if result is not None:
                self._scatter(rows, result, started_s)
            self._retire()
            return len(rows) if result is not None else 0

    def shut(self, error: ChorusError, *, healthy: bool = True) -> None:
        """End every session with this error and take no more: the loop has stopped. Engine thread."""
        with self._changed:
            self._draining = True
            self._healthy = self._healthy and healthy
            for session in list(self._sessions.values()):
                if session.sink is None:
                    self._table.move(session.lease, SlotState.FREE)
                    del self._sessions[session.lease.slot]
            remaining = list(self._sessions.values())
        for session in remaining:
            self._fail(session, error)
        self._retire()

    @contextlib.contextmanager
    def _stopwatch(self) -> Iterator[None]:
        self._busy_since = self.clock()
        try:
            yield
        finally:
            self._busy_since = None

    def _admit(self) -> None:
        """Reset the rows of whoever was opened; expire whoever was not."""
        with self._changed:
            now_s = self.clock()
            self._expire(now_s)
            opening = [session for session in self._opening if not session.closing]
            self._opening.clear()
        outbox = _Outbox()
        for session in opening:
            try:
                self.runner.open(session.lease.slot, session.spec.sampling)
            except Exception:
                logger.exception("cannot open slot=%d", session.lease.slot)
                self._fail(session, SessionFault("its slot could not be opened"))
                continue
            with self._changed:
                session.opened_s = now_s
                self._table.move(session.lease, SlotState.LIVE)
                if session.inbox and not session.closing:
                    self._ready[session.lease.slot] = session
            logger.info(
                "session start slot=%d generation=%d tenant=%s",
                session.lease.slot,
                session.lease.generation,
                session.spec.tenant,
            )
            outbox.add(session, Opened(session.lease))
        self._deliver(outbox)

    def _gather(self) -> list[_Row]:
        """Take one frame of every session that has one, and refuse those that cannot be stepped."""
        taken: list[tuple[Session, Frame]] = []
        with self._changed:
            for session in list(self._ready.values()):
                session.cut(self.limits.lag_frames, self.limits.keep_frames)
                taken.append((session, session.take()))
                if not session.inbox:
                    del self._ready[session.lease.slot]
        rows = []
        for session, frame in taken:
            try:
                rows.append(_Row(session, frame, checked_pcm(frame.pcm)))
            except SessionFault as error:
                self._crash(session, error)
        return rows

    def _run(self, rows: Sequence[_Row]) -> TickResult | None:
        """Run the rows at once. None when there are none or the runner raised.

        A runner that raises says nothing about whose fault it was, and its state may be half written: all rows of that
        tick end, their slots are wiped and the engine goes on. Bisecting would step the innocent rows twice.
        """
        if not rows:
            return None
        batch = TickBatch(
            slots=np.array([row.session.lease.slot for row in rows], np.int64),
            steps=np.array([row.session.step for row in rows], np.int64),
            pcm=np.stack([row.pcm for row in rows]),
        )
        try:
            result = self.runner.run(batch)
        except Exception:
            self._run_failures += 1
            logger.exception("a tick of %d rows failed, %d in a row", len(rows), self._run_failures)
            for row in rows:
                self._crash(row.session, SessionFault("the step failed"))
            if self._run_failures >= self.limits.run_failures:
                self._healthy = False
            return None
        self._run_failures = 0
        return result

    def _scatter(self, rows: Sequence[_Row], result: TickResult, started_s: float) -> None:
        """Give every row its output; end those whose values are not finite."""
        done_s = self.clock()
        outbox = _Outbox()
        for index, row in enumerate(rows):
            session = row.session
            if not result.finite[index]:
                self._crash(session, NotFinite("a value of its row is not finite"))
                continue
            self._report_drops(session, outbox)
            outbox.add(session, _stepped(row, result, index, started_s, done_s))
            session.step += 1
            with self._changed:
                session.landed()
        self._deliver(outbox)
        self._count_tick(rows, result.stage_ms, started_s)

    def _retire(self) -> None:
        """Give back the slots of whoever closed or failed. A failed slot is wiped first."""
        with self._changed:
            closed = [session for session in self._closing if session.error is None]
            self._closing.clear()
            for session in closed:
                self._table.move(session.lease, SlotState.DRAINING)
        failed, self._failed = self._failed, []
        outbox = _Outbox()
        for session in failed:
            self._end(session, outbox, give_back=self._wipe(session))
        for session in closed:
            self._end(session, outbox, give_back=True)
        self._deliver(outbox)

    # --- the end of a session -----------------------------------------------------------------------------------------

    def _crash(self, session: Session, error: ChorusError) -> None:
        """The session's frame in flight is lost, and the session with it."""
        with self._changed:
            session.crashed()
        self._fail(session, error)

    def _fail(self, session: Session, error: ChorusError) -> None:
        """End a session at the next retire; its first error counts."""
        with self._changed:
            if session.error is not None:
                return
            session.error = error
            self._ready.pop(session.lease.slot, None)
            self._table.move(session.lease, SlotState.FAILED)
        self._failed.append(session)

    def _wipe(self, session: Session) -> bool:
        """Overwrite a failed slot. One that cannot be wiped is never given out again."""
        try:
            self.runner.wipe(session.lease.slot)
        except Exception:
            logger.exception("cannot wipe slot=%d", session.lease.slot)
            self._healthy = False
            return False
        return True

    def _end(self, session: Session, outbox: _Outbox, *, give_back: bool) -> None:
        """Forget the session, give its slot back and say so: event, counters, observer, one log line."""
        with self._changed:
            session.discard()
            if give_back:
                self._table.move(session.lease, SlotState.FREE)
            del self._sessions[session.lease.slot]
            reason = session.error.reason if session.error is not None else "closed"
            self._tally.ended[reason] += 1
        self._report_drops(session, outbox)
        outbox.add(session, Ended(session.lease, session.error))
        opened_s = session.opened_s if session.opened_s is not None else self.clock()
        report = SessionReport(
            lease=session.lease,
            duration_s=self.clock() - opened_s,
            received=session.received,
            stepped=session.stepped,
            dropped=dict(session.dropped),
            underruns=session.underruns,
            error=session.error,
        )
        logger.info(
            "session end slot=%d generation=%d cause=%s duration_s=%.2f frames=%d stepped=%d dropped=%d underruns=%d",
            session.lease.slot,
            session.lease.generation,
            reason,
            report.duration_s,
            report.received,
            report.stepped,
            session.dropped.total(),
            report.underruns,
        )
        self._observe(lambda observer: observer.session_ended(report))

    def _expire(self, now_s: float) -> None:
        """Forget leases that nobody opened. Under the lock."""
        for lease in self._table.expire(now_s):
            del self._sessions[lease.slot]
            self._tally.expired += 1

    # --- telling ------------------------------------------------------------------------------------------------------

    def _deliver(self, outbox: _Outbox) -> None:
        """Call each sink once. One that raises ends the sessions whose events it was given."""
        for sink, events in outbox.by_sink.items():
            try:
                sink(events)
            except Exception:
                logger.exception("a sink raised on %d events", len(events))
                for event in events:
                    session = self._sessions.get(event.lease.slot)
                    if session is not None and session.lease == event.lease:
                        self._fail(session, SessionFault("its sink raised"))

    def _report_drops(self, session: Session, outbox: _Outbox) -> None:
        """Say which frames were dropped since the last report."""
        if not session.unreported:
            return
        with self._changed:
            unreported = dict(session.unreported)
            session.unreported.clear()
            for cause, frames in unreported.items():
                self._tally.dropped[cause.value] += frames
        for cause, frames in unreported.items():
            if cause is not DropCause.ENDED:  # whoever ended it need not be told what was left
                outbox.add(session, Dropped(session.lease, frames, cause))
            self._observe(_drop_told(session.lease, frames, cause))

    def _count_tick(self, rows: Sequence[_Row], stage_ms: Mapping[str, float], started_s: float) -> None:
        spent_s = self.clock() - started_s
        waited_s = started_s - min(row.frame.ready_s for row in rows)
        report = TickReport(
            rows=len(rows),
            stage_ms={**stage_ms, "tick": 1_000 * spent_s, "wait": 1_000 * waited_s},
            overrun=spent_s > self.limits.overrun_s,
        )
        with self._changed:
            self._tally.tick(report.rows, report.stage_ms, overrun=report.overrun)
        self._observe(lambda observer: observer.tick_finished(report))

    def _observe(self, tell: Callable[[Observer], None]) -> None:
        try:
            tell(self._observer)
        except Exception:
            logger.exception("the observer raised")


def _drop_told(lease: Lease, frames: int, cause: DropCause) -> Callable[[Observer], None]:
    return lambda observer: observer.frames_dropped(lease, frames, cause)


def _stepped(row: _Row, result: TickResult, index: int, started_s: float, done_s: float) -> Stepped:
    return Stepped(
        lease=row.session.lease,
        number=row.frame.number,
        step=StepNumber(row.session.step),
        text_token=int(result.text_token[index]),
        codes=result.codes[index].astype(np.int16, copy=True),  # [K]
        pcm=result.pcm[index].astype(np.float32, copy=True) if result.audible[index] else None,  # [1920]
        ready_s=row.frame.ready_s,
        started_s=started_s,
        done_s=done_s,
    )
