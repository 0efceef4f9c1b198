"""The gateway's end of the link: one connection to one engine, one channel per session."""

import asyncio
from types import TracebackType
from typing import Final, Self

from serve_app.errors import EngineLost, LinkError, StaleLease
from serve_app.link.channel import Channel
from serve_app.link.messages import (
    VERSION,
    Attach,
    Dropped,
    Ended,
    Hello,
    Key,
    Message,
    Opened,
    Output,
    Upward,
    Welcome,
)
from serve_app.link.pipe import HELLO_S, SESSION_BYTES, Pipe
from serve_app.link.port import Address, Grant

ATTACH_S: Final = 2.0


class EngineLink:
    """A connection to one engine, shared by all sessions that this gateway has there. Belongs to one event loop."""

    def __init__(self, address: Address, *, session_bytes: int) -> None:
        """For ``connect`` alone."""
        self.address = address
        self.dropped_frames = 0
        self._channels: dict[Key, Channel] = {}
        self._welcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pipe = Pipe(receive=self._receive, report=self._report, lost=self._lost, session_bytes=session_bytes)

    @classmethod
    async def connect(cls, address: Address, *, timeout_s: float = HELLO_S, session_bytes: int = SESSION_BYTES) -> Self:
        """Connect and shake hands.

        Raises:
            EngineLost: nobody listens, or nobody answers in time.
            LinkError: the peer speaks something else, or another version: both are named.
        """
        link = cls(address, session_bytes=session_bytes)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_connection(lambda: link.pipe, address.host, address.port)
                link.pipe.say(Hello())
                version = await link._welcome
        except (OSError, TimeoutError) as error:  # TimeoutError is an OSError; named for the reader
            link.pipe.abort()
            raise EngineLost from error
        except (LinkError, EngineLost, asyncio.CancelledError):
            link.pipe.abort()
            raise
        if version != VERSION:
            link.pipe.abort()
            raise LinkError(f"this gateway speaks version {VERSION}, the engine version {version}")
        return link

    @property
    def lost(self) -> bool:
        """Whether the connection is gone; such a link never comes back, connect anew."""
        return self.pipe.gone.is_set()

    async def attach(self, grant: Grant, *, timeout_s: float = ATTACH_S) -> Channel:
        """Open the granted slot and wait until it is primed.

        Raises: StaleLease for a grant that is used, expired or forged; EngineLost when the connection is gone or no
        answer comes in time; the session's error when opening failed.
        """
        if self.lost:
            raise EngineLost
        if grant.key in self._channels:
            raise StaleLease(*grant.key)
        channel = Channel(grant.key, self._transmit)
        self._channels[grant.key] = channel
        self.pipe.put([Attach(grant.key, grant.token)])
        try:
            await channel.opened(timeout_s)
        except TimeoutError as error:
            raise EngineLost from error
        except asyncio.CancelledError:
            channel.close()
            raise
        return channel

    async def close(self) -> None:
        """Close the connection; every channel that is left ends with EngineLost."""
        self.pipe.close()
        await self.pipe.gone.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _transmit(self, message: Upward) -> None:
        self.pipe.put([message])

    def _receive(self, message: Message) -> None:
        match message:
            case Welcome(version) if not self._welcome.done():
                self._welcome.set_result(version)
            case Opened() | Output() | Dropped() | Ended():
                channel = self._channels.get(message.key)
                if channel is not None:  # else an output that crossed our Detach
                    channel.deliver(message)
                    if isinstance(message, Ended):
                        del self._channels[message.key]
            case _:
                raise LinkError(f"{type(message).__name__} is out of order")

    def _report(self, dropped: Dropped) -> None:
        self.dropped_frames += dropped.frames
        channel = self._channels.get(dropped.key)
        if channel is not None:
            channel.deliver(dropped)

    def _lost(self, error: LinkError | None) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(error if error is not None else EngineLost())
        channels, self._channels = self._channels, {}
        for key, channel in channels.items():
            channel.deliver(Ended.of(key, EngineLost()))
