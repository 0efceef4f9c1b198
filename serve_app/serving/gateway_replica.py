"""One gateway as a Serve replica: HTTP answers, and a WebSocket per conversation. It never imports torch."""

import asyncio
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.staticfiles import StaticFiles

from serve_app.checkpoint.text import TextPieces
from serve_app.config import GatewaySettings, access_key, proxy_mode
from serve_app.errors import ChorusError, EngineFull
from serve_app.observability.logs import log_to_stderr
from serve_app.serving.answers import NOT_FOUND, refusal
from serve_app.serving.connection import Connection
from serve_app.serving.directory import EngineCard
from serve_app.serving.door import Door
from serve_app.serving.info import describe
from serve_app.serving.meter import Meter
from serve_app.serving.page import page_folder
from serve_app.serving.ray_calls import DirectoryHandle, LeaseHandle
from serve_app.serving.roster import Roster
from serve_app.serving.session import EngineLinks, Session
from serve_app.spec import SessionSpec
from serve_app.wire.query import parse_chat_query

QUIET_LOGGERS: Final = ("uvicorn.error", "uvicorn.access", "websockets")
"""They log addresses with their queries, and a query may hold a key."""

logger = logging.getLogger(__name__)


class GatewayReplica:
    """The deployment ``Gateway``."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr()
        self._settings = GatewaySettings.model_validate(settings)
        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._door = Door(access_key(), self._settings.origins)
        self._leases = LeaseHandle()
        self._links = EngineLinks()
        self._pieces: TextPieces | None = None
        self._directory = DirectoryHandle()
        self._roster = Roster(self._directory, time.monotonic, self._warm, self._links.take_lost)
        self._meter = Meter()
        self._watch = asyncio.create_task(self._roster.watch())

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray serves for this replica."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/ready", self.ready, methods=["GET"])
        app.add_api_route("/info", self.info, methods=["GET"])
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

    async def ready(self) -> JSONResponse:
        """Whether a conversation can start now, and why not."""
        obstacle = self._roster.obstacle()
        if obstacle is not None:
            return refusal(obstacle)
        return JSONResponse({"status": "ready"})

    async def info(self) -> dict[str, Any]:
        """What runs here, how busy it is and how fast."""
        return describe(self._roster.engines, self._meter, proxy_mode())

    async def nowhere(self, socket: WebSocket) -> None:
        """Any other path."""
        await socket.send_denial_response(JSONResponse(NOT_FOUND, status_code=404))

    async def chat(self, socket: WebSocket) -> None:
        """One conversation, from the question to the last word."""
        session: Session | None = None
        try:
            try:
                self._door.admit(socket.headers, socket.query_params)
                query = parse_chat_query(socket.query_params, self._roster.offer())
                session = Session(self._leases.call, self._links, query.spec)
                await self._lease(session, query.spec.rows)
            except ChorusError as error:
                self._meter.refused(error.reason)
                await socket.send_denial_response(refusal(error))
                return
            await socket.accept()
            await self._converse(socket, session)
        finally:
            if session is not None:
                await asyncio.shield(session.close())

    async def _lease(self, session: Session, rows: int) -> None:
        obstacle = self._roster.obstacle()
        if obstacle is not None and not isinstance(obstacle, EngineFull):  # a slot may be free since a second ago
            raise obstacle
        try:
            await session.lease(self._settings.grant_wait_s)
        except EngineFull as error:
            raise error if error.slots else self._roster.full(rows) from None

    async def _converse(self, socket: WebSocket, session: Session) -> None:
        connection = Connection(
            socket,
            lambda: session.attach(self._settings.opened_s),
            self._pieces.stream() if self._pieces is not None else None,
            time.monotonic,
            silence_s=self._settings.silence_s,
        )
        ending = connection.ending
        logger.info("conversation start")
        with self._meter.conversation(connection.receiver.traffic, connection.sender.traffic):
            try:
                ending = await connection.run()
            except asyncio.CancelledError:
                ending = connection.ending
                raise
            finally:
                self._meter.ended(ending.cause)
                logger.info(
                    "conversation end cause=%s duration_s=%.2f frames_in=%d frames_out=%d dropped=%d discarded=%d",
                    ending.cause,
                    ending.duration_s,
                    ending.frames_in,
                    ending.frames_out,
                    ending.dropped,
                    ending.discarded,
                )

    async def _warm(self, engines: Sequence[EngineCard]) -> None:
        """Before the first visitor: the text model, and one lease there and back, so that Ray's routes are known."""
        digest = engines[0].text_model
        if digest:
            content = await self._directory.text_model(digest)
            if content is None:
                raise LookupError("the text model has not arrived yet")
            self._pieces = await asyncio.to_thread(_load_pieces, content)
        trial = Session(self._leases.call, self._links, SessionSpec())
        try:
            await trial.lease(WARM_S)
        finally:
            await trial.close()


WARM_S: Final = 5.0


def _load_pieces(content: bytes) -> TextPieces:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.model"
        path.write_bytes(content)
        return TextPieces.load(path)


async def _no_such_path(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(NOT_FOUND, status_code=404)
