"""Stand-ins for the engine's surroundings."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.engine import Engine
from serve_app.engine.events import DropCause, Dropped, Ended, Event, Opened, Stepped
from serve_app.engine.limits import Limits
from serve_app.engine.observer import SessionReport, TickReport
from serve_app.engine.runner import Primed, RunnerInfo
from serve_app.engine.slots import Lease
from serve_app.errors import ParameterRefused
from serve_app.model.page_pool import PagePool
from serve_app.spec import Offer, Prompt, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot


class FakeClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class SummingRunner:
    """Each slot remembers the sum of the first samples it was given, so that foreign state shows in the output.

    A prompt is as many steps long as its text has letters, and 50 letters are too many. A guided session's twin adds
    its own sum, which is always 0, to what the session says.
    """

    def __init__(self, slots: int, delay_steps: int = 0, pool: PagePool | None = None) -> None:
        self._slots = slots
        self.pool = pool
        self._delay_steps = delay_steps
        self.sums = np.zeros(slots, np.float32)
        self.batches: list[list[int]] = []
        self.calls: list[str] = []
        self.poisoned: set[int] = set()
        self.before_run: Callable[[TickBatch], None] = lambda batch: None
        self.open_error: Exception | None = None
        self.wipe_error: Exception | None = None
        self.prime_error: Exception | None = None
        self.prime_finite = True
        self.before_prime: Callable[[Slot], None] = lambda slot: None
        self.twins: dict[int, int] = {}
        self.left: dict[int, int] = {}

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def offer(self) -> Offer:
        return Offer(guided=True, prompt_steps=50, voices=("anna",), extra_heads=2)

    def check(self, spec: SessionSpec) -> int:
        self.offer.check(spec)
        if spec.prompt is not None and len(spec.prompt.text) > self.offer.prompt_steps:
            raise ParameterRefused("text_prompt", spec.prompt.text, "longer than the context")
        return len(spec.prompt.text) if spec.prompt is not None else 0

    def open(self, slot: Slot, spec: SessionSpec, twin: Slot | None = None) -> int:
        self.calls.append(f"open {slot}" if twin is None else f"open {slot} and {twin}")
        if self.open_error is not None:
            raise self.open_error
        self.sums[slot] *= 0  # as a model that resets by multiplying would: a NaN survives it
        self.twins.pop(slot, None)
        if twin is not None:
            self.twins[slot] = twin
            self.sums[twin] *= 0
        self.left[slot] = len(spec.prompt.text) if spec.prompt is not None else 0
        return self.left[slot]

    def prime(self, slot: Slot, steps: int) -> Primed:
        self.calls.append(f"prime {slot}")
        self.before_prime(slot)
        if self.prime_error is not None:
            raise self.prime_error
        fed = min(steps, self.left[slot])
        self.left[slot] -= fed
        return Primed(fed, self.left[slot], self.prime_finite)

    def wipe(self, slot: Slot) -> None:
        self.calls.append(f"wipe {slot}")
        if self.wipe_error is not None:
            raise self.wipe_error
        self.sums[slot] = 0

    def run(self, batch: TickBatch) -> TickResult:
        self.batches.append([int(slot) for slot in batch.slots])
        self.before_run(batch)
        self.sums[batch.slots] += batch.pcm[:, 0]
        for slot in self.poisoned:
            self.sums[slot] = np.nan
        own = [int(slot) for slot in batch.slots]
        twins = [self.twins[slot] for slot in own if slot in self.twins]
        assert len({*own, *twins}) == len(own) + len(twins), "two sessions share a row"
        sums = self.sums[batch.slots] + np.array([self.sums[self.twins[s]] if s in self.twins else 0 for s in own])
        return TickResult(
            pcm=np.repeat(sums[:, None], FRAME_SAMPLES, axis=1).astype(np.float32),
            audible=batch.steps >= self._delay_steps,
            text_token=np.where(batch.steps >= self._delay_steps, 3, -2),
            codes=np.stack([batch.steps, batch.slots], axis=1).astype(np.int16),
            finite=np.asarray(np.isfinite(sums), np.bool_),
            stage_ms={"lm": 1.0},
            heads=np.repeat(sums[:, None, None], 2, axis=1).astype(np.float32),
        )

    def counters(self) -> Mapping[str, int]:
        return {"prefix_hits": 3}

    def describe(self) -> RunnerInfo:
        return RunnerInfo(model="sum", device="cpu", dtype="float32", state_bytes_per_slot=4, dep_q=2)


class Listener:
    """A sink that keeps what it is told; from any thread, with a bounded wait."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.calls = 0
        self.error: Exception | None = None
        self._changed = threading.Condition()

    def __call__(self, events: Sequence[Event]) -> None:
        with self._changed:
            self.calls += 1
            if self.error is not None:
                raise self.error
            self.events.extend(events)
            self._changed.notify_all()

    def wait_for(self, found: Callable[["Listener"], bool], timeout_s: float = 10.0) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: found(self), timeout_s)

    def opened(self, lease: Lease) -> bool:
        return Opened(lease) in self.events

    def steps(self, lease: Lease) -> list[Stepped]:
        return [event for event in self.events if isinstance(event, Stepped) and event.lease == lease]

    def sums(self, lease: Lease) -> list[float]:
        return [float(event.pcm[0]) for event in self.steps(lease) if event.pcm is not None]

    def drops(self, lease: Lease) -> list[tuple[int, DropCause]]:
        return [(e.frames, e.cause) for e in self.events if isinstance(e, Dropped) and e.lease == lease]

    def ends(self, lease: Lease) -> list[Ended]:
        return [event for event in self.events if isinstance(event, Ended) and event.lease == lease]


class ListObserver:
    """Keeps what the engine shows."""

    def __init__(self) -> None:
        self.ticks: list[TickReport] = []
        self.sessions: list[SessionReport] = []
        self.drops: list[tuple[Lease, int, DropCause]] = []

    def tick_finished(self, report: TickReport) -> None:
        self.ticks.append(report)

    def session_ended(self, report: SessionReport) -> None:
        self.sessions.append(report)

    def frames_dropped(self, lease: Lease, frames: int, cause: DropCause) -> None:
        self.drops.append((lease, frames, cause))


class Bench:
    """An engine with everything around it faked; the test is its engine thread."""

    def __init__(
        self,
        slots: int = 4,
        *,
        rows: int | None = None,
        limits: Limits | None = None,
        delay_steps: int = 0,
        pool: PagePool | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.runner = SummingRunner(rows if rows is not None else slots, delay_steps, pool)
        self.observer = ListObserver()
        self.engine = Engine(self.runner, limits=limits, slots=slots, clock=self.clock, observer=self.observer)
        self.listener = Listener()

    def acquire(self, spec: SessionSpec | None = None) -> Lease:
        return self.engine.acquire(spec if spec is not None else SessionSpec())

    def open(self, listener: Listener | None = None, spec: SessionSpec | None = None) -> Lease:
        """A live session, or one whose prompt is being fed."""
        lease = self.acquire(spec)
        self.engine.open(lease, listener if listener is not None else self.listener)
        self.engine.tick()
        return lease

    def push(self, lease: Lease, value: float, number: int = 0) -> None:
        self.engine.push(lease, number, frame(value))


GUIDED: Final = SessionSpec(guidance=2.0)


def prompted(steps: int) -> SessionSpec:
    """A session with a prompt of so many steps."""
    return SessionSpec(prompt=Prompt(text="a" * steps))


def frame(value: float) -> npt.NDArray[np.float32]:
    return np.full(FRAME_SAMPLES, value, np.float32)
