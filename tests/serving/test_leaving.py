"""Visitors that say goodbye and visitors that vanish are told apart."""

import asyncio
from typing import Any

import pytest

from serve_app.serving.leaving import WatchedSocket
from tests.link.fakes import on_loop

SOUND = {"type": "websocket.receive", "bytes": b"\x01"}


class Socket:
    """Gives the messages that it was made with, and then waits, or raises as Starlette's does after the last."""

    def __init__(self, *messages: dict[str, Any], ends: bool = False) -> None:
        self._messages = list(messages)
        self._ends = ends
        self.sent: list[object] = []

    async def receive(self) -> Any:
        if self._messages:
            return self._messages.pop(0)
        if self._ends:
            raise RuntimeError("nothing comes after a disconnect")
        return await asyncio.Event().wait()

    async def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.sent.append((code, reason))


def gone(code: int | None) -> dict[str, Any]:
    return {"type": "websocket.disconnect"} | ({} if code is None else {"code": code})


@pytest.mark.parametrize(
    ("code", "properly"), [(1000, True), (1001, True), (1005, True), (None, True), (1006, False), (1011, False)]
)
@on_loop
async def test_the_code_of_a_close_tells_whether_it_was_one(code: int | None, properly: bool) -> None:
    watched = WatchedSocket(Socket(gone(code), ends=True))
    await watched.receive()
    assert await watched.left_properly() is properly


@pytest.mark.parametrize(
    ("said", "broke"),
    [
        ({"code": 1000, "reason": ""}, False),
        ({"code": 1001, "reason": ""}, False),
        ({"code": 1005, "reason": ""}, False),  # a close frame without a code
        ({"code": 1005}, True),  # how uvicorn tells of a connection that broke
        ({"code": 1006}, True),
        ({"code": 1012, "reason": ""}, True),
    ],
)
@on_loop
async def test_a_connection_that_broke_is_told_from_one_that_was_closed(said: dict[str, Any], broke: bool) -> None:
    assert await WatchedSocket(Socket({"type": "websocket.disconnect", **said}, ends=True)).broke() is broke


@on_loop
async def test_a_close_that_nobody_had_read_yet_is_found_behind_what_came_before() -> None:
    assert await WatchedSocket(Socket(SOUND, SOUND, gone(1000))).left_properly()


@on_loop
async def test_who_said_nothing_has_not_closed() -> None:
    assert not await WatchedSocket(Socket(SOUND)).left_properly()


@on_loop
async def test_everything_else_goes_through() -> None:
    socket = Socket(SOUND)
    watched = WatchedSocket(socket)
    assert await watched.receive() == SOUND
    await watched.send_bytes(b"x")
    await watched.close(1008, "silent")
    assert socket.sent == [b"x", (1008, "silent")]
