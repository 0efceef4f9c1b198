"""Everything of the engine that several threads touch, behind one lock.

The lock is held for microseconds and never while a runner works, so a lease is granted or refused at once while a tick
runs. Any thread makes the transitions that need no runner (FREE to LEASED, LEASED to PRIMING or back to FREE); all
others belong to the engine thread.
"""

import collections
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve_app.engine.events import DropCause, Sink
from serve_app.engine.limits import Limits
from serve_app.engine.schedule import Crowd
from serve_app.engine.session import Frame, Session
from serve_app.engine.slots import Lease, RowTable, SlotState, SlotTable
from serve_app.engine.stats import EngineStats, Tally
from serve_app.errors import ChorusError, EngineDraining, EngineFull, StaleLease
from serve_app.model.page_pool import PagePool
from serve_app.spec import SessionSpec
from serve_app.units import Slot


class Seats:
    """Slots, rows, sessions, the mailbox and the counters."""

    def __init__(
        self, slots: int, rows: int, limits: Limits, clock: Callable[[], float], pool: PagePool | None = None
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        # The engine thread waits on one of these. It sleeps through frames that change nothing about its next tick.
        self._work_came = threading.Condition(self._lock)
        self._hurry_came = threading.Condition(self._lock)
        self._table = SlotTable(slots, unopened_s=limits.unopened_s)
        self._rows = RowTable(rows, pool)
        self._sessions: dict[Slot, Session] = {}
        self._ready: dict[Slot, Session] = {}  # live sessions with a frame waiting
        self._starved: dict[Slot, Session] = {}  # the same, when there was no page for their next step
        # The mailbox: a session enters each queue once at most, so the slots bound both.
        self._opening: collections.deque[Session] = collections.deque()
        self._closing: collections.deque[Session] = collections.deque()
        self._priming: collections.deque[Session] = collections.deque()  # first come, first primed
        self._returning: collections.deque[Session] = collections.deque()
        self._tally = Tally()
        self._draining = False
        self._woken = False

    # --- any thread ---------------------------------------------------------------------------------------------------

    def acquire(self, spec: SessionSpec, prompt_steps: int = 0) -> Lease:
        """Lease a slot, the rows that the session needs and their first pages. Raises EngineFull, EngineDraining."""
        with self._lock:
            if self._draining:
                raise EngineDraining
            now_s = self._clock()
            self._expire(now_s)
            if not self._table.count(SlotState.FREE):
                raise EngineFull(self._table.slots)
            rows = self._rows.admit(spec.rows, prompt_steps, self._table.slots)
            lease = self._table.acquire(now_s)
            self._sessions[lease.slot] = session = Session(lease, spec, rows)
            session.prompt_steps = prompt_steps
            return lease

    def open(self, lease: Lease, sink: Sink) -> None:
        """Post the opening of a leased slot, or of a parked one that goes on. Raises StaleLease."""
        with self._lock:
            session = self._held(lease, SlotState.LEASED, SlotState.PARKED)
            if session is None or session.next_sink is not None:
                raise StaleLease(lease.slot, lease.generation)
            if session.sink is None:
                self._table.move(lease, SlotState.PRIMING)
                session.sink = sink
                self._opening.append(session)
            else:  # a step of before may be in flight, and what it says is not the new holder's
                session.next_sink = sink
                self._returning.append(session)
            self._work_came.notify_all()

    def park(self, lease: Lease, sink: Sink) -> bool:
        """Keep a live session for a holder that is gone; this sink hears what happens to it. False: there is none."""
        with self._lock:
            session = self._held(lease, SlotState.LIVE, SlotState.PARKED)
            if session is None:
                return False
            # Before the lease is renewed, ever: who reads the lease and then the sink, as the engine thread does, can
            # tell the old holder nothing under the new lease.
            session.sink, session.next_sink = sink, None
            session.last_push_s = None
            session.discard(DropCause.PARKED)
            if self._table.state(lease) is SlotState.LIVE:
                self._table.move(lease, SlotState.PARKED)
            self._stop_waiting(session)
            self._hurry_came.notify_all()  # nobody waits for its frames any more
            return True

    def retake(self, lease: Lease) -> Lease:
        """Lease a parked slot anew, to be opened. Raises StaleLease."""
        with self._lock:
            session = self._held(lease, SlotState.PARKED)
            if session is None or session.next_sink is not None:
                raise StaleLease(lease.slot, lease.generation)
            session.lease = self._table.renew(lease)
            return session.lease

    def push(self, lease: Lease, number: int, pcm: Any) -> None:
        """Queue a frame; the oldest goes when the inbox is full, a stale lease's is dropped and counted."""
        with self._lock:
            session = self._sessions.get(lease.slot)
            if (
                session is None
                or session.lease != lease
                or session.sink is None
                or session.closing
                or (session.next_sink is None and self._table.state(lease) is SlotState.PARKED)
            ):
                self._tally.stale_frames += 1
                return
            now_s = self._clock()
            if session.last_push_s is not None and now_s - session.last_push_s > self._limits.gap_s:
                session.underruns += 1
                self._tally.underruns += 1
            session.last_push_s = now_s
            session.push(Frame(number, pcm, now_s), self._limits.inbox_frames)
            comes_in = session.opened_s is None or session.next_sink is not None
            if not comes_in and session.error is None and lease.slot not in self._starved:
                self._ready[lease.slot] = session
                self._work_came.notify_all()
                if session.is_behind or self._complete():
                    self._hurry_came.notify_all()

    def close(self, lease: Lease) -> None:
        """Post the end of a session, or give back a slot that nobody opened. Idempotent."""
        with self._lock:
            session = self._sessions.get(lease.slot)
            if session is None or session.lease != lease or session.closing:
                return
            session.closing = True
            if session.sink is None:
                self._forget(session)
                return
            self._stop_waiting(session)
            self._stop_priming(session)
            self._closing.append(session)
            self._work_came.notify_all()

    def drain(self) -> None:
        """No new leases from now on."""
        with self._lock:
            self._draining = True

    @property
    def drained(self) -> bool:
        """Whether nobody may come and nobody is left."""
        with self._lock:
            return self._draining and not self._sessions

    def find(self, lease: Lease) -> Session | None:
        """The session that holds this lease now."""
        with self._lock:
            session = self._sessions.get(lease.slot)
            return session if session is not None and session.lease == lease else None

    def stats(self, *, healthy: bool, runner: Mapping[str, int]) -> EngineStats:
        """A snapshot of the counters; ``runner`` are the runner's. The lock is held to copy and not to compute."""
        with self._lock:
            recent = self._tally.recent()
            counted = functools.partial(
                EngineStats,
                slots=self._table.slots,
                free=self._table.count(SlotState.FREE),
                leased=self._table.count(SlotState.LEASED),
                live=self._table.count(SlotState.LIVE),
                priming=len(self._priming),
                parked=self._table.count(SlotState.PARKED),
                rows=self._rows.rows,
                rows_free=self._rows.free,
                draining=self._draining,
                healthy=healthy,
                pending_frames=sum(session.pending for session in self._sessions.values()),
                ticks=self._tally.ticks,
                steps=self._tally.steps,
                overruns=self._tally.overruns,
                underruns=self._tally.underruns,
                stale_frames=self._tally.stale_frames,
                dropped_frames=dict(self._tally.dropped),
                ended=dict(self._tally.ended),
                expired=self._tally.expired,
                primed_steps=self._tally.primed_steps,
                runner=dict(runner),
            )
        return counted(stage_ms=recent.percentiles(), rows_per_tick=recent.rows_per_tick())

    # --- waiting ------------------------------------------------------------------------------------------------------

    def crowd(self) -> Crowd:
        """Who is there now."""
        with self._lock:
            return Crowd(
                live=self._table.count(SlotState.LIVE),
                ready=len(self._ready),
                behind=self._behind(),
                chores=self._chores(),
            )

    def wait_for_work(self, timeout_s: float) -> bool:
        """Wait until a frame, an opening, a prompt or a closing is there, or ``wake``. Returns whether something is."""
        with self._lock:
            self._work_came.wait_for(lambda: self._woken or self._work(), timeout_s)
            return self._work()

    def wait_for_others(self, timeout_s: float) -> None:
        """Wait a little for more rows; cut short when every live session has a frame or one is behind."""
        with self._lock:
            self._hurry_came.wait_for(lambda: self._woken or self._complete() or self._behind(), timeout_s)

    def wake(self) -> None:
        """Make both waits return at once, for ever."""
        with self._lock:
            self._woken = True
            self._work_came.notify_all()
            self._hurry_came.notify_all()

    def _work(self) -> bool:
        return bool(self._ready) or self._chores()

    def _chores(self) -> bool:
        return bool(self._opening or self._closing or self._priming or self._returning)

    def _complete(self) -> bool:
        return len(self._ready) >= self._table.count(SlotState.LIVE) - len(self._starved)

    def _behind(self) -> bool:
        return any(session.is_behind for session in self._ready.values())

    # --- the engine thread --------------------------------------------------------------------------------------------

    def openings(self) -> list[Session]:
        """Whose rows are to be reset now; leases that nobody opened expire on the way."""
        with self._lock:
            self._expire(self._clock())
            opening = [session for session in self._opening if not session.closing]
            self._opening.clear()
            return opening

    def returns(self) -> list[Session]:
        """Whose new holders hear them from now on."""
        back = []
        with self._lock:
            while self._returning:
                session = self._returning.popleft()
                if session.next_sink is None or session.closing or session.error is not None:
                    continue
                session.sink, session.next_sink = session.next_sink, None
                self._table.move(session.lease, SlotState.LIVE)
                if session.inbox:
                    self._ready[session.lease.slot] = session
                back.append(session)
        return back

    def primes(self, session: Session) -> None:
        """The session's rows are reset: its prompt may be fed."""
        with self._lock:
            if not session.closing:
                self._priming.append(session)

    def next_to_prime(self) -> Session | None:
        """Whose prompt is to be fed now."""
        with self._lock:
            return self._priming[0] if self._priming else None

    @property
    def converses(self) -> bool:
        """Whether anybody is live."""
        with self._lock:
            return self._table.count(SlotState.LIVE) > 0

    def live(self, session: Session) -> None:
        """The session's rows are ready: it may step. What it said into its prompt is dropped."""
        with self._lock:
            self._stop_priming(session)
            if session.spec.prompt is not None:
                session.discard(DropCause.EARLY)
            session.opened_s = self._clock()
            self._table.move(session.lease, SlotState.LIVE)
            if session.inbox and not session.closing:
                self._ready[session.lease.slot] = session

    def take(self) -> list[tuple[Session, Frame]]:
        """One frame of every session that has one; those too far behind are cut first.

        Where pages are short, who came first is served first: the newest wait until somebody gives pages back. Their
        frames wait in their inboxes, under the bound that all frames have.
        """
        taken = []
        with self._lock:
            # Sessions lie in the order in which they came.
            for session in [session for session in self._sessions.values() if session.lease.slot in self._ready]:
                if not self._rows.draw(session.rows, session.prompt_steps + session.step + 1):
                    self._starved[session.lease.slot] = self._ready.pop(session.lease.slot)
                    continue
                session.cut(self._limits.lag_frames, self._limits.keep_frames)
                taken.append((session, session.take()))
                if not session.inbox:
                    del self._ready[session.lease.slot]
        return taken

    def landed(self, sessions: Sequence[Session]) -> None:
        """Their frames in flight were stepped."""
        with self._lock:
            for session in sessions:
                session.landed()

    def crashed(self, session: Session) -> None:
        """Its frame in flight is lost."""
        with self._lock:
            session.crashed()

    def fail(self, session: Session, error: ChorusError) -> bool:
        """Put the session out of the game. Returns False when it had failed before: its first error counts."""
        with self._lock:
            if session.error is not None:
                return False
            session.error = error
            self._stop_waiting(session)
            self._stop_priming(session)
            self._table.move(session.lease, SlotState.FAILED)
            return True

    def closings(self) -> list[Session]:
        """Who was closed by its holder and has not failed."""
        with self._lock:
            closed = [session for session in self._closing if session.error is None]
            self._closing.clear()
            for session in closed:
                self._table.move(session.lease, SlotState.DRAINING)
            return closed

    def end(self, session: Session, *, give_back: bool) -> None:
        """Forget the session, and give its slot back where that is safe."""
        with self._lock:
            session.discard()
            if session.next_sink is not None:  # it ends before it has gone on: its new holder is who has to know
                session.sink, session.next_sink = session.next_sink, None
            if give_back:
                self._table.move(session.lease, SlotState.FREE)
                self._give_back(session)
            del self._sessions[session.lease.slot]
            self._tally.ended[session.end_reason] += 1

    def evict(self) -> list[Session]:
        """Drain, forget who was never opened, and name everybody else."""
        with self._lock:
            self._draining = True
            for session in list(self._sessions.values()):
                if session.sink is None:
                    self._forget(session)
            return list(self._sessions.values())

    def unreported_drops(self, session: Session) -> Mapping[DropCause, int]:
        """What was dropped since the last call, counted on the way."""
        with self._lock:
            unreported = dict(session.unreported)
            session.unreported.clear()
            for cause, frames in unreported.items():
                self._tally.dropped[cause.value] += frames
            return unreported

    def count_tick(self, rows: int, stage_ms: Mapping[str, float], *, overrun: bool) -> None:
        """Count one turn of the batch."""
        with self._lock:
            self._tally.tick(rows, stage_ms, overrun=overrun)

    def count_primed(self, steps: int, spent_ms: float) -> None:
        """Count steps of a prompt that were fed in one turn."""
        with self._lock:
            self._tally.primed(steps, spent_ms)

    # --- under the lock -----------------------------------------------------------------------------------------------

    def _held(self, lease: Lease, *states: SlotState) -> Session | None:
        """The session of this lease, if it is in one of these states and not about to end."""
        session = self._sessions.get(lease.slot)
        if session is None or session.lease != lease or session.closing or self._table.state(lease) not in states:
            return None
        return session

    def _expire(self, now_s: float) -> None:
        for lease in self._table.expire(now_s):
            self._give_back(self._sessions.pop(lease.slot))
            self._tally.expired += 1

    def _forget(self, session: Session) -> None:
        self._table.move(session.lease, SlotState.FREE)
        self._give_back(session)
        del self._sessions[session.lease.slot]

    def _give_back(self, session: Session) -> None:
        """Take back the session's rows and pages, and let those try again who waited for pages."""
        self._rows.release(session.rows)
        if self._starved:
            self._ready.update(self._starved)
            self._starved.clear()
            self._work_came.notify_all()

    def _stop_waiting(self, session: Session) -> None:
        """It has no frame to step any more."""
        self._ready.pop(session.lease.slot, None)
        self._starved.pop(session.lease.slot, None)

    def _stop_priming(self, session: Session) -> None:
        if session in self._priming:
            self._priming.remove(session)
