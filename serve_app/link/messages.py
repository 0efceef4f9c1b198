"""What gateway and engine say to each other.

``(slot, generation)`` names a session on a connection. Up go Hello, Attach, Frame, Detach; down come Welcome, Opened,
Output, Dropped, Ended.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from serve_app.errors import (
    ChorusError,
    EngineDraining,
    EngineFull,
    EngineLost,
    NotFinite,
    SessionFault,
    SessionMoved,
    StaleLease,
)

VERSION: Final = 2
TOKEN_BYTES: Final = 16
MAX_CODES: Final = 256
MAX_HEADS: Final = 255
"""Extra heads, and classes of one."""


class Key(NamedTuple):
    """Which session a message is about."""

    slot: int
    generation: int


class _Compared:
    """Equality by field, arrays by their bytes, so that a NaN equals itself."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), *self._values()))

    def _values(self) -> tuple[object, ...]:
        values = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return tuple((value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value for value in values)


@dataclasses.dataclass(frozen=True, slots=True)
class Hello:
    """The gateway's first message. Its layout is the same in every version."""

    version: int = VERSION


@dataclasses.dataclass(frozen=True, slots=True)
class Welcome:
    """The engine's answer, also to a version that it then refuses by closing."""

    version: int = VERSION


@dataclasses.dataclass(frozen=True, slots=True)
class Attach:
    """Open the leased slot; the token is the grant's and good for one attempt.

    The token is here and not in Hello, because one connection carries many sessions, and each has a grant of its own. A
    connection without a good one can do nothing and is closed soon.
    """

    key: Key
    token: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Frame(_Compared):
    """One frame of the session's PCM, ``float32[1920]``, with the client's number."""

    key: Key
    number: int
    pcm: npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Detach:
    """The holder is done; Ended follows."""

    key: Key


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """The slot is primed."""

    key: Key


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Output(_Compared):
    """One step of the session.

    Attributes:
        number: the client's number of the frame that was consumed.
        step: absolute step of the row.
        text_token: -2 while the model's delay has not passed.
        ready_s, started_s, done_s: the engine's monotonic clock; only differences mean something elsewhere.
        codes: ``int16[K]``, K up to 256.
        pcm: ``float32[1920]``, or None while the model's delay has not passed.
        heads: ``float32[H, C]``, what the extra heads say; None unless the session asked. Up to 1,024 values.
    """

    key: Key
    number: int
    step: int
    text_token: int
    ready_s: float
    started_s: float
    done_s: float
    codes: npt.NDArray[np.int16]
    pcm: npt.NDArray[np.float32] | None
    heads: npt.NDArray[np.float32] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """Frames or outputs of the session that were thrown away, and why (overflow, lag, fault, outbox, ...)."""

    key: Key
    frames: int
    cause: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """The session's last message. An empty reason: its holder closed it."""

    key: Key
    reason: str = ""
    why: str = ""

    @classmethod
    def of(cls, key: Key, error: ChorusError | None) -> "Ended":
        """The message that carries this error."""
        if error is None:
            return cls(key)
        return cls(key, error.reason, getattr(error, "why", ""))

    @property
    def error(self) -> ChorusError | None:
        """The error again, typed; an unknown reason is a SessionFault."""
        if not self.reason:
            return None
        if self.reason == StaleLease.reason:
            return StaleLease(*self.key)
        make = _ERRORS.get(self.reason)
        return make(self) if make is not None else SessionFault(self.why or self.reason)


_ERRORS: Final[Mapping[str, Callable[[Ended], ChorusError]]] = {
    NotFinite.reason: lambda ended: NotFinite(ended.why),
    EngineLost.reason: lambda ended: EngineLost(),
    EngineDraining.reason: lambda ended: EngineDraining(),
    EngineFull.reason: lambda ended: EngineFull(0),
    SessionMoved.reason: lambda ended: SessionMoved(),
}

Upward = Attach | Frame | Detach
Downward = Opened | Output | Dropped | Ended
Message = Hello | Welcome | Upward | Downward

Sink = Callable[[Sequence[Downward]], None]
"""Takes messages from any thread, never blocks."""
