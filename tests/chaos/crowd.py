"""Conversations that go on until they are cut, and remember when and how."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from websockets.exceptions import ConnectionClosed

from tests.serving.conversation import FRAME_S, FRAME_SAMPLES, Visitor, tone, visit

VOICE_HZ: Final = 440.0
FRAMES: Final = 12
POLL_S: Final = 0.02


@dataclasses.dataclass(slots=True)
class Talker:
    """One who talks in real time and listens.

    Attributes:
        sent: frames said so far.
        ended_s: when the other side ended it, on the monotonic clock; None while it goes on.
        heard_s: when something came last.
    """

    visitor: Visitor
    sent: int = 0
    ended_s: float | None = None
    heard_s: float = 0.0
    silent: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    @property
    def unanswered(self) -> int:
        """Frames said that no sound came back for."""
        return self.sent - self.visitor.messages

    def waits_s(self, now_s: float) -> float:
        """How long nothing has come."""
        return now_s - self.heard_s

    async def talk(self) -> None:
        """Until it is told to be silent, or cut."""
        voice = tone(VOICE_HZ, FRAMES)
        began_s = time.monotonic()
        with contextlib.suppress(ConnectionClosed):
            while not self.silent.is_set():
                place = self.sent % FRAMES * FRAME_SAMPLES
                await self.visitor.say(voice[place : place + FRAME_SAMPLES])
                self.sent += 1
                await asyncio.sleep(max(0.0, began_s + self.sent * FRAME_S - time.monotonic()))

    async def listen(self) -> None:
        """Until it is cut."""
        try:
            while True:
                self.visitor.take(await self.visitor.socket.recv())
                self.heard_s = time.monotonic()
        except ConnectionClosed as closed:
            self.ended_s = time.monotonic()
            if closed.rcvd is not None:
                self.visitor.close_code, self.visitor.close_reason = closed.rcvd.code, closed.rcvd.reason


@contextlib.asynccontextmanager
async def crowd(address: str, size: int) -> AsyncIterator[list[Talker]]:
    """So many at once, every one of whom has been answered."""
    async with contextlib.AsyncExitStack() as doors:
        talkers = [Talker(await doors.enter_async_context(visit(address))) for _ in range(size)]
        tasks = [asyncio.create_task(life) for talker in talkers for life in (talker.talk(), talker.listen())]
        try:
            await until(lambda: all(talker.visitor.messages > FRAMES for talker in talkers), 10.0)
            yield talkers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def answered(talkers: list[Talker], limit_s: float = 2.0) -> None:
    """They fall silent, and every frame of theirs is answered, all but what the codec keeps for itself."""
    for talker in talkers:
        talker.silent.set()
    await until(lambda: all(talker.unanswered <= 1 for talker in talkers), limit_s)


async def until(what: Callable[[], bool], limit_s: float) -> None:
    """Wait for it, in this loop. Raises AssertionError."""
    deadline_s = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < deadline_s, f"not within {limit_s:g} s"
        await asyncio.sleep(POLL_S)
