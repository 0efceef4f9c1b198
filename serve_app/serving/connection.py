"""One WebSocket: what it says goes to the session, what the session says goes to it.

Three tasks live as long as the connection: one drains the socket, one speaks, one minds the silence. Whichever ends
first ends it. The socket is always drained, because nothing below holds a sender back, and nothing waits in a queue
of ours: what comes too fast is dropped and counted by the receiver, what leaves too slowly by the channel.
"""

import asyncio
import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Protocol, assert_never

from serve_app.audio.budget import audio_budget
from serve_app.audio.opus import OpusReceiver, OpusSender, Received
from serve_app.checkpoint.text import TextStream
from serve_app.errors import ChorusError, EngineLost, PeerSilent, SessionFault
from serve_app.link.channel import Channel
from serve_app.link.messages import Dropped, Ended, Output
from serve_app.serving.answers import wait_s
from serve_app.serving.latency import Latency
from serve_app.wire.chat import ChatServer, ChatState
from serve_app.wire.events import Audio, Control, Discarded, EarlyAudio, Ping, UnreadMetadata

GOODBYE_S: Final = 1.0
"""How long the last words may take: the peer may be gone."""
LOOK_S: Final = 0.5
HEAD_DIGITS: Final = 4
"""Of what the extra heads say, as clients see it."""
DROP_REPORT_S: Final = 1.0

logger = logging.getLogger(__name__)


class Socket(Protocol):
    """What a connection needs of a WebSocket; Starlette's is one."""

    async def receive(self) -> Any:
        """The next ASGI message."""
        ...

    async def send_bytes(self, data: bytes) -> None:
        """Send one binary message."""
        ...

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Send a close frame."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended, for its log line and the meter.

    Attributes:
        cause: ``client`` when the client left, else the error's reason.
    """

    cause: str
    duration_s: float
    frames_in: int
    frames_out: int
    dropped: int
    discarded: int


class ClientLeftError(Exception):
    """The other side closed or vanished. Not a fault."""


class Connection:
    """Pumps one WebSocket. Belongs to one event loop; its sender and receiver are its own.

    Args:
        socket: accepted.
        attach: opens the session's slot; its channel ends the session when closed.
        text: turns tokens into text; None where the model writes none.
        clock: monotonic seconds.
        silence_s: no audio for so long ends it.
        minders: live beside it, and end it by what they raise.
        latency: follows its frames, for a client that asked.
        spoke: called once, when the first audio has been sent.
    """

    def __init__(
        self,
        socket: Socket,
        attach: Callable[[], Coroutine[Any, Any, Channel]],
        text: TextStream | None,
        clock: Callable[[], float],
        *,
        silence_s: float,
        minders: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        latency: Latency | None = None,
        spoke: Callable[[], None] | None = None,
    ) -> None:
        self._socket = socket
        self._attach = attach
        self._text = text
        self._greeting: Mapping[str, Any] | None = None
        self._clock = clock
        self._silence_s = silence_s
        self._minders = minders
        self._latency = latency
        self._spoke = spoke
        self._chat = ChatServer(clock)
        self.receiver = OpusReceiver(audio_budget(), clock)
        self.sender = OpusSender()
        self._channel: Channel | None = None
        self._began_s = clock()
        self._heard_s = self._began_s
        self._told_drops_s = float("-inf")
        self._drops: collections.Counter[str] = collections.Counter()
        self._dropped = 0
        self._frames_in = 0
        self._frames_out = 0

    async def run(self) -> Ending:
        """Live until one side ends it. Raises CancelledError alone: what went wrong is told to the peer and logged."""
        cause = "client"
        try:
            minding = [mind() for mind in self._minders]
            await self._first_of(self._listen(), self._speak(), self._mind_silence(), *minding)
        except ClientLeftError:
            self._chat.close()
        except ChorusError as error:
            cause = error.reason
            await self._goodbye(error)
        except asyncio.CancelledError:
            self._chat.close()
            raise
        except Exception:
            logger.exception("a connection failed")
            cause = SessionFault.reason
            await self._goodbye(SessionFault("the connection failed"))
        return self._ending(cause)

    async def tell(self, value: Mapping[str, Any]) -> None:
        """Send metadata, before the handshake or after."""
        await self._socket.send_bytes(self._chat.metadata(value))

    def writes(self, text: TextStream | None) -> None:
        """What its tokens mean, where that was not known before somebody granted a slot."""
        self._text = text

    def greets_with(self, value: Mapping[str, Any]) -> None:
        """Metadata that goes out right behind the handshake."""
        self._greeting = value

    async def _first_of(self, *lives: Coroutine[Any, Any, None]) -> None:
        """Run all until the first ends, end the others, and raise what it raised."""
        tasks = [asyncio.create_task(life) for life in lives]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise ClientLeftError
            if self._latency is not None:
                self._latency.heard()
            content = message.get("bytes")
            for event in self._chat.receive(content if content is not None else message.get("text") or ""):
                await self._hear(event)

    async def _hear(self, event: Audio | EarlyAudio | Control | UnreadMetadata | Ping | Discarded) -> None:
        match event:
            case Audio(payload):
                await self._take(self.receiver.feed(payload))
            case EarlyAudio(payload):
                await self._take(self.receiver.skip(payload))
            case Control() | UnreadMetadata() | Ping() | Discarded():
                pass  # nothing that we do yet
            case _:
                assert_never(event)

    async def _take(self, received: Received) -> None:
        if received.audio_s or received.dropped_frames:  # bytes that are no sound hold no slot
            self._heard_s = self._clock()
        for problem in received.problems:
            await self._socket.send_bytes(self._chat.error(str(problem)))
        if received.dropped_frames:
            self._note_drops("too_fast", received.dropped_frames)
        for frame in received.frames:
            assert self._channel is not None, "nothing is decoded before the handshake"
            if self._latency is not None:
                self._latency.sent(self._frames_in)
            self._channel.send(self._frames_in, frame)
            self._frames_in += 1
        await self._tell_drops()

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        self._channel = channel = await self._attach()
        await self._socket.send_bytes(self._chat.handshake())
        if self._greeting is not None:
            await self.tell(self._greeting)
        self._heard_s = self._clock()
        async for event in channel.events():
            match event:
                case Output():
                    await self._answer(event)
                case Dropped(_, frames, cause):
                    self._note_drops(cause, frames)
                    await self._tell_drops()
                case Ended():
                    raise event.error or EngineLost()  # this side never asks: it lost its slot
                case _:
                    assert_never(event)

    async def _answer(self, output: Output) -> None:
        if self._latency is None:
            await self._say(output)
            return
        told = self._latency.answered(output)
        await self._say(output)
        told()
        report = self._latency.report()
        if report is not None:
            await self.tell(report)

    async def _say(self, output: Output) -> None:
        if output.pcm is not None:  # a model may write and not speak
            await self._socket.send_bytes(self._chat.audio(self.sender.encode(output.pcm)))
            self._frames_out += 1
            if self._frames_out == 1 and self._spoke is not None:
                self._spoke()
        if output.heads is not None:
            said = [[round(float(value), HEAD_DIGITS) for value in head] for head in output.heads]
            await self._socket.send_bytes(self._chat.metadata({"type": "heads", "step": output.step, "heads": said}))
        piece = self._text.push(output.text_token) if self._text is not None else ""
        if piece:
            await self._socket.send_bytes(self._chat.text(piece))

    def _note_drops(self, cause: str, frames: int) -> None:
        self._drops[cause] += frames
        self._dropped += frames

    async def _tell_drops(self) -> None:
        """Report drops at most once a second."""
        now_s = self._clock()
        if not self._drops or now_s - self._told_drops_s < DROP_REPORT_S:
            return
        self._told_drops_s = now_s
        drops, self._drops = self._drops, collections.Counter()
        await self._socket.send_bytes(self._chat.metadata({"type": "dropped", "frames": dict(drops)}))

    # --- the end ------------------------------------------------------------------------------------------------------

    async def _mind_silence(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._silence_s))
            silent_s = self._clock() - self._heard_s
            if self._chat.state is ChatState.LIVE and silent_s >= self._silence_s:
                raise PeerSilent(self._silence_s)
            await self._tell_drops()

    async def _goodbye(self, error: ChorusError) -> None:
        """Say why in words and when to come again, then close with the code. The peer may be gone already."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GOODBYE_S):
                if error.retry:
                    await self.tell({"error": {"reason": error.reason, "retry_after_s": wait_s(error)}})
                await self._socket.send_bytes(self._chat.error(error.public()))
        await self._close(error.close_code, error.reason)

    async def _close(self, code: int, reason: str) -> None:
        self._chat.close()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(GOODBYE_S):
                await self._socket.close(code, reason)

    def _ending(self, cause: str) -> Ending:
        return Ending(
            cause=cause,
            duration_s=self._clock() - self._began_s,
            frames_in=self._frames_in,
            frames_out=self._frames_out,
            dropped=self._dropped,
            discarded=sum(self._chat.discarded.values()),
        )

    @property
    def ending(self) -> Ending:
        """How it stands now, for a handler that is cancelled."""
        return self._ending("aborted")
