"""The engine's end of the link: listens, checks hellos and grants, says which sessions were lost with a gateway.

A peer proves itself by its first good attach; until then it may cost little and stay briefly.
"""

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Self, cast

from serve_app.errors import ChorusError, LinkError
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import VERSION, Attach, Detach, Dropped, Frame, Hello, Key, Message, Welcome
from serve_app.link.pipe import Pipe
from serve_app.link.port import Address, EnginePort, Grant, GrantBook, Holdings

logger = logging.getLogger(__name__)


class _Connection:
    """One gateway."""

    def __init__(self, server: "LinkServer", port: EnginePort, grants: GrantBook) -> None:
        self._server = server
        self._greeted = False
        self.pipe = Pipe(receive=self._receive, report=self._report, lost=self._lost, limits=server.limits)
        self.holdings = Holdings(port, grants, self.pipe.put)
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_later(server.limits.hello_s, self._late, "hello", server.limits.hello_s)
        server.connections.add(self)

    def _receive(self, message: Message) -> None:
        match message:
            case Hello(version) if not self._greeted:
                self._greet(version)
            case Attach() | Frame() | Detach() if self._greeted:
                self.holdings.receive(message)
                if not self.holdings.attached and self.holdings.refused > self._server.limits.refusals:
                    raise LinkError(f"{self.holdings.refused} attaches without a good grant")
            case _:
                raise LinkError(f"{type(message).__name__} is out of order")

    def _greet(self, version: int) -> None:
        self._deadline.cancel()
        attach_s = self._server.limits.attach_s
        self._deadline = self._loop.call_later(attach_s, self._late, "good attach", attach_s)
        self._greeted = True
        self.pipe.say(Welcome())
        if version != VERSION:
            logger.warning("link refused: the gateway speaks version %d, this engine %d", version, VERSION)
            self._greeted = False
            self.pipe.close()

    def _late(self, what: str, waited_s: float) -> None:
        if not self.holdings.attached:  # who had a session may idle until the next one
            logger.warning("link closed: no %s in %g s", what, waited_s)
            self.pipe.abort()

    def _report(self, dropped: Dropped) -> None:
        self._server.dropped_outputs += dropped.frames
        self.pipe.put([dropped])

    def _lost(self, error: LinkError | None) -> None:
        self._deadline.cancel()
        self._server.connections.discard(self)
        if error is not None:
            logger.warning("link closed: %s", error)
        if self.holdings:
            logger.warning("a gateway is gone, and %d sessions are without one", len(self.holdings))
        self.holdings.release()


class _Refusal(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it at once."""
        cast(asyncio.Transport, transport).abort()


class LinkServer:
    """Listens for gateways. Everything but the port's sinks belongs to the loop that started it."""

    def __init__(self, limits: LinkLimits) -> None:
        """For ``start`` alone."""
        self.limits = limits
        self.connections: set[_Connection] = set()
        self.dropped_outputs = 0
        self._grants = GrantBook()
        self._listener: asyncio.Server | None = None
        self._address: Address | None = None

    @classmethod
    async def start(
        cls,
        port: EnginePort,
        host: str = "127.0.0.1",
        ports: Iterable[int] = (0,),
        *,
        limits: LinkLimits | None = None,
    ) -> Self:
        """Listen on the first free port of ``ports``; 0 lets the system choose. Raises LinkError when none is free."""
        server = cls(limits if limits is not None else LinkLimits())
        loop = asyncio.get_running_loop()
        tried = []
        for number in ports:
            try:
                listener = await loop.create_server(lambda: server._let_in(port), host, number)
            except OSError:
                tried.append(number)
                continue
            server._listener = listener
            server._address = Address(host, int(listener.sockets[0].getsockname()[1]))
            return server
        raise LinkError(f"no free port on {host} among {tried[:1]} to {tried[-1:]}")

    @property
    def address(self) -> Address:
        """Where gateways connect."""
        assert self._address is not None
        return self._address

    def grant(self, slot: int, generation: int) -> Grant:
        """A one-time token for a leased slot; only who presents it may attach."""
        return self._grants.issue(self.address, slot, generation)

    def revoke(self, slot: int, generation: int) -> None:
        """Void the token of a lease that is over. Idempotent."""
        self._grants.revoke(Key(slot, generation))

    def oust(self, slot: int, generation: int, error: ChorusError) -> None:
        """Take a session away from the gateway that has attached it: it hears nothing more but why."""
        for connection in list(self.connections):
            connection.holdings.oust(Key(slot, generation), error)

    async def close(self) -> None:
        """Stop listening, write what waits, close every connection and free what they held: in ``limits.close_s``."""
        if self._listener is None:
            return
        self._listener.close()
        connections = list(self.connections)
        for connection in connections:
            connection.pipe.close()
        for connection in connections:
            await connection.pipe.gone.wait()
        await self._listener.wait_closed()

    def _let_in(self, port: EnginePort) -> asyncio.Protocol:
        if len(self.connections) < self.limits.connections:
            return _Connection(self, port, self._grants).pipe
        logger.warning("link refused: %d gateways are here already", len(self.connections))
        return _Refusal()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
