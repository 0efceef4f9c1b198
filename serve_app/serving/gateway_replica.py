"""One gateway as a Serve replica: HTTP answers, and a WebSocket per conversation. It never imports torch."""

import asyncio
import contextvars
import logging
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from fastapi import FastAPI, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from serve_app.audio.opus import OpusSender
from serve_app.config import GatewaySettings, access_key, operator_key, proxy_mode, require_key_beyond_loopback
from serve_app.errors import ChorusError, EngineDraining, EngineFull, EngineLost
from serve_app.observability.logs import log_to_stderr
from serve_app.serving.answers import NOT_FOUND, discreet, refusal
from serve_app.serving.caller import Caller
from serve_app.serving.conversation import Conversation, House
from serve_app.serving.departure import LOOK_S, Departure
from serve_app.serving.directory import HEARTBEAT_S, EngineCard
from serve_app.serving.door import Door
from serve_app.serving.info import describe, readiness
from serve_app.serving.instruments import GatewayInstruments
from serve_app.serving.knock import Knock
from serve_app.serving.meter import Meter
from serve_app.serving.operator_pages import OperatorPages
from serve_app.serving.page import page_folder
from serve_app.serving.ray_calls import AdmissionHandle, DirectoryHandle, LeaseHandles, http_host
from serve_app.serving.resuming import Keeping, Returning, Token
from serve_app.serving.retirement import leave_now, ray_timers, watch_retirement
from serve_app.serving.roster import Roster, ServedModel
from serve_app.serving.session import EngineLinks, Session
from serve_app.serving.tenant_pages import TenantPages
from serve_app.serving.texts import Texts
from serve_app.serving.timers import GATEWAY_GRACE_S, gateway_complaints
from serve_app.serving.tracing import open_tracing
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES
from serve_app.wire.query import ChatQuery, model_asked, parameters_in, parse_chat_query

QUIET_LOGGERS: Final = ("uvicorn.error", "uvicorn.access", "websockets")
"""They log addresses with their queries, and a query may hold a key."""
WARM_S: Final = 5.0
DEREGISTER_S: Final = 2.0
"""So long after it was replaced the proxy may still send visitors here: they are let in, and told."""

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
        self._here: set[Conversation] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._directory = DirectoryHandle()
        links = EngineLinks()
        self._house = House(
            settings=self._settings,
            leases=LeaseHandles(),
            links=links,
            roster=Roster(self._directory, time.monotonic, self._warm, links.take_lost),
            texts=Texts(self._directory.text_model),
            meter=Meter(),
            instruments=GatewayInstruments(),
            departure=Departure(self._settings.drain_s - GATEWAY_GRACE_S, time.monotonic),
            host=self._admission,
        )
        self._tracing = open_tracing(self._settings.traces, self._name)
        self._complaints = gateway_complaints(ray_timers(), self._settings.drain_s, self._settings.longest_s)
        for complaint in self._complaints:
            logger.error("%s", complaint)
        self._retirement = watch_retirement(self._house.departure.begin)
        self._going = asyncio.create_task(self._go())
        self._watch = asyncio.create_task(self._house.roster.watch())
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
        key = operator_key()
        if key is not None:
            app.add_api_route("/debug/ticks", OperatorPages(key, self._directory.ticks).ticks, methods=["GET"])
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
        app.add_api_websocket_route("/api/chat/{model}", self.chat)
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
        """Whether a conversation can start now, with any model, and why not with each."""
        return readiness(self._house.roster, self._name)

    async def info(self, request: Request) -> JSONResponse:
        """What runs here, how busy it is and how fast: for whoever may open a conversation."""
        try:
            self._door.admit(request.headers, request.query_params)
        except ChorusError as error:
            return refusal(error)
        roster, meter = self._house.roster, self._house.meter
        models = [model.name for model in roster.models]
        return JSONResponse(describe(roster.engines, models, meter, proxy_mode(), self._name, self._complaints))

    async def nowhere(self, socket: WebSocket) -> None:
        """Any other path."""
        self._note_refusal(NOT_FOUND["reason"])
        await socket.send_denial_response(JSONResponse(NOT_FOUND, status_code=404))

    async def chat(self, socket: WebSocket) -> None:
        """One conversation, from the question to the last word."""
        conversation: Conversation | None = None
        opening = self._tracing.opening()
        try:
            try:
                with opening.part("question"):
                    model, asked = await self._question(socket)
                    comeback = await self._comeback(asked, socket)
                if isinstance(comeback, Returning):
                    caller, model = None, self._house.roster.running(comeback.token.engine) or model
                else:
                    caller = self._caller(model, asked, socket)
                conversation = Conversation(self._house, model, asked, caller, opening, comeback)
                self._here.add(conversation)
                await conversation.begin(self._knock(socket))
            except ChorusError as error:
                opening.end(error.reason)
                self._note_refusal(error.reason)
                await socket.send_denial_response(refusal(error))
                return
            await socket.accept()
            await conversation.run(socket)
        finally:
            opening.end("aborted")
            if conversation is not None:
                # In a context of its own: Ray would end a call made inside a request together with that request.
                leaving = asyncio.create_task(self._let_go(conversation), context=contextvars.Context())
                self._leaving.add(leaving)  # a task that nobody holds may vanish
                leaving.add_done_callback(self._leaving.discard)
                await asyncio.shield(leaving)

    async def _question(self, socket: WebSocket) -> tuple[ServedModel, ChatQuery]:
        """What a visitor asks for, who may ask. Where tenants knock, a credential is judged with the question itself.

        Raises ParameterRefused and ModelUnknown only to whom we know.
        """
        if self._house.departure.since_s > DEREGISTER_S:
            raise EngineDraining
        if self._settings.tenants is None:
            self._door.admit(socket.headers, socket.query_params)
        asked: str | None = None
        try:
            asked = model_asked(socket.query_params, socket.path_params.get("model", ""))
            model = self._house.roster.served(asked)
            return model, parse_chat_query(socket.query_params, model.offer)
        except ChorusError as error:
            if self._settings.tenants is None or self._admission is None:
                raise
            found = await self._admission.identify(self._knock(socket))
            raise discreet(error, found, asked) from None

    async def _comeback(self, query: ChatQuery, socket: WebSocket) -> Keeping | Returning | None:
        """Whether a visitor comes back, or can. Raises SessionGone for what is no token, but only to whom we know."""
        asked = tuple((name, socket.query_params[name]) for name in sorted(parameters_in(socket.query_params)))
        if query.resume is None:
            keeps = query.resumable and self._settings.resume_s > 0
            return Keeping(self._settings.resume_s, asked) if keeps else None
        tenant = None
        if self._settings.tenants is not None and self._admission is not None:
            found = await self._admission.identify(self._knock(socket))
            if isinstance(found, ChorusError):
                raise found
            tenant = found.name
        return Returning(Token.read(query.resume), tenant, asked)

    def _knock(self, socket: WebSocket) -> Knock:
        return Knock.of(socket.headers, socket.query_params, self._homes)

    def _caller(self, model: ServedModel, asked: ChatQuery, socket: WebSocket) -> Caller | None:
        """One who asks the authority; None where there is none."""
        if self._admission is None:
            return None
        return Caller(self._admission, model.name, asked.spec.rows, parameters_in(socket.query_params), time.monotonic)

    async def _let_go(self, conversation: Conversation) -> None:
        await conversation.close()
        self._here.discard(conversation)

    async def _go(self) -> None:
        """Once this gateway is replaced: its conversations end by themselves or at its end; then it goes.

        Behind the fast proxy Ray would keep it for the whole of its draining period even when nobody is there.
        """
        departure = self._house.departure
        await departure.begun()
        logger.info(
            "gateway replaced conversations=%(conversations)d drain_s=%(drain_s)g",
            {"conversations": len(self._here), "drain_s": departure.left_s},
        )
        if proxy_mode() == "haproxy":
            while self._here or departure.since_s < DEREGISTER_S:
                await asyncio.sleep(LOOK_S)
            leave_now()

    async def _obey(self) -> None:
        """End the sessions whose tenants have spent their day."""
        while self._admission is not None:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                orders = await self._admission.spent()
            except EngineLost:
                continue
            for caller in [conversation.caller for conversation in self._here]:
                if caller is not None and caller.session in orders:
                    caller.end(orders[caller.session])

    def _note_refusal(self, reason: str) -> None:
        self._house.meter.refused(reason)
        logger.info(
            "conversation refused reason=%(reason)s engines=%(engines)d",
            {"reason": reason, "engines": len(self._house.roster.engines)},
        )

    async def _show(self) -> None:
        while True:
            self._house.instruments.show(self._house.meter)
            await asyncio.sleep(HEARTBEAT_S)

    async def _warm(self, engines: Sequence[EngineCard]) -> None:
        """Before the first visitor of a model: its text, and one lease there and back, so that Ray's routes are known.

        All engines are of one application.
        """
        for model in {card.text_model for card in engines}:
            await self._house.texts.pieces(model)
        if any(card.free for card in engines):  # when all slots are taken there is no trial, and no need of one
            await _try(Session(self._house.leases.of(engines[0].application).call, self._house.links, SessionSpec()))


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
