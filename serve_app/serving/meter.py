"""What one gateway has carried: conversations, refusals and Opus in both directions."""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator

from serve_app.audio.opus import Traffic


class Meter:
    """Counters of one gateway process since its start. Belongs to one event loop."""

    def __init__(self) -> None:
        self.endings: collections.Counter[str] = collections.Counter()
        self.refusals: collections.Counter[str] = collections.Counter()
        self.told_to_go = 0
        self._live: dict[int, tuple[Traffic, Traffic]] = {}
        self._past = (Traffic(), Traffic())

    @contextlib.contextmanager
    def conversation(self, incoming: Traffic, outgoing: Traffic) -> Iterator[None]:
        """Count a conversation's traffic while it lives and after."""
        name = id(incoming)
        self._live[name] = (incoming, outgoing)
        try:
            yield
        finally:
            del self._live[name]
            for past, carried in zip(self._past, (incoming, outgoing), strict=True):
                past.add(carried.payload_bytes, carried.audio_s)

    def ended(self, cause: str) -> None:
        """A conversation is over."""
        self.endings[cause] += 1

    def refused(self, reason: str) -> None:
        """A visitor was turned away before the upgrade."""
        self.refusals[reason] += 1

    def tells_to_go(self) -> None:
        """A client is told that what carries it is replaced."""
        self.told_to_go += 1

    @property
    def conversations(self) -> int:
        """How many live now."""
        return len(self._live)

    @property
    def opus_in(self) -> Traffic:
        """What clients have sent lately, as far as it was heard."""
        return self._sum(0)

    @property
    def opus_out(self) -> Traffic:
        """What clients were sent lately."""
        return self._sum(1)

    def _sum(self, direction: int) -> Traffic:
        total = dataclasses.replace(self._past[direction])
        for both in self._live.values():
            total.payload_bytes += both[direction].payload_bytes
            total.audio_s += both[direction].audio_s
        return total
