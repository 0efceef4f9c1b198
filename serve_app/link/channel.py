"""One session as the gateway sees it, over whichever link."""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from serve_app.errors import ChorusError, ShapeError
from serve_app.link.messages import Detach, Downward, Dropped, Ended, Frame, Key, Opened, Output, Upward
from serve_app.units import FRAME_SAMPLES

MAX_EVENTS: Final = 64

ChannelEvent = Output | Dropped | Ended


class Channel:
    """Frames up, events down. Belongs to one event loop; one reader.

    Attributes:
        sent_frames: handed to the link.
        late_frames: sent after the session had ended, and thrown away.
        dropped_outputs: outputs that this side threw away because its reader was slow.
    """

    def __init__(self, key: Key, transmit: Callable[[Upward], None], *, max_events: int = MAX_EVENTS) -> None:
        self.key = key
        self.sent_frames = 0
        self.late_frames = 0
        self.dropped_outputs = 0
        self._transmit = transmit
        self._max_events = max_events
        self._events: collections.deque[ChannelEvent] = collections.deque()
        self._unreported = 0
        self._arrived = asyncio.Event()
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended = False
        self._closing = False
        self._finished = False

    def send(self, number: int, pcm: npt.NDArray[np.float32]) -> None:
        """Send one frame, ``float32[1920]``. Never blocks: where the engine is slow its oldest frame goes, counted.

        Raises ShapeError. Nothing happens, but a count, once the session has ended.
        """
        if pcm.shape != (FRAME_SAMPLES,):
            raise ShapeError("frame", pcm.shape, f"[{FRAME_SAMPLES}]")
        if self._ended or self._closing:
            self.late_frames += 1
            return
        self.sent_frames += 1
        self._transmit(Frame(self.key, number, pcm))

    def close(self) -> None:
        """End the session; Ended follows. Idempotent."""
        if not (self._ended or self._closing):
            self._closing = True
            self._transmit(Detach(self.key))

    @property
    def ended(self) -> bool:
        """Whether Ended has arrived, read or not."""
        return self._ended

    def events(self) -> AsyncIterator[ChannelEvent]:
        """What comes down, until Ended, which is the last; ``Ended.error`` says why."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChannelEvent:
        if self._finished:
            raise StopAsyncIteration
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        if self._unreported:
            frames, self._unreported = self._unreported, 0
            return Dropped(self.key, frames, "reader")
        event = self._events.popleft()
        self._finished = isinstance(event, Ended)
        return event

    # --- for the link -------------------------------------------------------------------------------------------------

    def deliver(self, message: Downward) -> None:
        """Take one message. On the loop."""
        if self._ended:
            return
        match message:
            case Opened():
                if not self._opened.done():
                    self._opened.set_result(None)
                return
            case Ended():
                self._ended = True
                if not self._opened.done():
                    self._opened.cancel()
            case _:
                if len(self._events) >= self._max_events:
                    self._make_room()
        self._events.append(message)
        self._arrived.set()

    async def opened(self, timeout_s: float) -> None:
        """Wait for Opened. Raises the session's error when it ended instead, TimeoutError when neither came."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.wait({self._opened})
        except TimeoutError:
            self.close()
            raise
        if self._opened.cancelled():
            error = self._last_error()
            if error is not None:
                raise error

    def _last_error(self) -> ChorusError | None:
        last = self._events[-1]
        assert isinstance(last, Ended)
        return last.error

    def _make_room(self) -> None:
        """Drop the oldest event; outputs and reports of drops alike are counted and reported by one Dropped."""
        oldest = self._events.popleft()
        frames = oldest.frames if isinstance(oldest, Dropped) else 1
        self.dropped_outputs += frames
        self._unreported += frames
