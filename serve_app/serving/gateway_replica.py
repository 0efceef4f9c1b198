"""One gateway as a Serve replica: HTTP answers, and a WebSocket per conversation. It never imports torch."""

import asyncio
import contextvars
import dataclasses
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import numpy as np
from fastapi import FastAPI, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from serve_app.audio.opus import OpusSender
from serve_app.checkpoint.text import TextPieces
from serve_app.config import GatewaySettings, access_key, proxy_mode, require_key_beyond_loopback
from serve_app.errors import ChorusError, EngineFull, EngineLost
from serve_app.link.channel import Channel
from serve_app.observability.logs import log_to_stderr
from serve_app.serving.answers import NOT_FOUND, refusal
from serve_app.serving.caller import Caller
from serve_app.serving.connection import Connection
from serve_app.serving.directory import HEARTBEAT_S, EngineCard
from serve_app.serving.door import Door
from serve_app.serving.granted import Granted
from serve_app.serving.info import describe
from serve_app.serving.instruments import GatewayInstruments
from serve_app.serving.knock import Knock
from serve_app.serving.leaving import WatchedSocket
from serve_app.serving.meter import Meter
from serve_app.serving.page import page_folder
from serve_app.serving.ray_calls import AdmissionHandle, DirectoryHandle, LeaseHandle, http_host
from serve_app.serving.roster import Roster
from serve_app.serving.session import EngineLinks, Session
from serve_app.serving.tenant_pages import TenantPages
from serve_app.serving.term import mind_term
from serve_app.serving.texts import Texts
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES, SessionId
from serve_app.wire.query import parameters_in, parse_chat_query

QUIET_LOGGERS: Final = ("uvicorn.error", "uvicorn.access", "websockets")
"""They log addresses with their queries, and a query may hold a key."""
WARM_S: Final = 5.0
CHANGEOVER_S: Final = 0.05
"""Between two questions for a slot whose last session is on its way out."""
TEXT_S: Final = 1.0
"""How long the directory may take to hand out a text model, while a leased slot waits."""

logger = logging.getLogger(__name__)


class GatewayReplica:
    """The deployment ``Gateway``."""

    async def __init__(self, settings: dict[str, Any], admission: Any = None) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr()
        require_key_beyond_loopback(http_host())
        OpusSender().encode(np.zeros(FRAME_SAMPLES, np.float32))  # no libopus: no gateway, not no sound
        self._settings = GatewaySettings.model_validate(settings)
        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._name = secrets.token_hex(4)
        self._door = Door(access_key(), self._settings.origins)
        self._homes = frozenset(origin.rstrip("/").lower() for origin in self._settings.origins)
        self._admission = AdmissionHandle(admission) if admission is not None else None
        self._callers: dict[SessionId, Caller] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._leases = LeaseHandle()
        self._links = EngineLinks()
        self._directory = DirectoryHandle()
        self._texts = Texts(self._directory.text_model)
        self._roster = Roster(self._directory, time.monotonic, self._warm, self._links.take_lost)
        self._meter = Meter()
        self._instruments = GatewayInstruments()
        self._watch = asyncio.create_task(self._roster.watch())
        self._showing = asyncio.create_task(self._show())
        self._obeying = asyncio.create_task(self._obey())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray serves for this replica."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/ready", self.ready, methods=["GET"])
        app.add_api_route("/info", self.info, methods=["GET"])
        if self._admission is not None and self._settings.tenants is not None:
            pages = TenantPages(self._admission, self._homes)
            app.add_api_route("/api/ticket", pages.ticket, methods=["POST"])
            app.add_api_route("/api/usage", pages.usage, methods=["GET"])
        app.add_api_route("/api/ticket", self.wants_ticket, methods=["GET"])
        if self._homes:  # a page of the operator's on another host: it may ask, and nobody else's
            app.add_middleware(
                CORSMiddleware,
                allow_origins=sorted(self._homes),
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "kyutai-api-key"],
                expose_headers=["retry-after"],
            )
        app.add_api_websocket_route("/api/chat", self.chat)
        app.add_api_websocket_route("/{path:path}", self.nowhere)
        app.add_exception_handler(404, _no_such_path)
        folder = page_folder()
        if folder is not None:
            app.mount("/", StaticFiles(directory=folder, html=True))
        return app

    async def health(self) -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    async def wants_ticket(self) -> dict[str, bool]:
        """Whether a page needs a ticket to open a conversation here."""
        return {"wanted": self._settings.tenants is not None}

    async def ready(self) -> JSONResponse:
        """Whether a conversation can start now, and why not."""
        obstacle = self._roster.obstacle()
        if obstacle is not None:
            return refusal(obstacle)
        return JSONResponse({"status": "ready", "gateway": self._name})

    async def info(self, request: Request) -> JSONResponse:
        """What runs here, how busy it is and how fast: for whoever may open a conversation."""
        try:
            self._door.admit(request.headers, request.query_params)
        except ChorusError as error:
            return refusal(error)
        return JSONResponse(describe(self._roster.engines, self._meter, proxy_mode(), self._name))

    async def nowhere(self, socket: WebSocket) -> None:
        """Any other path."""
        self._note_refusal(NOT_FOUND["reason"])
        await socket.send_denial_response(JSONResponse(NOT_FOUND, status_code=404))

    async def chat(self, socket: WebSocket) -> None:
        """One conversation, from the question to the last word."""
        session: Session | None = None
        caller: Caller | None = None
        try:
            try:
                spec = await self._question(socket)
                session = Session(self._leases.call, self._links, spec)
                caller = self._caller(spec, socket)
                if caller is not None:
                    await caller.open(self._knock(socket))
                waits = caller is not None and caller.waits
                pieces = None if waits else await self._lease(session, spec.rows, caller)
            except ChorusError as error:
                self._note_refusal(error.reason)
                await socket.send_denial_response(refusal(error))
                return
            await socket.accept()
            await self._converse(socket, session, pieces, spec.rows, caller)
        finally:
            if session is not None:
                # In a context of its own: Ray would end a call made inside a request together with that request.
                leaving = asyncio.create_task(self._let_go(session, caller), context=contextvars.Context())
                self._leaving.add(leaving)  # a task that nobody holds may vanish
                leaving.add_done_callback(self._leaving.discard)
                await asyncio.shield(leaving)

    async def _question(self, socket: WebSocket) -> SessionSpec:
        """What a visitor asks for, who may ask. Where tenants knock, a credential is judged with the question itself.

        Raises ParameterRefused only to whom we know.
        """
        if self._settings.tenants is None:
            self._door.admit(socket.headers, socket.query_params)
        try:
            return parse_chat_query(socket.query_params, self._roster.offer()).spec
        except ChorusError:
            if self._settings.tenants is not None and self._admission is not None:
                found = await self._admission.identify(self._knock(socket))
                if isinstance(found, ChorusError):
                    raise found from None
            raise

    def _knock(self, socket: WebSocket) -> Knock:
        return Knock.of(socket.headers, socket.query_params, self._homes)

    def _caller(self, spec: SessionSpec, socket: WebSocket) -> Caller | None:
        """One who asks the authority; None where there is none. Raises EngineLost while nobody knows what runs here."""
        if self._admission is None:
            return None
        model = self._roster.model()
        if model is None:
            raise EngineLost
        caller = Caller(self._admission, model, spec.rows, parameters_in(socket.query_params), time.monotonic)
        self._callers[caller.session] = caller
        return caller

    async def _let_go(self, session: Session, caller: Caller | None) -> None:
        """First the slot, then the claim to it, so that whoever comes next finds it free."""
        await session.close()
        if caller is not None:
            del self._callers[caller.session]
            await caller.leave()

    async def _obey(self) -> None:
        """End the sessions whose tenants have spent their day."""
        while self._admission is not None:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                orders = await self._admission.spent()
            except EngineLost:
                continue
            for name in orders.keys() & self._callers.keys():
                self._callers[name].end(orders[name])

    def _note_refusal(self, reason: str) -> None:
        self._meter.refused(reason)
        logger.info("conversation refused reason=%s engines=%d", reason, len(self._roster.engines))

    async def _lease(self, session: Session, rows: int, caller: Caller | None) -> TextPieces | None:
        """Ask for a slot even when the news is bad: it is a second old, and the engine's own answer is the truth.

        Returns what the text tokens of the engine that granted it mean.
        """
        began_s = time.monotonic()
        if caller is None:
            granted = await self._ask(session, rows)
        else:
            granted = await self._claim(session, caller)
        self._instruments.granted(time.monotonic() - began_s)
        try:
            async with asyncio.timeout(TEXT_S):
                return await self._texts.pieces(granted.text_model)
        except (LookupError, TimeoutError):
            raise EngineLost from None  # it comes up: its text model is on the way

    async def _ask(self, session: Session, rows: int) -> Granted:
        """Ask until somebody grants: the router may choose a full engine while another has room, but not for ever."""
        for asked in itertools.count(1):
            try:
                return await session.lease(self._settings.grant_wait_s)
            except EngineFull as full:
                obstacle = self._roster.obstacle(rows)
                if obstacle is not None or not full.slots or asked >= 2 * len(self._roster.engines):
                    raise obstacle or full from None
        raise AssertionError("counting does not end")

    async def _claim(self, session: Session, caller: Caller) -> Granted:
        """Fetch the slot that is set aside. Who had it before may still be on the way out, a tick or two."""
        patience_s = time.monotonic() + self._settings.grant_wait_s
        while True:
            try:
                return await session.lease(self._settings.grant_wait_s, caller.admitted)
            except EngineFull:
                if time.monotonic() > patience_s:
                    raise
                await asyncio.sleep(CHANGEOVER_S)

    async def _converse(
        self, socket: WebSocket, session: Session, pieces: TextPieces | None, rows: int, caller: Caller | None
    ) -> None:
        watched = WatchedSocket(socket)

        async def attach() -> Channel:
            if caller is None:
                return await self._attach(session)
            if caller.waits:
                await caller.queue(connection.tell)
                found = await self._lease(session, rows, caller)
                connection.writes(found.stream() if found is not None else None)
            # Side by side: a round trip less before the visitor may speak, and a long prompt lets no grant expire.
            channel, _ = await asyncio.gather(self._attach(session), caller.confirm())
            caller.goes_live()
            return channel

        minders: list[Callable[[], Coroutine[Any, Any, None]]] = []
        if caller is not None:
            minders = [lambda: mind_term(caller, connection.tell, asyncio.sleep), caller.mind_orders]
        connection = Connection(
            watched,
            attach,
            pieces.stream() if pieces is not None else None,
            time.monotonic,
            silence_s=self._settings.silence_s,
            minders=minders,
        )
        ending = connection.ending
        name = SessionId(secrets.token_hex(4))
        logger.info("conversation start session=%s", name)
        with self._meter.conversation(connection.receiver.traffic, connection.sender.traffic):
            try:
                ending = await connection.run()
            except asyncio.CancelledError:
                ending = connection.ending
                if await watched.left_properly():
                    ending = dataclasses.replace(ending, cause="client")
                raise
            finally:
                self._meter.ended(ending.cause)
                logger.info(
                    "conversation end cause=%s session=%s duration_s=%.2f frames_in=%d frames_out=%d dropped=%d "
                    "discarded=%d",
                    ending.cause,
                    name,
                    ending.duration_s,
                    ending.frames_in,
                    ending.frames_out,
                    ending.dropped,
                    ending.discarded,
                )

    async def _attach(self, session: Session) -> Channel:
        began_s = time.monotonic()
        channel = await session.attach(self._settings.opened_s)
        self._instruments.shook_hands(time.monotonic() - began_s)
        return channel

    async def _show(self) -> None:
        while True:
            self._instruments.show(self._meter)
            await asyncio.sleep(HEARTBEAT_S)

    async def _warm(self, engines: Sequence[EngineCard]) -> None:
        """Before the first visitor: the text model, and one lease there and back, so that Ray's routes are known."""
        for model in {card.text_model for card in engines}:
            await self._texts.pieces(model)
        if any(card.free for card in engines):  # when all slots are taken there is no trial, and no need of one
            await _try(Session(self._leases.call, self._links, SessionSpec()))


async def _try(trial: Session) -> None:
    """One lease there and back. An engine that refuses because it is full has answered, too."""
    try:
        await trial.lease(WARM_S)
    except EngineFull as full:
        if not full.slots:  # nobody answered
            raise
    finally:
        await trial.close()


async def _no_such_path(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(NOT_FOUND, status_code=404)
