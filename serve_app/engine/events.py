"""What the engine tells the holder of a lease."""

import dataclasses
import enum
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from serve_app.engine.slots import Lease
from serve_app.errors import ChorusError
from serve_app.units import StepNumber


class DropCause(enum.Enum):
    """Why frames were thrown away instead of stepped."""

    OVERFLOW = "overflow"  # the inbox was full
    LAG = "lag"  # more than the allowed lag was waiting
    ENDED = "ended"  # still waiting when the session ended
    FAULT = "fault"  # taken by the tick that failed
    EARLY = "early"  # came before the prompt was through
    PARKED = "parked"  # still waiting when the holder was lost


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """The slot is primed, its prompt is through; frames are stepped from now on, also after a change of hands."""

    lease: Lease


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """One step of one session.

    Attributes:
        number: the client's number of the frame that went in.
        step: absolute step of the row, from 0.
        text_token: -2 while the model's delay has not passed.
        codes: ``int16[K]``, what the model says this step; owned by the receiver.
        pcm: ``float32[1920]``, owned by the receiver; None while the model's delay has not passed.
        ready_s, started_s, done_s: the engine's clock when the frame arrived, its tick began and its tick ended.
        heads: ``float32[H, C]``, owned by the receiver, what the extra heads say; None unless the session asked.
    """

    lease: Lease
    number: int
    step: StepNumber
    text_token: int
    codes: npt.NDArray[np.int16]
    pcm: npt.NDArray[np.float32] | None
    ready_s: float
    started_s: float
    done_s: float
    heads: npt.NDArray[np.float32] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """Frames of this session that were thrown away since the last report."""

    lease: Lease
    frames: int
    cause: DropCause


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a session. ``error`` is None when its holder closed it."""

    lease: Lease
    error: ChorusError | None


Event = Opened | Stepped | Dropped | Ended

Sink = Callable[[Sequence[Event]], None]
"""Called on the engine thread with the events of all sessions that share it (equal sinks are one sink): once when
sessions open, once after the run, once when sessions end. It must not block. If it raises, its sessions end."""
