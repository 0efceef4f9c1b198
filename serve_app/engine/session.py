"""One conversation as the engine sees it: its lease, its inbox and its counters."""

import collections
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.engine.events import DropCause, Sink
from serve_app.engine.slots import Lease
from serve_app.errors import ChorusError, NotFinite, SessionFault
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A numbered 80 ms of PCM and when it arrived. The PCM is what the holder pushed: unchecked."""

    number: int
    pcm: Any
    ready_s: float


class Session:
    """A leased slot's holder. Touched only under the engine's lock, except ``step`` and ``error`` (engine thread).

    ``rows`` are the slots of the runner's state that it owns: its own, then its twin's under guidance.
    ``next_sink`` is of a holder that takes a parked session over, until the engine thread lets it speak.
    ``received == stepped + sum(dropped) + pending`` holds whenever the lock is free.
    """

    def __init__(self, lease: Lease, spec: SessionSpec, rows: tuple[Slot, ...]) -> None:
        self.lease = lease
        self.spec = spec
        self.rows = rows
        self.opened_s: float | None = None
        self.sink: Sink | None = None
        self.next_sink: Sink | None = None
        self.inbox: collections.deque[Frame] = collections.deque()
        self.step = 0
        self.prompt_steps = 0
        self.received = 0
        self.stepped = 0
        self.in_flight = 0
        self.dropped: collections.Counter[DropCause] = collections.Counter()
        self.unreported: collections.Counter[DropCause] = collections.Counter()
        self.underruns = 0
        self.last_push_s: float | None = None
        self.closing = False
        self.error: ChorusError | None = None

    @property
    def pending(self) -> int:
        """Frames that are neither stepped nor dropped yet."""
        return len(self.inbox) + self.in_flight

    @property
    def is_behind(self) -> bool:
        """Whether more waits than one tick takes: the next one is not to wait for others."""
        return len(self.inbox) > 1

    @property
    def end_reason(self) -> str:
        """Why it ended, as a slug."""
        return self.error.reason if self.error is not None else "closed"

    def push(self, frame: Frame, limit_frames: int) -> bool:
        """Queue a frame; the oldest goes when the inbox is full. Returns whether one was dropped."""
        self.received += 1
        full = len(self.inbox) >= limit_frames
        if full:
            self.inbox.popleft()
            self.drop(1, DropCause.OVERFLOW)
        self.inbox.append(frame)
        return full

    def cut(self, above_frames: int, keep_frames: int) -> int:
        """When more than ``above_frames`` wait, drop the oldest down to ``keep_frames``. Returns how many went."""
        if len(self.inbox) <= above_frames:
            return 0
        late = len(self.inbox) - keep_frames
        for _ in range(late):
            self.inbox.popleft()
        self.drop(late, DropCause.LAG)
        return late

    def take(self) -> Frame:
        """Move the oldest frame from the inbox into flight."""
        self.in_flight += 1
        return self.inbox.popleft()

    def landed(self) -> None:
        """The frame in flight was stepped."""
        self.in_flight -= 1
        self.stepped += 1

    def crashed(self) -> None:
        """The frame in flight is lost."""
        self.in_flight -= 1
        self.drop(1, DropCause.FAULT)

    @property
    def row(self) -> Slot:
        """The slot of the runner's state that steps it."""
        return self.rows[0]

    @property
    def twin(self) -> Slot | None:
        """The second one, under guidance."""
        return self.rows[1] if len(self.rows) > 1 else None

    def discard(self, cause: DropCause = DropCause.ENDED) -> int:
        """Drop everything that still waits. Returns how many went."""
        waiting = len(self.inbox)
        self.inbox.clear()
        self.drop(waiting, cause)
        return waiting

    def drop(self, frames: int, cause: DropCause) -> None:
        """Count frames as dropped."""
        if frames:
            self.dropped[cause] += frames
            self.unreported[cause] += frames


def checked_pcm(pcm: Any) -> npt.NDArray[np.float32]:
    """What a holder pushed, as one finite frame ``float32[1920]``.

    Raises:
        NotFinite: a sample is NaN or infinite.
        SessionFault: not numbers, or another length.
    """
    try:
        samples = np.asarray(pcm, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise SessionFault("a frame is not an array of numbers") from error
    if samples.shape != (FRAME_SAMPLES,):
        raise SessionFault(f"a frame has shape {list(samples.shape)}, want [{FRAME_SAMPLES}]")
    if not np.isfinite(samples).all():
        raise NotFinite("a sample of the input is not finite")
    return samples
