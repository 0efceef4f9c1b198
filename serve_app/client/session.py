"""One conversation with a server that speaks Kyutai's `/api/chat`."""

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, Self, assert_never

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidHandshake, InvalidStatus
from websockets.http11 import Response

from serve_app.audio.budget import AUDIO_RATE
from serve_app.audio.frames import FrameBuffer
from serve_app.audio.opus import OpusReceiver, OpusSender
from serve_app.budget import Budget
from serve_app.client.address import chat_url, with_parameter
from serve_app.client.events import PCM, Audio, Error, Event, Metadata, Place, Text, place_in
from serve_app.client.failures import (
    NotAllowed,
    RequestRefused,
    ServerFull,
    ServerGone,
    ServerUnreachable,
    UnexpectedServer,
)
from serve_app.client.returning import WayBack
from serve_app.client.round_trip import RoundTrips
from serve_app.errors import ChorusError, PeerError
from serve_app.spec import Sampling
from serve_app.wire import events as wire
from serve_app.wire.chat import ChatClient, ChatState
from serve_app.wire.messages import MAX_MESSAGE_BYTES

OPEN_TIMEOUT_S: Final = 20.0
"""Until the handshake byte: a slot is primed before it comes."""
CLOSE_TIMEOUT_S: Final = 2.0
TRY_AGAIN_CODE: Final = 1013
MAX_BURST_S: Final = 60.0
"""Sound that may come at once, after a stall of this side; servers are trusted with more than clients."""


class Session:
    """One conversation: PCM in, sound and text out, at the same time.

    Send at real-time pace: a server drops what comes faster. Keep iterating while sending, best in a task of its own:
    sound is decoded, and its arrival timed, when it is taken. Belongs to the event loop that opened it.

        async with Session.open("localhost:8998") as session:
            await session.send(pcm)  # float32[n] at 24 kHz mono, any n
            async for event in session:
                ...

    Attributes:
        round_trips: how long answers took.
        lost_frames: said while there was no connection, and not sent.
    """

    def __init__(
        self,
        connection: ClientConnection,
        address: str,
        clock: Callable[[], float],
        *,
        key: str | None = None,
        way_back: WayBack | None = None,
    ) -> None:
        self.round_trips = RoundTrips()
        self.lost_frames = 0
        self._address = address
        self._key = key
        self._way_back = way_back
        self._clock = clock
        self._frames = FrameBuffer()
        self._ready: deque[Event] = deque()
        self._said = ""
        self._away = False
        self._gone: ServerGone | None = None
        self._closing = False
        self._speaks_over(connection)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        sampling: Sampling | None = None,
        key: str | None = None,
        resumable: bool = False,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        waiting: Callable[[Place], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> AsyncIterator[Self]:
        """Open a session; it is live, its slot primed, when the block begins, and closed when the block ends.

        Args:
            url: address of the server; the path of the chat may be left out.
            sampling: None for the server's defaults.
            key: credential for servers that ask for one, sent as a bearer token.
            resumable: where the server allows it, come back to the session when the connection breaks, which whoever
                iterates does by itself: a Metadata ``{"resumed": {"away_s": ...}}`` tells of it. What was said and
                answered meanwhile is lost.
            open_timeout_s: for connecting and priming together; begins anew with every word about the queue.
            waiting: told the place in the queue, about once a second, while the server has no room.

        Raises:
            ServerFull: no room, with the reason and when to try again.
            ServerUnreachable: nobody answers there.
            RequestRefused, NotAllowed: before the upgrade.
            ServerGone: it closed before the session was live.
            UnexpectedServer: it speaks something else.
            ParameterRefused: ``url`` is not an address.
        """
        address = chat_url(url, sampling)
        if resumable:
            address = with_parameter(address, "resumable", "1")
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + open_timeout_s
        connection = await _connect(address, key, open_timeout_s)
        try:
            session = cls(connection, address, clock, key=key, way_back=WayBack() if resumable else None)
            try:
                async with asyncio.timeout_at(deadline_s) as limit:
                    async for place in session._await_handshake():
                        limit.reschedule(loop.time() + open_timeout_s)
                        if waiting is not None:
                            waiting(place)
            except TimeoutError:
                raise ServerUnreachable(address, f"no handshake within {open_timeout_s:g} s") from None
            try:
                yield session
            finally:
                await session.close()
        finally:
            await connection.close()

    async def send(self, pcm: PCM) -> None:
        """Send sound: ``pcm float32[n]``, any length; leaves when a frame of 1,920 samples is full.

        Raises:
            ServerGone: the connection has ended.
        """
        for frame in self._frames.push(np.ascontiguousarray(pcm, dtype=np.float32)):
            if self._gone is not None:
                raise self._gone
            if self._away:
                self.lost_frames += 1
                continue
            message = self._protocol.audio(self._sender.encode(frame))
            self.round_trips.frame_sent(self._clock())
            try:
                await self._connection.send(message)
            except ConnectionClosed as closed:
                gone = _gone(closed, self._said)
                if self._way_back is None or not self._way_back.leads_back(gone):
                    raise gone from closed
                self.lost_frames += 1  # whoever iterates sees it, too, and comes back

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; ends when this side closed or the server closed normally.

        Raises:
            ServerGone: the server closed with an error code, or the connection broke.
        """
        while not self._ready:
            try:
                message = await self._connection.recv()
            except ConnectionClosedOK:
                raise StopAsyncIteration from None
            except ConnectionClosed as closed:
                await self._come_back(_gone(closed, self._said))
                continue
            self._take(message)
        return self._ready.popleft()

    async def close(self) -> None:
        """End the conversation now; iteration ends. Idempotent."""
        self._closing = True
        await self._connection.close()

    async def network_round_trip_s(self) -> float:
        """One WebSocket ping: the part of :attr:`round_trips` that is the network's."""
        try:
            return await (await self._connection.ping())
        except ConnectionClosed as closed:
            raise _gone(closed, self._said) from closed

    def _speaks_over(self, connection: ClientConnection) -> None:
        """Each connection has a protocol and Opus streams of its own."""
        self._connection = connection
        self._protocol = ChatClient(self._clock)
        self._sender = OpusSender()
        self._receiver = OpusReceiver(Budget(AUDIO_RATE, MAX_BURST_S), self._clock)

    async def _come_back(self, gone: ServerGone) -> None:
        """Connect again, as long as the server keeps the session. Raises how it was lost where nothing leads back."""
        began_s = self._clock()
        self._away = True
        try:
            if self._way_back is None or not self._way_back.leads_back(gone) or self._closing:
                raise gone
            async for address, left_s in self._way_back.attempts(self._address, lambda: self._closing):
                if await self._reconnect(address, left_s):
                    self.round_trips.cut_off()
                    self._ready.append(Metadata({"resumed": {"away_s": self._clock() - began_s}}))
                    self._away = False
                    return
            raise gone
        except ChorusError as error:
            self._gone = gone
            raise gone from (error if error is not gone else None)

    async def _reconnect(self, address: str, left_s: float) -> bool:
        """One attempt; False where another may succeed. Raises RequestRefused, NotAllowed: there is no way back."""
        connection: ClientConnection | None = None
        try:
            async with asyncio.timeout(left_s):
                connection = await _connect(address, self._key, left_s)
                self._speaks_over(connection)
                async for _ in self._await_handshake():
                    pass  # whoever comes back does not queue
        except (ServerUnreachable, ServerFull, ServerGone, UnexpectedServer, TimeoutError):
            if connection is not None:
                connection.transport.abort()
            return False
        return True

    async def _await_handshake(self) -> AsyncIterator[Place]:
        """Take what comes before the session is live; what it says about the queue is told and not kept."""
        while self._protocol.state is ChatState.WAITING:
            try:
                self._take(await self._connection.recv())
            except ConnectionClosed as closed:
                raise _refused_or_gone(closed, self._said) from closed
            for event in list(self._ready):
                place = place_in(event.value) if isinstance(event, Metadata) else None
                if place is not None:
                    self._ready.remove(event)
                    yield place

    def _take(self, message: bytes | str) -> None:
        """Message to events, in order, into ``_ready``.

        Raises:
            UnexpectedServer: too large, or too many that mean nothing.
        """
        try:
            events = self._protocol.receive(message)
        except PeerError as refused:
            raise UnexpectedServer(self._address, str(refused)) from refused
        for event in events:
            match event:
                case wire.Audio(payload) if payload:
                    self._take_audio(payload)
                case wire.Text(text=text):
                    self._ready.append(Text(text))
                case wire.Metadata(value) if self._way_back is not None and self._way_back.hears(value):
                    pass
                case wire.Metadata(value):
                    self._ready.append(Metadata(value))
                case wire.ErrorText(text):
                    self._said = text
                    self._ready.append(Error(text))
                case wire.Handshake() | wire.Audio() | wire.Control() | wire.Ping() | wire.Discarded():
                    pass
                case _:
                    assert_never(event)

    def _take_audio(self, payload: bytes) -> None:
        self.round_trips.frame_received(self._clock())
        frames = self._receiver.feed(payload).frames
        if frames:
            self._ready.append(Audio(np.concatenate(frames)))


async def _connect(address: str, key: str | None, timeout_s: float) -> ClientConnection:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    try:
        return await connect(
            address,
            additional_headers=headers,
            open_timeout=timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=MAX_MESSAGE_BYTES,
            compression=None,  # Opus does not deflate
            proxy=None,
        )
    except InvalidStatus as refused:
        raise _refusal(address, refused.response) from refused
    except (OSError, TimeoutError) as failed:
        why = getattr(failed, "strerror", None) or str(failed) or "no answer in time"
        raise ServerUnreachable(address, why) from failed
    except (InvalidHandshake, ConnectionClosed) as broken:
        raise UnexpectedServer(address, str(broken)) from broken


def _refusal(address: str, response: Response) -> ChorusError:
    """The typed error behind a handshake that was answered with a plain HTTP response."""
    why, message = _reason_in(bytes(response.body or b""))
    status = response.status_code
    if status in (429, 503):
        return ServerFull(why or "full", message, _seconds(response.headers.get("Retry-After")))
    if status in (401, 403):
        return NotAllowed(message or why or "the server asks for another key")
    if 400 <= status < 500:
        return RequestRefused(status, why or "refused", message or response.reason_phrase)
    return UnexpectedServer(address, f"HTTP {status} {response.reason_phrase}")


def _reason_in(body: bytes) -> tuple[str, str]:
    """``{"reason": slug, "message": sentence}`` of a refusal; empty strings where it is something else."""
    try:
        told = json.loads(body)
    except ValueError:
        return "", ""
    if not isinstance(told, dict):
        return "", ""
    return str(told.get("reason", "")), str(told.get("message", ""))


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None  # a date is allowed there; not worth a parser


def _refused_or_gone(closed: ConnectionClosed, said: str) -> ChorusError:
    """Why it ended before it was live: in the queue a refusal is a close code."""
    received = closed.rcvd
    if received is not None and received.code == TRY_AGAIN_CODE:
        return ServerFull(received.reason or "full", said)
    return _gone(closed, said)


def _gone(closed: ConnectionClosed, said: str) -> ServerGone:
    received = closed.rcvd
    return ServerGone(received.code, received.reason, said) if received else ServerGone(1006, "", said)
