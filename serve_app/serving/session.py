"""One conversation at the gateway: the lease and the link channel. It knows no WebSocket and may outlive one."""

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final

from serve_app.errors import ChorusError, EngineFull, EngineLost
from serve_app.link.channel import Channel
from serve_app.link.client import EngineLink
from serve_app.link.port import Address
from serve_app.serving.granted import Admitted, Answer, Granted
from serve_app.spec import SessionSpec

CallForSlot = Callable[[SessionSpec, Admitted | None], AsyncGenerator[Answer, None]]
"""Yields a grant or a refusal, and then holds the slot until it is closed."""

DETACH_S: Final = 1.0

logger = logging.getLogger(__name__)


class EngineLinks:
    """One connection per engine, made when first needed and made anew when lost. Belongs to one event loop."""

    def __init__(self) -> None:
        self._links: dict[Address, EngineLink] = {}
        self._locks: dict[Address, asyncio.Lock] = {}

    async def to(self, address: Address) -> EngineLink:
        """The connection to an engine. Raises EngineLost and LinkError."""
        async with self._locks.setdefault(address, asyncio.Lock()):
            link = self._links.get(address)
            if link is None or link.lost:
                # In a context of its own: the connection serves many requests and belongs to none.
                connecting = asyncio.create_task(EngineLink.connect(address), context=contextvars.Context())
                link = self._links[address] = await connecting
            return link

    def take_lost(self) -> set[str]:
        """``host:port`` of the engines whose connection broke since this was asked last.

        An engine closes a connection that nobody uses after a while: that is no loss.
        """
        lost = {address: link for address, link in self._links.items() if link.lost}
        for address in lost:
            del self._links[address]
        return {f"{address.host}:{address.port}" for address, link in lost.items() if link.channels.attached}

    async def close(self) -> None:
        """Close every connection; the engines free what they held."""
        links, self._links = self._links, {}
        for link in links.values():
            await link.close()


class Session:
    """A slot somewhere, held until ``close``.

    Args:
        call: asks an engine for a slot.
        links: this gateway's connections.
        spec: the question.

    Attributes:
        attached: whether its slot was opened.
    """

    def __init__(self, call: CallForSlot, links: EngineLinks, spec: SessionSpec) -> None:
        self._call = call
        self._caller: Admitted | None = None
        self._links = links
        self._spec = spec
        self._holder: asyncio.Task[None] | None = None
        self._granted: Granted | None = None
        self._channel: Channel | None = None
        self.attached = False

    @property
    def address(self) -> str | None:
        """``host:port`` of its engine; None before one granted a slot."""
        if self._granted is None:
            return None
        address = self._granted.grant.address
        return f"{address.host}:{address.port}"

    async def lease(self, wait_s: float, caller: Admitted | None = None) -> Granted:
        """Get a slot, in the name of a caller whom an authority let in.

        Raises:
            EngineFull: no engine answered in time: all are busy.
            EngineDraining, EngineLost: an engine refused, or none could be asked.
        """
        granted: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        self._caller = caller
        # A fresh context: Ray would end a call made inside a request together with that request.
        self._holder = asyncio.create_task(self._hold(granted), context=contextvars.Context())
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with the grant, and the
            # session of somebody who has gone would go on for ever.
            async with asyncio.timeout(wait_s):
                self._granted = await granted
        except TimeoutError:
            await self.close()
            raise EngineFull(0) from None
        except BaseException:
            await self.close()
            raise
        return self._granted

    async def attach(self, timeout_s: float) -> Channel:
        """Open the leased slot over the link and wait until it is primed.

        Waiting for others who connect, connecting and priming together take ``timeout_s`` at most.

        Raises:
            EngineLost: not in time, too.
            EngineDraining, StaleLease, LinkError, SessionFault.
        """
        assert self._granted is not None, "lease first"
        grant = self._granted.grant
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._links.to(grant.address)
                self._channel = await link.attach(grant, timeout_s=timeout_s)
        except TimeoutError:
            raise EngineLost from None
        self.attached = True
        return self._channel

    @property
    def kept(self) -> bool:
        """Whether the slot is kept when its call ends and nobody detached: its client may come back."""
        return self.attached and self._granted is not None and self._granted.way_back is not None

    async def close(self, *, keep: bool = False) -> None:
        """Give everything back, or let the engine keep it for a client that may come back. Idempotent."""
        holder, self._holder = self._holder, None
        if self._channel is not None and not keep:
            self._channel.close()
            if holder is not None and self.kept:
                # The engine ends the call when the session is over. One that is cancelled before the engine has heard
                # of the end, over another connection, would have its slot kept.
                await asyncio.wait({holder}, timeout=DETACH_S)
        if holder is not None:
            holder.cancel()
            await asyncio.wait({holder})

    async def _hold(self, granted: asyncio.Future[Granted]) -> None:
        """Keep the call open: it is the lease."""
        answers = self._call(self._spec, self._caller)
        try:
            async for answer in answers:
                if granted.done():
                    continue
                if isinstance(answer, ChorusError):
                    granted.set_exception(answer)
                    return
                granted.set_result(answer)
        except Exception as error:  # noqa: BLE001 -- Ray raises many kinds when an engine goes
            logger.warning("a lease ended: %r", error)
        finally:
            if not granted.done():
                granted.set_exception(EngineLost())
                granted.exception()  # read, so that nobody complains when the caller has gone
            await answers.aclose()
