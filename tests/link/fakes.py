"""Stand-ins for the link's surroundings."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import numpy.typing as npt

from serve_app.errors import ChorusError, StaleLease
from serve_app.link.channel import Channel, ChannelEvent
from serve_app.link.messages import Downward, Ended, Key, Opened, Output, Sink
from serve_app.units import FRAME_SAMPLES

TEST_S = 30.0


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on a fresh event loop, with an end to every wait."""

    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(TEST_S):
                await test(*args, **kwargs)

        asyncio.run(bounded())

    return run


class EchoPort:
    """An engine that opens at once and echoes every frame; the test may speak in its place."""

    def __init__(self) -> None:
        self.sinks: dict[Key, Sink] = {}
        self.pushed: list[tuple[Key, int]] = []
        self.closed: list[Key] = []
        self.refusal: ChorusError | None = None
        self.silent = False
        self._changed = asyncio.Event()

    def open(self, key: Key, sink: Sink) -> None:
        if self.refusal is not None:
            raise self.refusal
        if key in self.sinks:
            raise StaleLease(*key)
        self.sinks[key] = sink
        if not self.silent:
            sink([Opened(key)])
        self._changed.set()

    def push(self, key: Key, number: int, pcm: npt.NDArray[np.float32]) -> None:
        self.pushed.append((key, number))
        if not self.silent:
            self.say(output(key, number, pcm))
        self._changed.set()

    def close(self, key: Key) -> None:
        self.closed.append(key)
        sink = self.sinks.pop(key, None)
        if sink is not None and not self.silent:
            sink([Ended(key)])
        self._changed.set()

    def lose(self, key: Key) -> None:
        self.close(key)

    def say(self, message: Downward) -> None:
        self.sinks[message.key]([message])

    async def until(self, found: Callable[["EchoPort"], bool]) -> None:
        while not found(self):
            self._changed.clear()
            await self._changed.wait()


def frame(value: float) -> npt.NDArray[np.float32]:
    return np.full(FRAME_SAMPLES, value, np.float32)


def output(key: Key, number: int, pcm: npt.NDArray[np.float32] | None = None, codes: Sequence[int] = ()) -> Output:
    return Output(
        key=key,
        number=number,
        step=number,
        text_token=3,
        ready_s=1.0,
        started_s=2.0,
        done_s=3.0,
        codes=np.array(codes, np.int16),
        pcm=pcm,
    )


async def rest(channel: Channel) -> list[ChannelEvent]:
    """Everything that still comes, to the end."""
    return [event async for event in channel]


async def next_output(channel: Channel) -> Output:
    event = await anext(channel)
    assert isinstance(event, Output)
    return event
