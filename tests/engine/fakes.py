"""Stand-ins for the engine's surroundings."""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.engine import Engine
from serve_app.engine.events import DropCause, Dropped, Ended, Event, Opened, Stepped
from serve_app.engine.limits import Limits
from serve_app.engine.observer import SessionReport, TickReport
from serve_app.engine.runner import RunnerInfo
from serve_app.engine.slots import Lease
from serve_app.spec import Sampling, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot


class FakeClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class SummingRunner:
    """Each slot remembers the sum of the first samples it was given, so that foreign state shows in the output."""

    def __init__(self, slots: int, delay_steps: int = 0) -> None:
        self._slots = slots
        self._delay_steps = delay_steps
        self.sums = np.zeros(slots, np.float32)
        self.batches: list[list[int]] = []
        self.calls: list[str] = []
        self.poisoned: set[int] = set()
        self.before_run: Callable[[TickBatch], None] = lambda batch: None
        self.open_error: Exception | None = None
        self.wipe_error: Exception | None = None

    @property
    def slots(self) -> int:
        return self._slots

    def open(self, slot: Slot, sampling: Sampling) -> None:
        self.calls.append(f"open {slot}")
        if self.open_error is not None:
            raise self.open_error
        self.sums[slot] *= 0  # as a model that resets by multiplying would: a NaN survives it

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
        sums = self.sums[batch.slots]
        return TickResult(
            pcm=np.repeat(sums[:, None], FRAME_SAMPLES, axis=1),
            audible=batch.steps >= self._delay_steps,
            text_token=np.where(batch.steps >= self._delay_steps, 3, -2),
            codes=np.stack([batch.steps, batch.slots], axis=1).astype(np.int16),
            finite=np.asarray(np.isfinite(sums), np.bool_),
            stage_ms={"lm": 1.0},
        )

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

    def __init__(self, slots: int = 4, *, limits: Limits | None = None, delay_steps: int = 0) -> None:
        self.clock = FakeClock()
        self.runner = SummingRunner(slots, delay_steps)
        self.observer = ListObserver()
        self.engine = Engine(self.runner, limits=limits, clock=self.clock, observer=self.observer)
        self.listener = Listener()

    def acquire(self) -> Lease:
        return self.engine.acquire(SessionSpec())

    def open(self, listener: Listener | None = None) -> Lease:
        """A live session."""
        lease = self.acquire()
        self.engine.open(lease, listener if listener is not None else self.listener)
        self.engine.tick()
        return lease

    def push(self, lease: Lease, value: float, number: int = 0) -> None:
        self.engine.push(lease, number, frame(value))


def frame(value: float) -> npt.NDArray[np.float32]:
    return np.full(FRAME_SAMPLES, value, np.float32)
