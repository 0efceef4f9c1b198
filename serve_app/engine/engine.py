"""The engine: sessions in, ticks through a runner, events out. No Ray, no asyncio, no thread of its own.

Any thread may acquire, open, push, close, drain and read; those calls never wait for a tick. The engine thread alone
calls ``tick``: it alone touches the runner.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.events import Sink, Stepped
from serve_app.engine.herald import Herald
from serve_app.engine.limits import Limits
from serve_app.engine.observer import Observer, SilentObserver, TickReport
from serve_app.engine.pace import PrimingPace
from serve_app.engine.runner import Runner
from serve_app.engine.schedule import Crowd, StepTimes
from serve_app.engine.seats import Seats
from serve_app.engine.session import Frame, Session, checked_pcm
from serve_app.engine.slots import Lease
from serve_app.engine.stats import EngineStats
from serve_app.errors import ChorusError, EngineLost, NotFinite, SessionFault
from serve_app.spec import SessionSpec
from serve_app.units import StepNumber

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Row:
    """One row of a tick: whose it is, and the checked frame that goes in."""

    session: Session
    frame: Frame
    pcm: npt.NDArray[np.float32]


class Engine:
    """Many sessions, one batch.

    Args:
        runner: the model.
        limits: every bound.
        slots: conversations at once; None: as many as the runner has slots.
        clock: monotonic seconds; all times in events are on it.
        observer: told of ticks, ends and drops, on the engine thread.

    Attributes:
        step_times: what ticks of rows took. Engine thread.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        limits: Limits | None = None,
        slots: int | None = None,
        clock: Callable[[], float],
        observer: Observer | None = None,
    ) -> None:
        self.runner = runner
        self.limits = limits if limits is not None else Limits()
        self.clock = clock
        self.step_times = StepTimes()
        seats = slots if slots is not None else runner.slots
        self._seats = Seats(seats, runner.slots, self.limits, clock, runner.pool)
        self._pace = PrimingPace(self.limits.prime_share, self.limits.prime_alone_s, self.limits.prime_steps)
        self._herald = Herald(observer if observer is not None else SilentObserver())
        self._failed: list[Session] = []
        self._healthy = True
        self._broken = False  # a wipe failed: the device is not asked again
        self._run_failures = 0
        self._busy_since: float | None = None

    # --- any thread ---------------------------------------------------------------------------------------------------

    def acquire(self, spec: SessionSpec) -> Lease:
        """Lease a slot; it must be opened within ``limits.unopened_s``.

        Raises: ParameterRefused for what the runner does not offer; EngineFull when there is no slot or too few rows;
        EngineDraining; EngineLost when unhealthy.
        """
        prompt_steps = self.runner.check(spec)
        if not self._healthy:
            raise EngineLost
        return self._seats.acquire(spec, prompt_steps)

    def open(self, lease: Lease, sink: Sink) -> None:
        """Open the leased slot; the sink gets Opened once its rows are reset and its prompt is through.

        Frames may be pushed at once; those pushed into a prompt are dropped. A session that was parked goes on where it
        was, heard by this sink alone.

        Raises: StaleLease when the lease has expired, was closed, changed hands or is open already.
        """
        hash(sink)  # sinks are grouped by equality: an unhashable one must fail here and not in the tick
        self._seats.open(lease, sink)

    def park(self, lease: Lease, sink: Sink) -> bool:
        """Keep a session whose holder is gone: its state stays as it is, what waits is dropped, nothing is stepped.

        Args:
            lease: of a live session, or of one that was retaken and not opened.
            sink: told when it ends meanwhile; the old one hears nothing more.

        Returns:
            False where there is nothing to keep: it never became live, is ending or has ended.
        """
        hash(sink)
        return self._seats.park(lease, sink)

    def retake(self, lease: Lease) -> Lease:
        """Give a parked session into other hands: the lease to open it with; the old one is stale from now on.

        It may wait to be opened for as long as it could wait parked. Raises StaleLease when it is not parked.
        """
        return self._seats.retake(lease)

    def push(self, lease: Lease, number: int, pcm: Any) -> None:
        """Queue a frame, ``float32[1920]``, owned by the engine from now on. Never blocks and never raises.

        A full inbox drops its oldest frame. A stale lease's frame is dropped and counted. What the frame holds is
        checked on the engine thread and ends that session only.
        """
        self._seats.push(lease, number, pcm)

    def close(self, lease: Lease) -> None:
        """End a session; the sink gets Ended(None) last. Idempotent; a stale lease is nothing to close."""
        self._seats.close(lease)

    def drain(self) -> None:
        """No new leases from now on; what is leased goes on to its end."""
        self._seats.drain()

    @property
    def drained(self) -> bool:
        """Whether the engine drains and nobody is left."""
        return self._seats.drained

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
        return self._seats.stats(healthy=self._healthy, runner=self.runner.counters())

    # --- the engine thread --------------------------------------------------------------------------------------------

    def crowd(self) -> Crowd:
        """Who is there now."""
        return self._seats.crowd()

    def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until a frame, an opening, a prompt or a closing is there, or ``wake``. Returns whether something is."""
        return self._seats.wait_for_work(timeout_s)

    def wait_for_others(self, timeout_s: float) -> None:
        """Wait a little for more rows; cut short when every live session has a frame or one is behind."""
        self._seats.wait_for_others(timeout_s)

    def wake(self) -> None:
        """Make both waits return at once, for ever: the loop stops. Any thread."""
        self._seats.wake()

    def tick(self) -> int:
        """One turn: admit, gather, run, scatter, prime, retire. Returns how many rows were stepped.

        One bad session never ends a tick. Raises nothing but what the clock raises.
        """
        with self._stopwatch():
            self._admit()
            started_s = self.clock()
            rows = self._gather()
            result = self._run(rows)
            if result is not None:
                self._scatter(rows, result, started_s)
            if not rows or self._pace.due:
                self._prime()
            self._retire()
            return len(rows) if result is not None else 0

    def shut(self, error: ChorusError, *, healthy: bool = True) -> None:
        """End every session with this error and take no more: the loop has stopped."""
        self._healthy = self._healthy and healthy
        with self._stopwatch():
            for session in self._seats.evict():
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
        """Reset the rows of whoever was opened, and say so before the run: nobody waits for other people's step.

        Who comes back finds its rows as they were.
        """
        for session in self._seats.returns():
            self._herald.returned(session)
            self._report_drops(session)
        for session in self._seats.openings():
            try:
                prompt_steps = self.runner.open(session.row, session.spec, session.twin)
            except Exception:
                logger.exception("cannot open slot=%(slot)d", {"slot": session.lease.slot})
                self._fail(session, SessionFault("its slot could not be opened"))
                continue
            if prompt_steps:
                self._seats.primes(session)
            else:
                self._welcome(session)
        self._deliver()

    def _welcome(self, session: Session) -> None:
        """The session may converse."""
        self._seats.live(session)
        self._herald.opened(session)
        self._report_drops(session)

    def _prime(self) -> None:
        """Feed the longest waiting prompt some more: a bounded share of every turn, after everybody was answered."""
        session = self._seats.next_to_prime()
        if session is None:
            return
        alone, steps, began_s = not self._seats.converses, self._pace.steps(), self.clock()
        try:
            primed = self.runner.prime(session.row, steps)
        except Exception:
            logger.exception("cannot prime slot=%(slot)d", {"slot": session.lease.slot})
            self._fail(session, SessionFault("its prompt could not be fed"))
            return
        spent_s = self.clock() - began_s
        self._pace.primed(primed.steps, spent_s, alone=alone)
        self._seats.count_primed(primed.steps, 1_000 * spent_s)
        if not primed.finite:
            self._fail(session, NotFinite("a value of its prompt is not finite"))
        elif not primed.left_steps:
            self._welcome(session)
            self._deliver()

    def _gather(self) -> list[_Row]:
        """Take one frame of every session that has one, and refuse those that cannot be stepped.

        Sorted, because rows whose slots follow one another read their state in place.
        """
        rows = []
        for session, frame in sorted(self._seats.take(), key=lambda taken: taken[0].row):
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
            slots=np.array([row.session.row for row in rows], np.int64),
            steps=np.array([row.session.step for row in rows], np.int64),
            pcm=np.stack([row.pcm for row in rows]),  # [R, 1920]
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
        landed = []
        for index, row in enumerate(rows):
            session = row.session
            if not result.finite[index]:
                self._crash(session, NotFinite("a value of its row is not finite"))
                continue
            self._report_drops(session)
            self._herald.tell(session, _stepped(row, result, index, started_s, done_s))
            session.step += 1
            landed.append(session)
        self._seats.landed(landed)
        self._deliver()
        self._count_tick(rows, result.stage_ms, started_s)

    def _retire(self) -> None:
        """Give back the slots of whoever closed or failed. A failed slot is wiped first."""
        failed, self._failed = self._failed, []
        wiped = [self._wipe(session) for session in failed]  # all of them first: it may be what shows a broken device
        for session, clean in zip(failed, wiped, strict=True):
            if not self._healthy and type(session.error) is SessionFault:
                session.error = EngineLost()  # it was not the session's fault after all, and trying again helps
            self._end(session, give_back=clean)
        for session in self._seats.closings():
            self._end(session, give_back=True)
        self._deliver()

    # --- the end of a session -----------------------------------------------------------------------------------------

    def _crash(self, session: Session, error: ChorusError) -> None:
        """The session's frame in flight is lost, and the session with it."""
        self._seats.crashed(session)
        self._fail(session, error)

    def _fail(self, session: Session, error: ChorusError) -> None:
        """End a session at the next retire."""
        if self._seats.fail(session, error):
            self._failed.append(session)

    def _wipe(self, session: Session) -> bool:
        """Overwrite a failed slot. One that cannot be wiped is never given out again, nor is any after it."""
        if self._broken:
            return False
        try:
            for row in session.rows:
                self.runner.wipe(row)
        except Exception:
            logger.exception("cannot wipe slot=%(slot)d", {"slot": session.lease.slot})
            self._broken, self._healthy = True, False
            return False
        return True

    def _end(self, session: Session, *, give_back: bool) -> None:
        self._seats.end(session, give_back=give_back)
        self._report_drops(session)
        self._herald.ended(session, self.clock())

    # --- telling ------------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Deliver what was told; a sink that raises ends the sessions whose events it was given."""
        for session in self._herald.deliver():
            if self._seats.find(session.lease) is session:
                self._fail(session, SessionFault("its sink raised"))

    def _report_drops(self, session: Session) -> None:
        if session.unreported:
            self._herald.dropped(session, self._seats.unreported_drops(session))

    def _count_tick(self, rows: Sequence[_Row], stage_ms: Mapping[str, float], started_s: float) -> None:
        spent_s = self.clock() - started_s
        self._pace.ticked(spent_s)
        self.step_times.add(len(rows), spent_s)
        waited_s = started_s - min(row.frame.ready_s for row in rows)
        report = TickReport(
            started_s=started_s,
            rows=len(rows),
            stage_ms={**stage_ms, "tick": 1_000 * spent_s, "wait": 1_000 * waited_s},
            overrun=spent_s > self.limits.overrun_s,
        )
        self._seats.count_tick(report.rows, report.stage_ms, overrun=report.overrun)
        self._herald.ticked(report)


def _stepped(row: _Row, result: TickResult, index: int, started_s: float, done_s: float) -> Stepped:
    wanted = row.session.spec.extra_heads
    return Stepped(
        lease=row.session.lease,
        number=row.frame.number,
        step=StepNumber(row.session.step),
        text_token=int(result.text_token[index]),
        codes=result.codes[index],  # [K], a view: the arrays are this tick's own
        pcm=result.pcm[index] if result.audible[index] else None,  # [1920]
        ready_s=row.frame.ready_s,
        started_s=started_s,
        done_s=done_s,
        heads=result.heads[index].copy() if wanted and result.heads is not None else None,  # [H, C]
    )
