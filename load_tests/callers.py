"""Callers who talk through a rollout: they hear what the server says about it, and call again."""

import asyncio
import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from load_tests.account import Account
from serve_app.client.address import chat_url
from serve_app.units import FRAME_S
from serve_app.wire.events import Kind

FINISH_S: Final = 2.0
"""So long a caller that was told to leave goes on, to finish its sentence."""
AGAIN_S: Final = 0.2
OPEN_S: Final = 10.0
IN_FLIGHT_S: Final = 0.5
LAST_ANSWERS_S: Final = 1.0


@dataclasses.dataclass(slots=True)
class Visit:
    """One session of one caller.

    Attributes:
        opened_s: how long it took to get in.
        told_s: seconds until its end, as the server promised; None while it has not.
        hint: the server said when to come again.
        code: with which the server ended it; None where this side did.
        lost: frames.
        dropped: frames that the server says it dropped, mostly because it lagged behind.
    """

    opened_s: float
    account: Account = dataclasses.field(default_factory=Account)
    told_s: float | None = None
    hint: bool = False
    code: int | None = None
    lost: int = 0
    dropped: int = 0
    ended_s: float = math.nan

    @property
    def silent(self) -> bool:
        """Ended by somebody else without a word before."""
        return self.code is not None and self.told_s is None


class Caller:
    """Talks through a rollout.

    Args:
        url: of the server.
        messages: what it says, over and over.
        obeys: leaves when it is told to, and calls again; else it talks on until it is sent away, and calls again then.
    """

    def __init__(self, url: str, messages: Sequence[bytes], *, obeys: bool) -> None:
        self._url = url
        self._messages = messages
        self._obeys = obeys
        self.visits: list[Visit] = []
        self.live = asyncio.Event()

    async def talk(self, over: asyncio.Event) -> None:
        """One session after the other until it is over."""
        while not over.is_set():
            began_s = time.monotonic()
            async with contextlib.AsyncExitStack() as stack:
                socket = await call(self._url, stack)
                visit = Visit(opened_s=time.monotonic() - began_s)
                self.visits.append(visit)
                self.live.set()
                await converse(socket, visit, self._messages, over, obeys=self._obeys)
            visit.ended_s = time.monotonic()


async def call(url: str, stack: contextlib.AsyncExitStack) -> ClientConnection:
    """Open a session, coming again for as long as the server has no room or does not answer."""
    while True:
        try:
            async with asyncio.timeout(OPEN_S):
                socket = await connect(chat_url(url), compression=None, proxy=None, close_timeout=2.0)
                stack.push_async_callback(socket.close)
                while (await socket.recv())[:1] != bytes([Kind.HANDSHAKE]):
                    pass
                return socket
        except (InvalidStatus, InvalidHandshake, ConnectionClosed, OSError, TimeoutError):
            await asyncio.sleep(AGAIN_S)


async def converse(
    socket: ClientConnection, visit: Visit, messages: Sequence[bytes], over: asyncio.Event, *, obeys: bool
) -> None:
    """Speak and listen until it is over, until the caller leaves, or until it is sent away."""
    sent_s: list[float] = []
    told = asyncio.Event()
    listening = asyncio.create_task(_listen(socket, visit, told))
    leaving = asyncio.create_task(_leave(over, told if obeys else None))
    try:
        await _speak(socket, visit.account, messages, leaving, sent_s)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(listening), LAST_ANSWERS_S)
    except ConnectionClosed:
        await listening
    finally:
        leaving.cancel()
        listening.cancel()
        await asyncio.gather(leaving, listening, return_exceptions=True)
    ended_s = time.monotonic()
    due = sum(at_s < ended_s - IN_FLIGHT_S for at_s in sent_s)
    visit.lost = max(0, due - (visit.account.trips.delay_frames or 0) - visit.account.received)


async def _leave(over: asyncio.Event, told: asyncio.Event | None) -> None:
    """Return when the caller wants to leave."""
    if told is None:
        await over.wait()
        return
    waits = [asyncio.create_task(over.wait()), asyncio.create_task(told.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    if told.is_set():
        await asyncio.sleep(FINISH_S)


async def _speak(
    socket: ClientConnection,
    account: Account,
    messages: Sequence[bytes],
    leaving: asyncio.Task[None],
    sent_s: list[float],
) -> None:
    due_s = time.monotonic()
    while not leaving.done():
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        now_s = time.monotonic()
        account.frame_sent(now_s, due_s)
        sent_s.append(now_s)
        await socket.send(messages[len(sent_s) % len(messages)] if len(sent_s) > 1 else messages[0])
        if now_s - due_s > FRAME_S:
            account.shifts += 1
            due_s = now_s
        due_s += FRAME_S


async def _listen(socket: ClientConnection, visit: Visit, told: asyncio.Event) -> None:
    try:
        async for message in socket:
            if message[:1] == bytes([Kind.AUDIO]) and len(message) > 1:
                visit.account.audio_received(time.monotonic(), len(message) - 1)
            elif message[:1] == bytes([Kind.METADATA]):
                _note(visit, json.loads(message[1:]), told)
    except ConnectionClosed:
        pass
    received = socket.protocol.close_rcvd
    ours = socket.protocol.close_rcvd_then_sent is False
    if not ours:
        visit.code = received.code if received is not None else 1006


def _note(visit: Visit, value: Any, told: asyncio.Event) -> None:
    if "going_away" in value:
        visit.told_s = float(value["going_away"]["s"]) if visit.told_s is None else visit.told_s
        told.set()
    if "retry_after_s" in value.get("error", {}):
        visit.hint = True
    if value.get("type") == "dropped":
        visit.dropped += sum(value["frames"].values())


async def newcomers(url: str, over: asyncio.Event) -> list[tuple[float, float]]:
    """Call all the time, one after the other: how long each took to get in, and when it began."""
    took_s = []
    while not over.is_set():
        began_s = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            await call(url, stack)
            took_s.append((time.monotonic() - began_s, began_s))
        await asyncio.sleep(AGAIN_S)
    return took_s
