"""Slots given out for as long as a call stays open."""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator
from typing import Final

from serve_app.admission.views import LiveSession
from serve_app.engine.engine import Engine
from serve_app.engine.slots import Lease
from serve_app.errors import ChorusError, EngineFull
from serve_app.link.messages import Key
from serve_app.link.server import LinkServer
from serve_app.serving.directory import TextModel
from serve_app.serving.engine_port import EngineOverLink, key_of
from serve_app.serving.granted import Admitted, Answer, Granted
from serve_app.spec import SessionSpec

CHANGEOVER_S: Final = 0.08
"""A slot is given back at the end of a tick, a little after its lease is over: so long a newcomer waits for one."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Held:
    """A slot that is given out.

    Attributes:
        caller: None where no authority named it.
        attached_s: the loop's time; one element once it is attached.
    """

    caller: Admitted | None
    rows: int
    attached: asyncio.Event
    over: asyncio.Event
    attached_s: list[float] = dataclasses.field(default_factory=list)

    def seen(self, now_s: float) -> LiveSession | None:
        """As the authority counts it: conversation begins when the gateway attaches."""
        if self.caller is None:
            return None
        audio_s = now_s - self.attached_s[0] if self.attached_s else 0.0
        return LiveSession(self.caller.session, self.caller.tenant, self.rows, audio_s)


class LeaseDesk:
    """Grants slots and takes them back. Belongs to one event loop; word of ends comes from the engine thread.

    Args:
        engine: whose slots.
        attach_s: a slot that no gateway attaches to within this is taken back.
        text_model: what the engine writes with.
    """

    def __init__(self, engine: Engine, *, attach_s: float, text_model: TextModel | None = None) -> None:
        self._engine = engine
        self._text_model = text_model
        self._attach_s = attach_s
        self._loop = asyncio.get_running_loop()
        self._held: dict[Key, _Held] = {}
        self._freed = asyncio.Event()
        self._server: LinkServer | None = None

    async def listen(self, host: str, ports: range) -> LinkServer:
        """Start the link server that honours the grants. Raises LinkError when no port is free."""
        port = EngineOverLink(self._engine, self._on_attached, self._told_of_end)
        self._server = await LinkServer.start(port, host, ports)
        return self._server

    def sessions(self) -> tuple[LiveSession, ...]:
        """Everybody who holds a slot and was named by an authority."""
        now_s = self._loop.time()
        seen = (held.seen(now_s) for held in self._held.values())
        return tuple(session for session in seen if session is not None)

    async def lease(self, spec: SessionSpec, caller: Admitted | None = None) -> AsyncGenerator[Answer, None]:
        """Hold a slot while the caller iterates: yields one grant, ends with the session. Closing it frees the slot.

        A refusal is yielded and not raised, because Ray logs a trace for what is raised.
        """
        assert self._server is not None, "listen first"
        try:
            lease = await self._acquire(spec)
        except ChorusError as error:
            yield error
            return
        key = key_of(lease)
        held = self._held[key] = _Held(caller, spec.rows, asyncio.Event(), asyncio.Event())
        try:
            yield Granted(self._server.grant(lease.slot, lease.generation), self._text_model)
            await self._wait(key, held)
        finally:
            del self._held[key]
            self._server.revoke(lease.slot, lease.generation)
            self._engine.close(lease)
            self._freed.set()

    async def _acquire(self, spec: SessionSpec) -> Lease:
        deadline_s = self._loop.time() + CHANGEOVER_S
        while True:
            self._freed.clear()
            try:
                return self._engine.acquire(spec)
            except EngineFull:
                left_s = deadline_s - self._loop.time()
                if left_s <= 0:
                    raise
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._freed.wait()

    async def _wait(self, key: Key, held: _Held) -> None:
        try:
            async with asyncio.timeout(self._attach_s):
                await held.attached.wait()
        except TimeoutError:
            logger.warning("nobody attached to slot=%d generation=%d in %g s", key.slot, key.generation, self._attach_s)
            return
        await held.over.wait()

    def _on_attached(self, key: Key) -> None:
        held = self._held.get(key)
        if held is not None:
            held.attached_s.append(self._loop.time())
            held.attached.set()

    def _told_of_end(self, key: Key) -> None:
        self._loop.call_soon_threadsafe(self._on_end, key)

    def _on_end(self, key: Key) -> None:
        self._freed.set()
        held = self._held.get(key)
        if held is not None:
            held.over.set()
