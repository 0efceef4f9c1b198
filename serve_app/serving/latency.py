"""Where the time of one session's frames went, for a client that asked: once a second, by part.

Clocks of two machines cannot be compared, so every part is a difference on one clock. What lies between gateway and
engine is therefore one part, there and back: the gateway's round trip less what the engine had of it.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from serve_app.link.messages import Output

EVERY_S: Final = 1.0
MAX_FRAMES: Final = 256
"""On their way at a time; engines hold fewer of one session."""
DIGITS: Final = 2


@dataclasses.dataclass(slots=True)
class Spans:
    """One frame's time, in seconds; the parts before `total` add up to it.

    Attributes:
        receive: from the message that completed the frame to the link: parsing and decoding.
        link: to the engine and back, with whatever waits on either side of it.
        wait: for the tick, at the engine.
        tick: the step itself.
        send: from the link to the socket: encoding and writing.
        total: from the message that completed the frame to its answer on the socket.
    """

    receive: float
    link: float
    wait: float
    tick: float
    send: float = 0.0
    total: float = 0.0


PARTS: Final = tuple(field.name for field in dataclasses.fields(Spans))


class Latency:
    """Follows the frames of one connection. Belongs to one event loop.

    Args:
        clock: the gateway's monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard_s = clock()
        self._told_s = clock()
        self._sent: collections.deque[tuple[int, float, float]] = collections.deque(maxlen=MAX_FRAMES)
        self._spans: list[Spans] = []

    def heard(self) -> None:
        """A message has come from the client."""
        self._heard_s = self._clock()

    def sent(self, number: int) -> None:
        """A frame of that message goes to the engine."""
        self._sent.append((number, self._heard_s, self._clock()))

    def answered(self, output: Output) -> Callable[[], None]:
        """The engine's answer to a frame is here; call what comes back when the client has it."""
        back_s = self._clock()
        while self._sent and self._sent[0][0] < output.number:
            self._sent.popleft()  # dropped on the way: nothing to measure
        if not self._sent or self._sent[0][0] != output.number:
            return _nothing
        _, heard_s, sent_s = self._sent.popleft()
        spans = Spans(
            receive=sent_s - heard_s,
            link=max(0.0, (back_s - sent_s) - (output.done_s - output.ready_s)),
            wait=output.started_s - output.ready_s,
            tick=output.done_s - output.started_s,
        )

        def told() -> None:
            now_s = self._clock()
            spans.send, spans.total = now_s - back_s, now_s - heard_s
            self._spans.append(spans)

        return told

    def report(self) -> dict[str, Any] | None:
        """What to tell the client: the frames since the last report; None when there are none or it is too early."""
        now_s = self._clock()
        if not self._spans or now_s - self._told_s < EVERY_S:
            return None
        self._told_s = now_s
        spans, self._spans = self._spans, []
        parts = {part: _milliseconds([getattr(each, part) for each in spans]) for part in PARTS}
        return {"type": "latency", "frames": len(spans), "ms": parts}


def _milliseconds(values_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values_s)

    def at(share: float) -> float:
        return round(1_000 * ordered[math.ceil(share * len(ordered)) - 1], DIGITS)

    return {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)}


def _nothing() -> None:
    pass
