"""The in-process twin of the link: the same codec, grants, bounds and channels, without a socket."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from serve_app.link.channel import Channel
from serve_app.link.channels import ATTACH_S, Channels
from serve_app.link.codec import Decoder
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import Downward, Key
from serve_app.link.outbox import Outbox
from serve_app.link.pipe import WRITE_BYTES
from serve_app.link.port import Address, EnginePort, Grant, GrantBook, Holdings

HERE: Final = Address("in-process", 0)


class LocalLink:
    """Server and client in one object. Belongs to one event loop; the port's sinks may come from any thread."""

    def __init__(self, port: EnginePort, *, limits: LinkLimits | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._grants = GrantBook()
        self._holdings = Holdings(port, self._grants, self._put)
        self._outbox = Outbox(limits if limits is not None else LinkLimits())
        self._decoder = Decoder()
        self.channels = Channels(self._holdings.receive)
        self._scheduled = False

    def grant(self, slot: int, generation: int) -> Grant:
        """As ``LinkServer.grant``."""
        return self._grants.issue(HERE, slot, generation)

    def revoke(self, slot: int, generation: int) -> None:
        """As ``LinkServer.revoke``."""
        self._grants.revoke(Key(slot, generation))

    @property
    def lost(self) -> bool:
        """Whether it was closed, or its reader fell so far behind that it broke."""
        return self.channels.lost

    async def attach(self, grant: Grant, *, timeout_s: float = ATTACH_S) -> Channel:
        """As ``Channels.attach``."""
        return await self.channels.attach(grant, timeout_s=timeout_s)

    async def close(self) -> None:
        """Free what is held; every channel that is left ends with EngineLost."""
        self._lose()

    def _lose(self) -> None:
        self._holdings.release()
        self._outbox.close()
        self.channels.lose()

    def _put(self, messages: Sequence[Downward]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            if not self._outbox.put(messages):
                self._loop.call_soon_threadsafe(self._lose)
            elif not self._scheduled:
                self._scheduled = True
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        while len(self._outbox):
            data, lost = self._outbox.take(WRITE_BYTES)
            for dropped in lost:
                self.channels.deliver(dropped)
            for message in self._decoder.feed(data):
                assert isinstance(message, Downward)
                self.channels.deliver(message)
