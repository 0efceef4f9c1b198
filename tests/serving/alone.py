"""A gateway, its admission host and an engine in one event loop: the real application, asked as its server asks it.

Only Ray is missing: calls between the three are plain calls that take a turn of the loop.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import pytest
from fastapi import FastAPI

from serve_app.admission.answers import AdmissionRequest, EngineName
from serve_app.admission.answers import Answer as AdmissionAnswer
from serve_app.admission.answers import Granted as AdmissionGranted
from serve_app.admission.day_book import Day, Usage
from serve_app.admission.tenants import Tenant
from serve_app.admission.tickets import Ticket
from serve_app.admission.views import EngineView, LiveSession
from serve_app.config import KEY_VARIABLE
from serve_app.errors import ChorusError, EngineFull
from serve_app.link.local import LocalLink
from serve_app.link.messages import Key
from serve_app.link.port import Address
from serve_app.serving import gateway_replica
from serve_app.serving.admission_host import AdmissionHost
from serve_app.serving.directory import EngineCard
from serve_app.serving.gateway_replica import GatewayReplica
from serve_app.serving.granted import Admitted, Answer, Granted
from serve_app.serving.knock import Knock, Opened
from serve_app.spec import Offer, SessionSpec
from serve_app.units import SessionId
from tests.link.fakes import EchoPort
from tests.serving.test_directory import CARD

MODEL: Final = "m"
ENGINE: Final = EngineName("e")
VOICES: Final = ("alba",)
OFFER: Final = Offer(conditions=(("mood", ("calm", "glad")),), prompt_steps=100, voices=VOICES)
Message = dict[str, Any]


class EngineHere:
    """Slots that are held as long as a call for one stays open, and the directory that knows of them."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.port = EchoPort()
        self.link = LocalLink(self.port)
        self.held: dict[int, Admitted | None] = {}
        self.authorities = 0
        self._generations = itertools.count()

    def of(self, application: str) -> "EngineHere":
        return self

    async def call(
        self, spec: SessionSpec, caller: Admitted | None = None, comeback: object = None
    ) -> AsyncGenerator[Answer, None]:
        await asyncio.sleep(0)
        slot = next((slot for slot in range(self.slots) if slot not in self.held), None)
        if slot is None:
            yield EngineFull(self.slots)
            return
        generation = next(self._generations)
        self.held[slot] = caller
        try:
            yield Granted(self.link.grant(slot, generation))
            await asyncio.Event().wait()
        finally:
            self.link.revoke(slot, generation)
            self.port.close(Key(slot, generation))
            del self.held[slot]

    async def to(self, address: Address) -> LocalLink:
        await asyncio.sleep(0)
        return self.link

    def take_lost(self) -> set[str]:
        return set()

    async def engines(self) -> list[EngineCard]:
        used = len(self.held)
        return [
            dataclasses.replace(
                CARD,
                engine=ENGINE,
                model=MODEL,
                slots=self.slots,
                rows=self.slots,
                used=used,
                rows_used=used,
                offer=OFFER,
                text_model=None,
                draining=False,
                healthy=True,
            )
        ]

    async def text_model(self, digest: str) -> bytes | None:
        return None

    async def views(self) -> list[EngineView]:
        callers = [caller for caller in self.held.values() if caller is not None]
        live = tuple(LiveSession(caller.session, caller.tenant, 1, 0.0) for caller in callers)
        return [EngineView(ENGINE, MODEL, self.slots, live)]

    async def succeed(self) -> bool:
        self.authorities += 1
        return self.authorities > 1


class HostHere:
    """The admission host as gateways ask it: every call takes a turn of the loop there and one back."""

    def __init__(self, host: AdmissionHost) -> None:
        self.host = host

    async def identify(self, knock: Knock) -> Tenant | ChorusError:
        await asyncio.sleep(0)
        return self.host.identify(knock)

    async def ticket(self, knock: Knock) -> Ticket | ChorusError:
        await asyncio.sleep(0)
        return self.host.ticket(knock)

    async def usage(self, knock: Knock, first: Day, last: Day) -> Usage | ChorusError:
        return await self.host.usage(knock, first, last)

    async def open(self, knock: Knock, request: AdmissionRequest) -> Opened | ChorusError:
        await asyncio.sleep(0)
        try:
            return await self.host.open(knock, request)
        finally:
            await asyncio.sleep(0)

    async def again(self, request: AdmissionRequest, hold_s: float) -> AdmissionAnswer:
        await asyncio.sleep(0)
        return await self.host.again(request, hold_s)

    async def confirm(self, granted: AdmissionGranted) -> bool:
        await asyncio.sleep(0)
        return self.host.confirm(granted)

    async def leave(self, session: SessionId, audio_s: float | None) -> None:
        await asyncio.sleep(0)
        self.host.leave(session, audio_s)

    async def spent(self) -> Mapping[SessionId, ChorusError]:
        return self.host.spent()


class Silent:
    """Instruments that show nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: None


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What a question got.

    Attributes:
        status: 101 where a WebSocket was accepted.
        headers: names in small letters.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reason(self) -> str:
        """Of a refusal; empty where there is none."""
        try:
            told = json.loads(self.body)
        except ValueError:
            return ""
        return str(told.get("reason", "")) if isinstance(told, dict) else ""


class Visit:
    """One request to the application, from the first byte to the last."""

    def __init__(
        self, app: FastAPI, method: str, target: str, headers: Sequence[tuple[bytes, bytes]], *, socket: bool
    ) -> None:
        path, _, query = target.partition("?")
        scope: Message = {
            "type": "websocket" if socket else "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "ws" if socket else "http",
            "path": unquote_to_bytes(path).decode("latin-1"),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in headers],
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }
        self.sent: list[Message] = []
        self.changed = asyncio.Event()
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"} if socket else {"type": "http.request", "body": b""})
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: FastAPI, scope: Message) -> None:
        try:
            await app(scope, self._inbox.get, self._send)
        finally:
            self.changed.set()

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))
        self.changed.set()

    def hear(self, message: Message) -> None:
        """The other side says that."""
        self._inbox.put_nowait(message)

    def vanish(self) -> None:
        """The other side is gone: the next thing that is read says so."""
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def until(self, found: Callable[[list[Message]], bool]) -> None:
        """Wait until that is true of what was sent. Raises AssertionError where the application ended before."""
        while not found(self.sent):
            assert not self.task.done(), self.sent
            self.changed.clear()
            await self.changed.wait()

    async def end(self) -> None:
        """Vanish, and wait for the application to notice."""
        self.vanish()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    @property
    def live(self) -> bool:
        """Whether the handshake of a conversation was sent."""
        return any(message.get("bytes", b"x")[:1] == b"\0" for message in self.sent if "bytes" in message)

    @property
    def told_to_wait(self) -> bool:
        """Whether it was told its place in the queue."""
        return any(b'"queue"' in (message.get("bytes") or b"") for message in self.sent)

    @property
    def reply(self) -> Reply:
        """What was answered before the upgrade, or that it was accepted."""
        if any(message["type"] == "websocket.accept" for message in self.sent):
            return Reply(101, {}, b"")
        start = next(message for message in self.sent if message["type"].endswith("response.start"))
        body = b"".join(message.get("body", b"") for message in self.sent)
        return Reply(start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, body)


class Alone:
    """A gateway with its surroundings."""

    def __init__(self, app: FastAPI, replica: GatewayReplica, engine: EngineHere, host: AdmissionHost) -> None:
        self.app, self.replica, self.engine, self.host = app, replica, engine, host

    def visit(self, *headers: tuple[bytes, bytes], target: str = "/api/chat") -> Visit:
        """Open a conversation."""
        return Visit(self.app, "GET", target, [(b"host", b"localhost:8998"), *headers], socket=True)

    async def ask(self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]], *, socket: bool) -> Reply:
        """Ask, wait for the answer, and go."""
        visit = Visit(self.app, method, target, headers, socket=socket)
        wanted = "websocket.accept" if socket else ""
        await visit.until(lambda sent: any(one["type"] == wanted or _is_last(one) for one in sent))
        await visit.end()
        return visit.reply

    async def settled(self) -> None:
        """Let everything that is on its way arrive."""
        await turns(100)

    @property
    def used(self) -> int:
        """Slots that the engine has given."""
        return len(self.engine.held)

    @property
    def counted(self) -> tuple[int, int]:
        """Rows and places in the queue that the authority has given."""
        status = self.host.status()
        return sum(pool.used for pool in status), sum(pool.waiting for pool in status)


async def turns(count: int) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def _is_last(message: Message) -> bool:
    return message["type"].endswith("response.body") and not message.get("more_body", False)


@contextlib.asynccontextmanager
async def alone(
    monkeypatch: pytest.MonkeyPatch,
    host: Callable[[EngineHere], AdmissionHost],
    settings: Mapping[str, Any],
    *,
    slots: int,
) -> AsyncIterator[Alone]:
    """A gateway that is ready.

    Args:
        host: makes the admission host, given the directory.
        settings: of the gateway.
    """
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    engine = EngineHere(slots)
    made = host(engine)
    await made.begin()
    for name, stand_in in (
        ("DirectoryHandle", lambda: engine),
        ("LeaseHandle", lambda: engine),
        ("LeaseHandles", lambda: engine),
        ("EngineLinks", lambda: engine),
        ("AdmissionHandle", lambda desk: desk),
        ("GatewayInstruments", Silent),
        ("http_host", lambda: "127.0.0.1"),
        ("ray_timers", lambda: None),
        ("gateway_complaints", lambda *timers: ()),
        ("watch_retirement", lambda begin: None),
        ("proxy_mode", lambda: "python"),
        ("log_to_stderr", lambda: None),
    ):
        monkeypatch.setattr(gateway_replica, name, stand_in, raising=False)
    before = asyncio.all_tasks()
    replica: Any = object.__new__(GatewayReplica)
    await replica.__init__(dict(settings), HostHere(made))
    here = Alone(replica.__serve_build_asgi_app__(), replica, engine, made)
    try:
        while (await here.ask("GET", "/ready", [], socket=False)).status != 200:
            await asyncio.sleep(0)
        yield here
    finally:
        left: set[asyncio.Task[Any]] = {task for task in asyncio.all_tasks() - before if task != asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await made.close()
