"""The engine behind the link's seam: keys for leases, messages for events, and word of every session's end."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import assert_never

import numpy as np
import numpy.typing as npt

from serve_app.engine import events
from serve_app.engine.engine import Engine
from serve_app.engine.slots import Lease
from serve_app.link import messages
from serve_app.link.messages import Key
from serve_app.units import Generation, Slot


class EngineOverLink:
    """An ``EnginePort`` over an ``Engine``.

    Args:
        engine: shared with its loop's thread.
        opened: told of every session that is opened, on the link's loop.
        ended: told of every session that ended, on the engine thread; must not block.
        lost: told of every session whose gateway is gone, on the link's loop; None ends them.
        heard: told of the first frame that comes to a session after each opening, on the link's loop.
    """

    def __init__(
        self,
        engine: Engine,
        opened: Callable[[Key], None],
        ended: Callable[[Key], None],
        lost: Callable[[Key], None] | None = None,
        heard: Callable[[Key], None] = lambda key: None,
    ) -> None:
        self._engine = engine
        self._opened = opened
        self._ended = ended
        self._lost = lost if lost is not None else self.close
        self._heard = heard
        self._unheard: dict[int, Key] = {}

    def open(self, key: Key, sink: messages.Sink) -> None:
        """Open the leased slot. Raises StaleLease."""
        self._engine.open(lease_of(key), _Translator(sink, self._ended))
        self._unheard[key.slot] = key
        self._opened(key)

    def push(self, key: Key, number: int, pcm: npt.NDArray[np.float32]) -> None:
        """Queue a frame, ``float32[1920]``."""
        self._engine.push(lease_of(key), number, pcm)
        if self._unheard.get(key.slot) == key:
            del self._unheard[key.slot]
            self._heard(key)

    def close(self, key: Key) -> None:
        """End the session. Idempotent."""
        self._engine.close(lease_of(key))

    def lose(self, key: Key) -> None:
        """Its gateway is gone without a word."""
        self._lost(key)

    def park(self, key: Key) -> bool:
        """Keep the session for a gateway that comes back; False where there is none to keep."""
        return self._engine.park(lease_of(key), _Translator(_nobody, self._ended))


def lease_of(key: Key) -> Lease:
    """The engine's name for a session."""
    return Lease(Slot(key.slot), Generation(key.generation))


def key_of(lease: Lease) -> Key:
    """The link's name for a session."""
    return Key(lease.slot, lease.generation)


@dataclasses.dataclass(frozen=True, slots=True)
class _Translator:
    """The engine's sink for one connection; equal to all others of that connection, so that they are called as one."""

    sink: messages.Sink
    ended: Callable[[Key], None] = dataclasses.field(compare=False)

    def __call__(self, happened: Sequence[events.Event]) -> None:
        self.sink([message_of(event) for event in happened])
        for event in happened:
            if isinstance(event, events.Ended):
                self.ended(key_of(event.lease))


def _nobody(said: Sequence[messages.Downward]) -> None:
    """Hears what a session says that no gateway holds."""


def message_of(event: events.Event) -> messages.Downward:
    """One event as the link says it."""
    key = key_of(event.lease)
    match event:
        case events.Stepped():
            return messages.Output(
                key,
                number=event.number,
                step=event.step,
                text_token=event.text_token,
                ready_s=event.ready_s,
                started_s=event.started_s,
                done_s=event.done_s,
                codes=event.codes,
                pcm=event.pcm,
                heads=event.heads,
            )
        case events.Opened():
            return messages.Opened(key)
        case events.Dropped():
            return messages.Dropped(key, event.frames, event.cause.value)
        case events.Ended():
            return messages.Ended.of(key, event.error)
        case _:
            assert_never(event)
