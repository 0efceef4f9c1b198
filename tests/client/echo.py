"""A server of one process that speaks the server's side of `/api/chat` and answers every frame with itself.

Real protocol, real Opus, no model: what a client or the page needs to be tested before and beside the real gateway.
"""

import asyncio
import contextlib
import dataclasses
import json
import mimetypes
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from serve_app.audio.budget import audio_budget
from serve_app.audio.frames import Pcm
from serve_app.audio.opus import OpusReceiver, OpusSender
from serve_app.wire import events as wire
from serve_app.wire.chat import ChatServer

FRAMES_PER_WORD = 6
IDLE_S = 1.0
"""Browsers open connections that they may need; closing waits for these."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An HTTP answer before the upgrade."""

    status: int = 503
    body: str = '{"reason": "full", "message": "all 16 slots are taken"}'
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"Retry-After": "7"})


@dataclasses.dataclass
class EchoServer:
    """What it does, and what it saw.

    Attributes:
        delay_frames: steps that give no audio, as a model's delay does.
        refusal: answered to whoever wants to talk, and by /ready.
        queue: said about the queue before anything else.
        queue_pause_s: before each word of it.
        turned_away: reason with which it ends while it waits.
        shakes: whether the handshake is sent.
        end_after_frames: then ``said`` is sent and the connection closed with ``end_code``.
        silent: hears, and answers nothing.
        drops: frames by cause, reported as dropped after the handshake.
        tells: metadata, after the handshake.
        spent_ms: by part, told after the handshake to whoever asked for its latency.
        mixes: answers everybody with what anybody said last.
        grace_s: how long clients are told that they may come back; None gives no tokens.
        folder: files to serve beside the chat.
        frames: what was heard, of all sessions.
        queries: one per connection.
        close_codes: with which the connections ended, in order.
    """

    delay_frames: int = 0
    refusal: Refusal | None = None
    queue: Sequence[Mapping[str, object]] = ()
    queue_pause_s: float = 0.0
    turned_away: str = ""
    shakes: bool = True
    silent: bool = False
    mixes: bool = False
    drops: Mapping[str, int] | None = None
    tells: Sequence[Mapping[str, object]] = ()
    spent_ms: Mapping[str, float] | None = None
    end_after_frames: int | None = None
    end_code: int = 1011
    said: str = ""
    grace_s: float | None = None
    token: str = ""
    folder: Path | None = None
    model: str = "echo"
    frames: list[Pcm] = dataclasses.field(default_factory=list)
    queries: list[dict[str, str]] = dataclasses.field(default_factory=list)
    authorizations: list[str | None] = dataclasses.field(default_factory=list)
    audio_messages: int = 0
    closed: int = 0
    close_codes: list[int | None] = dataclasses.field(default_factory=list)
    port: int = 0
    connections: set[ServerConnection] = dataclasses.field(default_factory=set)
    _asked: list[ServerConnection] = dataclasses.field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        server: Server
        async with serve(
            self._converse,
            "127.0.0.1",
            0,
            process_request=self._http,
            compression=None,
            ping_interval=None,
            open_timeout=IDLE_S,
        ) as server:
            self.port = next(iter(server.sockets)).getsockname()[1]
            yield self
        for connection in self._asked:  # Python 3.11 does not wait for what a browser keeps open
            connection.transport.abort()
        await asyncio.sleep(0)  # for the loop to close what was aborted

    def abort(self) -> None:
        """Break every connection without a word, as a killed process does."""
        for connection in self.connections:
            connection.transport.abort()

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        self._asked.append(connection)
        path = urlsplit(request.path).path
        if path == "/api/chat":
            query = dict(parse_qsl(urlsplit(request.path).query))
            if "resume" in query and query["resume"] != self.token:
                return _response(Refusal(410, '{"reason": "session_gone", "message": "too late"}', {}))
            return None if self.refusal is None else _response(self.refusal)
        if path == "/ready":
            return _response(self.refusal or Refusal(200, '{"ready": true}', {}))
        if path == "/api/ticket":
            return _response(Refusal(200, '{"wanted": false}', {}))
        if path == "/info":
            return _response(Refusal(200, json.dumps({"model": self.model, "slots_used": 1, "slots_free": 15}), {}))
        return self._file("index.html" if path == "/" else path.lstrip("/"))

    def _file(self, name: str) -> Response:
        path = None if self.folder is None else self.folder / name
        if path is None or not path.is_file():
            return _response(Refusal(404, '{"reason": "not_found"}', {}))
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = Headers({"Content-Type": kind, "Content-Length": str(path.stat().st_size), **SECURITY})
        return Response(200, "OK", headers, path.read_bytes())

    async def _converse(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.queries.append(dict(parse_qsl(urlsplit(connection.request.path).query)))
        self.authorizations.append(connection.request.headers.get("Authorization"))
        self.connections.add(connection)
        with contextlib.suppress(ConnectionClosed):
            await self._echo(connection)
        self.closed += 1
        self.close_codes.append(connection.close_code)

    async def _echo(self, connection: ServerConnection) -> None:
        chat = ChatServer(time.monotonic)
        receiver, sender = OpusReceiver(audio_budget(), time.monotonic), OpusSender()
        step = 0
        for told in self.queue:
            await asyncio.sleep(self.queue_pause_s)
            await connection.send(chat.metadata({"queue": told}))
        if self.turned_away:
            await connection.close(1013, self.turned_away)
            return
        if self.shakes:
            await connection.send(chat.handshake())
        if self.grace_s is not None:
            self.token = f"echo.{len(self.queries)}"
            await connection.send(chat.metadata({"resume": {"token": self.token, "grace_s": self.grace_s}}))
        for told in self.tells:
            await connection.send(chat.metadata(told))
        if self.drops is not None:
            await connection.send(chat.metadata({"type": "dropped", "frames": self.drops}))
        if self.spent_ms is not None and self.queries[-1].get("latency") == "1":
            parts = {part: {"p50": spent, "p99": spent, "max": spent} for part, spent in self.spent_ms.items()}
            await connection.send(chat.metadata({"type": "latency", "frames": 1, "ms": parts}))
        async for message in connection:
            for event in chat.receive(message):
                if not isinstance(event, wire.Audio):
                    continue
                self.audio_messages += 1
                for frame in receiver.feed(event.payload).frames:
                    answer = self.frames[-1] if self.mixes and self.frames else frame
                    self.frames.append(frame)
                    step += 1
                    if not self.silent and step > self.delay_frames:
                        await connection.send(chat.audio(sender.encode(answer)))
                        if step % FRAMES_PER_WORD == 0:
                            await connection.send(chat.text(f" word{step // FRAMES_PER_WORD}"))
                    if step == self.end_after_frames:
                        if self.said:
                            await connection.send(chat.error(self.said))
                        await connection.close(self.end_code, "over")
                        return


SECURITY = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self' ws: wss:",
    "Cache-Control": "no-store",
}
"""The strictest policy that the page must live with."""


def _response(refusal: Refusal) -> Response:
    body = refusal.body.encode()
    fixed = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    return Response(refusal.status, HTTPStatus(refusal.status).phrase, Headers({**fixed, **refusal.headers}), body)
