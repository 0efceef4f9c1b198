"""What waits to be written on one connection, bounded per session."""

import collections
import threading
from collections.abc import Iterable

from serve_app.link.codec import encode
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

    A session holds at most ``session_bytes`` of frames; its oldest frame goes when a new one finds no room, and the
    next ``take`` says so. Messages of one session keep their order; sessions take turns.
    """

    def __init__(self, session_bytes: int) -> None:
        self._session_bytes = session_bytes
        self._lock = threading.Lock()
        self._lanes: dict[Key, _Lane] = {}
        self._closed = False

    def put(self, messages: Iterable[Upward | Downward]) -> None:
        """Queue messages. Raises LinkError for a field that does not fit; nothing else, and never blocks."""
        encoded = [(message, encode(message)) for message in messages]
        with self._lock:
            if self._closed:
                return
            for message, data in encoded:
                lane = self._lanes.setdefault(message.key, _Lane())
                while lane.size_bytes + len(data) > self._session_bytes and lane.drop_oldest():
                    pass
                lane.items.append((data, isinstance(message, Frame | Output)))
                lane.size_bytes += len(data)

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
        return b"".join(chunks), lost

    @property
    def waiting_bytes(self) -> int:
        """What all sessions hold together."""
        with self._lock:
            return sum(lane.size_bytes for lane in self._lanes.values())

    def close(self) -> None:
        """Forget everything; what is put from now on vanishes."""
        with self._lock:
            self._closed = True
            self._lanes.clear()

    def __len__(self) -> int:
        """How many sessions have something to write."""
        with self._lock:
            return len(self._lanes)
