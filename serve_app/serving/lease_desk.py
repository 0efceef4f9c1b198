"""Slots given out for as long as a call stays open, and kept for a while for clients that can come back.

A slot that is kept has no call. Whoever shows its token gets the session under a new lease, wherever the last holder
is: the old lease is stale, so that nothing which is still under way can disturb the session.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final

from serve_app.admission.views import LiveSession
from serve_app.engine.engine import Engine
from serve_app.engine.slots import Lease
from serve_app.errors import (
    ChorusError,
    EngineFull,
    EngineLate,
    EngineLost,
    ParameterRefused,
    SessionGone,
    SessionMoved,
    StaleLease,
)
from serve_app.link.messages import Key
from serve_app.link.server import LinkServer
from serve_app.serving.directory import TextModel
from serve_app.serving.engine_port import EngineOverLink, key_of
from serve_app.serving.granted import Admitted, Answer, Granted, Past
from serve_app.serving.resuming import GRACE_LIMIT_S, Keeping, Returning, Token, WayBack
from serve_app.spec import SessionSpec

CHANGEOVER_S: Final = 0.08
"""A slot is given back at the end of a tick, a little after its lease is over: so long a newcomer waits for one."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """One gateway's hold on a slot."""

    attached: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


@dataclasses.dataclass(slots=True, eq=False)
class _Held:
    """A slot that is given out.

    Attributes:
        caller: None where no authority named it.
        keeping: None where its client cannot come back.
        call: None while it is kept for a client that is gone.
        digest: of the token that its client was told last; empty where there is none.
        shown: digest of the token that its client came back with, until the client has been heard.
        attached_s: the loop's time of its first attachment.
        expiry: of what is kept.
    """

    lease: Lease
    rows: int
    caller: Admitted | None
    keeping: Keeping | None
    call: _Call | None
    digest: bytes = b""
    shown: bytes = b""
    attached_s: float | None = None
    expiry: asyncio.TimerHandle | None = None

    def opened_by(self, digest: bytes) -> bool:
        """Whether it is one of its tokens. Both are compared, so that time tells nothing.

        Who was cut off before the next token came has only the one that it showed, and may show it again.
        """
        return hmac.compare_digest(digest, self.digest) | hmac.compare_digest(digest, self.shown)

    def lived_s(self, now_s: float) -> float:
        """Conversation begins when a gateway attaches, and goes on while the slot is kept."""
        return now_s - self.attached_s if self.attached_s is not None else 0.0

    def seen(self, now_s: float) -> LiveSession | None:
        """As the authority counts it."""
        if self.caller is None:
            return None
        return LiveSession(self.caller.session, self.caller.tenant, self.rows, self.lived_s(now_s))


class LeaseDesk:
    """Grants slots and takes them back. Belongs to one event loop; word of ends comes from the engine thread.

    Args:
        engine: whose slots.
        attach_s: a slot that no gateway attaches to within this is taken back.
        text_model: what the engine writes with.
        late: whether its ticks miss their deadlines now.
        name: of the engine, by which calls are sent to it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        attach_s: float,
        text_model: TextModel | None = None,
        late: Callable[[], bool] = lambda: False,
        name: str = "engine",
    ) -> None:
        self._engine = engine
        self._text_model = text_model
        self._attach_s = attach_s
        self._late = late
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._held: dict[Key, _Held] = {}
        self._freed = asyncio.Event()
        self._port = EngineOverLink(engine, self._on_attached, self._told_of_end, self._on_lost, self._on_heard)
        self._server: LinkServer | None = None
        self._parked = self._resumed = self._lapsed = 0

    async def listen(self, host: str, ports: range) -> LinkServer:
        """Start the link server that honours the grants. Raises LinkError when no port is free."""
        self._server = await LinkServer.start(self._port, host, ports)
        return self._server

    def sessions(self) -> tuple[LiveSession, ...]:
        """Everybody who holds a slot, or has one kept, and was named by an authority."""
        now_s = self._loop.time()
        seen = (held.seen(now_s) for held in self._held.values())
        return tuple(session for session in seen if session is not None)

    def returns(self) -> Mapping[str, int]:
        """How often slots were kept, came into other hands, and were given up."""
        return {"parked": self._parked, "resumed": self._resumed, "lapsed": self._lapsed}

    async def lease(
        self, spec: SessionSpec, caller: Admitted | None = None, comeback: Keeping | Returning | None = None
    ) -> AsyncGenerator[Answer, None]:
        """Hold a slot while the caller iterates: yields one grant, ends with the session.

        Closing it frees the slot, or keeps it for as long as was agreed. Who returns asks for no new slot, and what it
        says of the other arguments is not looked at.

        A refusal is yielded and not raised, because Ray logs a trace for what is raised. Whom an authority named comes
        in even if the engine is late: it was judged there, a second ago, and is waited for.
        """
        assert self._server is not None, "listen first"
        if caller is None and not isinstance(comeback, Returning) and self._late():
            yield EngineLate(self._engine.stats().slots)
            return
        try:
            if isinstance(comeback, Returning):
                held, past = self._take_back(comeback)
            else:
                held, past = await self._begin(spec, caller, comeback), None
        except ChorusError as error:
            yield error
            return
        call = held.call
        assert call is not None
        try:
            yield self._grant(held, past)
            await self._wait(held, call)
        finally:
            self._hang_up(held, call)

    # --- beginning ----------------------------------------------------------------------------------------------------

    async def _begin(self, spec: SessionSpec, caller: Admitted | None, keeping: Keeping | None) -> _Held:
        lease = await self._acquire(spec)
        held = self._held[key_of(lease)] = _Held(lease, spec.rows, caller, keeping, _Call())
        return held

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

    def _grant(self, held: _Held, past: Past | None) -> Granted:
        """What proves the lease, and a token that nobody has used."""
        assert self._server is not None
        way_back = None
        if held.keeping is not None:
            token = Token.fresh(self._name)
            held.digest = token.digest
            way_back = WayBack(token, _grace_s(held.keeping))
        return Granted(self._server.grant(*key_of(held.lease)), self._text_model, way_back, past)

    async def _wait(self, held: _Held, call: _Call) -> None:
        try:
            async with asyncio.timeout(self._attach_s):
                await call.attached.wait()
        except TimeoutError:
            logger.warning(
                "nobody attached slot=%(slot)d generation=%(generation)d waited_s=%(waited_s)g",
                {**key_of(held.lease)._asdict(), "waited_s": self._attach_s},
            )
            return
        await call.over.wait()

    # --- coming back --------------------------------------------------------------------------------------------------

    def _take_back(self, returning: Returning) -> tuple[_Held, Past]:
        """Give the session that a token opens a new lease, from whoever has it.

        Raises:
            SessionGone: there is none, or it is not this tenant's.
            ParameterRefused: the client asks for another session than it had; the token stays good.
        """
        held = self._opened_by(returning)
        _require_same(held.keeping, returning)
        before = key_of(held.lease)
        if not self._port.park(before):
            raise SessionGone  # it ends at this moment
        assert self._server is not None
        self._server.revoke(*before)
        self._server.oust(*before, SessionMoved())
        last = held.call
        self._stop_expiry(held)
        held.call, held.digest, held.shown = _Call(), b"", returning.token.digest
        if last is not None:
            last.attached.set()
            last.over.set()
        try:
            held.lease = self._engine.retake(held.lease)
        except StaleLease:  # it failed since
            self._free(held)
            raise SessionGone from None
        del self._held[before]
        self._held[key_of(held.lease)] = held
        self._resumed += 1
        return held, Past(held.caller, held.lived_s(self._loop.time()))

    def _opened_by(self, returning: Returning) -> _Held:
        """The session of a token. All sessions are asked, so that time tells nothing about any."""
        found, digest = None, returning.token.digest
        for held in self._held.values():
            if held.opened_by(digest):
                found = held
        if found is None or found.attached_s is None:
            raise SessionGone
        owner = found.caller.tenant if found.caller is not None else None
        if returning.tenant is not None and returning.tenant != owner:
            raise SessionGone
        return found

    # --- the end ------------------------------------------------------------------------------------------------------

    def _hang_up(self, held: _Held, call: _Call) -> None:
        """A gateway holds the slot no longer: keep it or free it. Nothing if another has it, or it is free already."""
        if held.call is not call:
            return
        held.call = None
        call.over.set()
        if not self._keep(held):
            self._free(held)

    def _keep(self, held: _Held) -> bool:
        """Keep the slot for a client that may come back. False: there is none, or nothing to keep."""
        assert self._server is not None
        key = key_of(held.lease)
        if held.keeping is None or held.attached_s is None or not self._port.park(key):
            return False
        self._server.revoke(*key)
        self._server.oust(*key, EngineLost())  # a gateway that lost its call, and not its connection
        held.expiry = self._loop.call_later(_grace_s(held.keeping), self._lapse, held)
        self._parked += 1
        return True

    def _lapse(self, held: _Held) -> None:
        self._lapsed += 1
        self._free(held)

    def _free(self, held: _Held) -> None:
        assert self._server is not None
        self._stop_expiry(held)
        held.call = None
        key = key_of(held.lease)
        if self._held.get(key) is held:
            del self._held[key]
        self._server.revoke(*key)
        self._engine.close(held.lease)
        self._freed.set()

    def _stop_expiry(self, held: _Held) -> None:
        if held.expiry is not None:
            held.expiry.cancel()
            held.expiry = None

    # --- word of the link and of the engine ---------------------------------------------------------------------------

    def _on_attached(self, key: Key) -> None:
        held = self._held.get(key)
        if held is not None and held.call is not None:
            held.call.attached.set()
            if held.attached_s is None:
                held.attached_s = self._loop.time()

    def _on_heard(self, key: Key) -> None:
        """Its client speaks: the handshake has reached it, and the next token right behind."""
        held = self._held.get(key)
        if held is not None:
            held.shown = b""

    def _on_lost(self, key: Key) -> None:
        """A gateway is gone. Ray may not end its calls for a long time."""
        held = self._held.get(key)
        if held is not None and held.call is not None:
            self._hang_up(held, held.call)
        elif held is None:
            self._port.close(key)

    def _told_of_end(self, key: Key) -> None:
        self._loop.call_soon_threadsafe(self._on_end, key)

    def _on_end(self, key: Key) -> None:
        self._freed.set()
        held = self._held.get(key)
        if held is not None:
            call = held.call
            self._free(held)
            if call is not None:
                call.over.set()


def _grace_s(keeping: Keeping) -> float:
    return min(max(keeping.grace_s, 0.0), GRACE_LIMIT_S)


def _require_same(keeping: Keeping | None, returning: Returning) -> None:
    had = dict(keeping.asked) if keeping is not None else {}
    for name, value in returning.asked:
        if had.get(name) != value:
            raise ParameterRefused(name, value, "the session was opened with another; leave it out")
