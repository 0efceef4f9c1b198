"""What waits to be written on one connection, bounded by session and in all."""

import collections
import threading
from collections.abc import Iterable

from serve_app.link.codec import encode
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import Downward, Dropped, Frame, Key, Output, Upward


class _Lane:
    """One session's queue, oldest first."""

    def __init__(self) -> None:
        self.items: collections.deque[tuple[bytes, bool]] = collections.deque()  # bytes, may be dropped
        self.size_bytes = 0
        self.lost_frames = 0

    def drop_oldest(self) -> bool:
        """Drop the oldest frame; what opens and ends a session is never dropped."""
        for index, (data, droppable) in enumerate(self.items):
            if droppable:
                del self.items[index]
                self.size_bytes -= len(data)
                self.lost_frames += 1
                return True
        return False


class Outbox:
    """Encoded messages by session. Any thread may put, one thread takes.

    A session holds at most ``limits.session_bytes``; its oldest frame goes when a new message finds no room, and the
    next ``take`` says so. Messages of one session keep their order; sessions take turns. What opens and ends a session
    is never dropped: where such messages alone are too many, or all sessions together, the outbox breaks.
    """

    def __init__(self, limits: LinkLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._lanes: dict[Key, _Lane] = {}
        self._size_bytes = 0
        self._closed = False

    def put(self, messages: Iterable[Upward | Downward]) -> bool:
        """Queue messages; never blocks. Returns False when a bound is broken: everything is forgotten then.

        Raises LinkError for a field that does not fit, and queues nothing.
        """
        encoded = [(message, encode(message)) for message in messages]
        with self._lock:
            if self._closed:
                return True
            for message, data in encoded:
                if not self._queue(message, data):
                    self._forget()
                    return False
            return True

    def _queue(self, message: Upward | Downward, data: bytes) -> bool:
        lane = self._lanes.setdefault(message.key, _Lane())
        before_bytes = lane.size_bytes
        while lane.size_bytes + len(data) > self._limits.session_bytes and lane.drop_oldest():
            pass
        lane.items.append((data, isinstance(message, Frame | Output)))
        lane.size_bytes += len(data)
        self._size_bytes += lane.size_bytes - before_bytes
        return (
            lane.size_bytes <= self._limits.session_bytes
            and self._size_bytes <= self._limits.connection_bytes
            and len(self._lanes) <= self._limits.connection_sessions
        )

    def take(self, limit_bytes: int) -> tuple[bytes, list[Dropped]]:
        """About ``limit_bytes`` to write now, and which sessions lost frames since they were last taken from."""
        chunks: list[bytes] = []
        lost: list[Dropped] = []
        size_bytes = 0
        with self._lock:
            for key in list(self._lanes):
                if size_bytes >= limit_bytes:
                    break
                lane = self._lanes.pop(key)
                if lane.lost_frames:
                    lost.append(Dropped(key, lane.lost_frames, "outbox"))
                    lane.lost_frames = 0
                while lane.items and size_bytes < limit_bytes:
                    data, _ = lane.items.popleft()
                    lane.size_bytes -= len(data)
                    size_bytes += len(data)
                    chunks.append(data)
                if lane.items:
                    self._lanes[key] = lane  # at the end of the line
            self._size_bytes -= size_bytes
        return b"".join(chunks), lost

    @property
    def waiting_bytes(self) -> int:
        """What all sessions hold together."""
        with self._lock:
            return self._size_bytes

    def close(self) -> None:
        """Forget everything; what is put from now on vanishes."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._closed = True
        self._lanes.clear()
        self._size_bytes = 0

    def __len__(self) -> int:
        """How many sessions have something to write."""
        with self._lock:
            return len(self._lanes)
