"""The gateway's end of the link: one connection to one engine, one channel per session."""

import asyncio
from types import TracebackType
from typing import Self

from serve_app.errors import EngineLost, LinkError
from serve_app.link.channel import Channel
from serve_app.link.channels import ATTACH_S, Channels
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import VERSION, Dropped, Ended, Hello, Message, Opened, Output, Upward, Welcome
from serve_app.link.pipe import Pipe
from serve_app.link.port import Address, Grant


class EngineLink:
    """A connection to one engine, shared by all sessions that this gateway has there. Belongs to one event loop."""

    def __init__(self, address: Address, limits: LinkLimits) -> None:
        """For ``connect`` alone."""
        self.address = address
        self.dropped_frames = 0
        self.channels = Channels(self._transmit)
        self._welcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pipe = Pipe(receive=self._receive, report=self._report, lost=self._lost, limits=limits)

    @classmethod
    async def connect(cls, address: Address, *, limits: LinkLimits | None = None) -> Self:
        """Connect and shake hands, both within ``limits.hello_s``.

        Raises:
            EngineLost: nobody listens, or nobody answers in time.
            LinkError: the peer speaks something else, or another version: both are named.
        """
        limits = limits if limits is not None else LinkLimits()
        link = cls(address, limits)
        try:
            async with asyncio.timeout(limits.hello_s):
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
        """As ``Channels.attach``."""
        return await self.channels.attach(grant, timeout_s=timeout_s)

    async def close(self) -> None:
        """Close the connection, within ``limits.close_s``; every channel that is left ends with EngineLost."""
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
                self.channels.deliver(message)
            case _:
                raise LinkError(f"{type(message).__name__} is out of order")

    def _report(self, dropped: Dropped) -> None:
        self.dropped_frames += dropped.frames
        self.channels.deliver(dropped)

    def _lost(self, error: LinkError | None) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(error if error is not None else EngineLost())
        self.channels.lose()
