"""The in-process twin of the link: the same codec, grants, bounds and channels, without a socket."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final

from serve_app.errors import EngineLost, StaleLease
from serve_app.link.channel import Channel
from serve_app.link.client import ATTACH_S
from serve_app.link.codec import Decoder
from serve_app.link.messages import Attach, Downward, Dropped, Ended, Key
from serve_app.link.outbox import Outbox
from serve_app.link.pipe import SESSION_BYTES, WRITE_BYTES
from serve_app.link.port import Address, EnginePort, Grant, GrantBook, Holdings

HERE: Final = Address("in-process", 0)


class LocalLink:
    """Server and client in one object. Belongs to one event loop; the port's sinks may come from any thread."""

    def __init__(self, port: EnginePort, *, session_bytes: int = SESSION_BYTES) -> None:
        self._loop = asyncio.get_running_loop()
        self._grants = GrantBook()
        self._holdings = Holdings(port, self._grants, self._put)
        self._outbox = Outbox(session_bytes)
        self._decoder = Decoder()
        self._channels: dict[Key, Channel] = {}
        self._lost = False
        self._scheduled = False

    def grant(self, slot: int, generation: int) -> Grant:
        """As ``LinkServer.grant``."""
        return self._grants.issue(HERE, slot, generation)

    def revoke(self, slot: int, generation: int) -> None:
        """As ``LinkServer.revoke``."""
        self._grants.revoke(Key(slot, generation))

    @property
    def lost(self) -> bool:
        """Whether it was closed."""
        return self._lost

    async def attach(self, grant: Grant, *, timeout_s: float = ATTACH_S) -> Channel:
        """As ``EngineLink.attach``."""
        if self._lost:
            raise EngineLost
        if grant.key in self._channels:
            raise StaleLease(*grant.key)
        channel = Channel(grant.key, self._holdings.receive)
        self._channels[grant.key] = channel
        self._holdings.receive(Attach(grant.key, grant.token))
        try:
            await channel.opened(timeout_s)
        except TimeoutError as error:
            raise EngineLost from error
        except asyncio.CancelledError:
            channel.close()
            raise
        return channel

    async def close(self) -> None:
        """Free what is held; every channel that is left ends with EngineLost."""
        self._lost = True
        self._holdings.release()
        self._outbox.close()
        channels, self._channels = self._channels, {}
        for key, channel in channels.items():
            channel.deliver(Ended.of(key, EngineLost()))

    def _put(self, messages: Sequence[Downward]) -> None:
        self._outbox.put(messages)
        if not self._scheduled:
            self._scheduled = True
            with contextlib.suppress(RuntimeError):  # the loop has closed
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        while len(self._outbox):
            data, lost = self._outbox.take(WRITE_BYTES)
            for dropped in lost:
                self._deliver(dropped)
            for message in self._decoder.feed(data):
                assert isinstance(message, Downward)
                self._deliver(message)

    def _deliver(self, message: Downward | Dropped) -> None:
        channel = self._channels.get(message.key)
        if channel is not None:
            channel.deliver(message)
            if isinstance(message, Ended):
                del self._channels[message.key]
