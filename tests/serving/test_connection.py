"""One connection between a made-up socket and a made-up engine."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from serve_app.audio.opus import OpusSender
from serve_app.errors import ChorusError, EngineDraining, EngineLost, NotFinite, SessionFault
from serve_app.link.channel import Channel
from serve_app.link.messages import Downward, Dropped, Ended, Frame, Key, Opened, Output, Upward
from serve_app.serving.answers import RETRY_AFTER_S
from serve_app.serving.connection import Connection, Ending
from serve_app.serving.latency import EVERY_S, Latency
from serve_app.units import FRAME_SAMPLES
from serve_app.wire.events import Kind
from tests.audio.streams import Clock
from tests.link.fakes import on_loop

KEY = Key(0, 0)
FOREVER_S = 3600.0
SPEECH = np.sin(np.arange(FRAME_SAMPLES, dtype=np.float32) / 10)


class Socket:
    """What the peer sends is put in; what it is sent is kept."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[bytes] = []
        self.closed: tuple[int, str | None] | None = None
        self.changed = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        return await self.incoming.get()

    async def send_bytes(self, data: bytes) -> None:
        self.sent.append(data)
        self.changed.set()

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.closed = (code, reason)

    def says(self, content: bytes | str) -> None:
        kind = "bytes" if isinstance(content, bytes) else "text"
        self.incoming.put_nowait({"type": "websocket.receive", kind: content})

    def leaves(self) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})

    @property
    def kinds(self) -> list[int]:
        return [data[0] for data in self.sent]

    async def until_taken(self) -> None:
        while not self.incoming.empty():
            await asyncio.sleep(0)

    async def until_sent(self, count: int) -> None:
        while len(self.sent) < count:
            self.changed.clear()
            await self.changed.wait()


class Stage:
    """A connection and both its sides."""

    def __init__(
        self,
        *,
        silence_s: float = FOREVER_S,
        refuse: ChorusError | None = None,
        clock: Callable[[], float] = time.monotonic,
        latency: Latency | None = None,
    ) -> None:
        self.socket = Socket()
        self.frames: list[Frame] = []
        self.pushed = asyncio.Event()
        self.channel = Channel(KEY, self._transmit)
        self.may_open = asyncio.Event()
        self.refuse = refuse
        self.connection = Connection(self.socket, self._attach, None, clock, silence_s=silence_s, latency=latency)
        self.running = asyncio.create_task(self.connection.run())

    def _transmit(self, message: Upward) -> None:
        if isinstance(message, Frame):
            self.frames.append(message)
            self.pushed.set()

    def _attach(self) -> Coroutine[Any, Any, Channel]:
        return self._opened()

    async def _opened(self) -> Channel:
        await self.may_open.wait()
        if self.refuse is not None:
            raise self.refuse
        return self.channel

    async def open(self) -> None:
        self.may_open.set()
        await self.socket.until_sent(1)

    def engine_says(self, *messages: Downward) -> None:
        for message in messages:
            self.channel.deliver(message)

    async def end(self) -> Ending:
        self.socket.leaves()
        return await self.running


def output(step: int, pcm: np.ndarray[Any, np.dtype[np.float32]] | None) -> Output:
    return Output(
        KEY,
        number=step,
        step=step,
        text_token=-2,
        ready_s=0.0,
        started_s=0.0,
        done_s=0.0,
        codes=np.zeros(8, np.int16),
        pcm=pcm,
    )


def audio(sender: OpusSender, frames: int = 1) -> bytes:
    return b"\x01" + b"".join(sender.encode(SPEECH) for _ in range(frames))


@on_loop
async def test_the_handshake_waits_for_the_slot() -> None:
    stage = Stage()
    stage.socket.says(b"\x06")
    await asyncio.sleep(0)
    assert stage.socket.sent == []
    await stage.open()
    assert stage.socket.kinds == [Kind.HANDSHAKE]
    await stage.end()


@on_loop
async def test_audio_before_the_handshake_is_dropped_and_what_follows_decodes() -> None:
    stage, sender = Stage(), OpusSender()
    stage.socket.says(audio(sender))
    await stage.socket.until_taken()
    assert stage.frames == []
    await stage.open()
    stage.socket.says(audio(sender))
    await stage.pushed.wait()
    assert stage.frames[0].number == 0
    await stage.end()


@on_loop
async def test_a_step_without_sound_sends_nothing() -> None:
    stage = Stage()
    await stage.open()
    stage.engine_says(output(0, None), output(1, SPEECH))
    await stage.socket.until_sent(2)
    assert stage.socket.kinds == [Kind.HANDSHAKE, Kind.AUDIO]
    assert (await stage.end()).frames_out == 1


@on_loop
async def test_drops_are_reported_as_metadata() -> None:
    stage = Stage()
    await stage.open()
    stage.engine_says(Dropped(KEY, 3, "lag"))
    await stage.socket.until_sent(2)
    assert stage.socket.kinds[1] == Kind.METADATA
    assert json.loads(stage.socket.sent[1][1:]) == {"type": "dropped", "frames": {"lag": 3}}
    assert (await stage.end()).dropped == 3


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (NotFinite("x"), 1011, "internal error"),
        (SessionFault("the step failed"), 1011, "internal error"),
        (EngineLost(), 1012, "the engine is not reachable; try again"),
        (EngineDraining(), 1012, "the server is restarting; try again"),
    ],
    ids=lambda value: getattr(value, "reason", None),
)
def test_the_engines_error_becomes_words_and_a_close_code(error: ChorusError, code: int, told: str) -> None:
    @on_loop
    async def talk() -> None:
        stage = Stage()
        await stage.open()
        stage.engine_says(Ended.of(KEY, error))
        ending = await stage.running
        assert stage.socket.sent[-1] == bytes([Kind.ERROR]) + told.encode()
        assert stage.socket.closed == (code, error.reason)
        assert ending.cause == error.reason

    talk()


@on_loop
async def test_a_slot_that_cannot_be_opened_closes_without_a_handshake() -> None:
    stage = Stage(refuse=EngineLost())
    stage.may_open.set()
    assert (await stage.running).cause == "engine_lost"
    assert stage.socket.kinds == [Kind.METADATA, Kind.ERROR]
    assert json.loads(stage.socket.sent[0][1:]) == {"error": {"reason": "engine_lost", "retry_after_s": RETRY_AFTER_S}}
    assert stage.socket.closed == (1012, "engine_lost")


@on_loop
async def test_an_end_that_trying_again_would_not_help_gives_no_hint() -> None:
    stage = Stage()
    await stage.open()
    before = len(stage.socket.kinds)
    stage.engine_says(Ended.of(KEY, NotFinite("x")))
    await stage.running
    assert stage.socket.kinds[before:] == [Kind.ERROR]


@on_loop
async def test_silence_ends_a_conversation() -> None:
    stage = Stage(silence_s=0.05)
    await stage.open()
    assert (await stage.running).cause == "no_audio"
    assert stage.socket.closed == (1008, "no_audio")


NOT_SOUND = {"empty": b"\x01", "not Ogg": b"\x01hello", "ping": b"\x06", "page cut short": b"\x01OggS"}


@pytest.mark.parametrize("message", NOT_SOUND.values(), ids=NOT_SOUND.keys())
def test_messages_without_sound_hold_no_slot(message: bytes) -> None:
    @on_loop
    async def talk() -> None:
        clock = Clock()
        stage = Stage(silence_s=0.05, clock=clock)
        await stage.open()
        clock.now_s = 0.04
        stage.socket.says(message)
        await stage.socket.until_taken()
        clock.now_s = 0.06
        assert (await stage.running).cause == "no_audio"

    talk()


@pytest.mark.parametrize("spent_s", [0, 6], ids=["heard", "dropped as too fast"])
def test_sound_holds_the_slot(spent_s: int) -> None:
    @on_loop
    async def talk() -> None:
        clock, sender = Clock(), OpusSender()
        stage = Stage(silence_s=0.05, clock=clock)
        await stage.open()
        for _ in range(spent_s):
            stage.socket.says(audio(sender, 13))
        await stage.socket.until_taken()
        clock.now_s = 0.03
        stage.socket.says(audio(sender))
        await stage.socket.until_taken()
        clock.now_s = 0.06
        await asyncio.wait({stage.running}, timeout=0.15)
        assert not stage.running.done()
        await stage.end()

    talk()


@on_loop
async def test_a_client_that_leaves_is_no_error() -> None:
    stage = Stage()
    await stage.open()
    assert (await stage.end()).cause == "client"
    assert stage.socket.closed is None


@on_loop
async def test_an_end_that_nobody_here_asked_for_is_a_lost_engine() -> None:
    stage = Stage()
    await stage.open()
    stage.engine_says(Opened(KEY), Ended.of(KEY, None))
    assert (await stage.running).cause == "engine_lost"
    assert stage.socket.sent[-1] == bytes([Kind.ERROR]) + b"the engine is not reachable; try again"
    assert stage.socket.closed == (1012, "engine_lost")


@on_loop
async def test_a_fault_of_ours_is_contained_and_shows_no_internals() -> None:
    stage = Stage()
    await stage.open()
    stage.socket.incoming.put_nowait({"what": "is this"})
    assert (await stage.running).cause == "session_failed"
    assert stage.socket.sent[-1] == bytes([Kind.ERROR]) + b"internal error"
    assert stage.socket.closed == (1011, "session_failed")


@on_loop
async def test_a_cancelled_handler_leaves_no_task_behind() -> None:
    stage = Stage()
    await stage.open()
    stage.running.cancel()
    await asyncio.wait({stage.running})
    assert stage.running.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@on_loop
async def test_a_client_that_asked_is_told_once_a_second_where_the_time_of_its_frames_went() -> None:
    clock = Clock()
    stage, sender = Stage(clock=clock, latency=Latency(clock)), OpusSender()
    await stage.open()
    for number in range(2):
        stage.pushed.clear()
        while len(stage.frames) <= number:
            stage.socket.says(audio(sender))
            await stage.socket.until_taken()
        clock.now_s += EVERY_S
        stage.engine_says(output(number, SPEECH))
        await stage.socket.until_sent(2 * number + 3)
    told = [json.loads(data[1:]) for data in stage.socket.sent if data[0] == Kind.METADATA]
    assert [report["type"] for report in told] == ["latency", "latency"]
    assert told[1]["ms"]["total"]["max"] == 1_000 * EVERY_S
    await stage.end()


@on_loop
async def test_a_client_that_did_not_ask_is_told_no_latency() -> None:
    clock = Clock()
    stage, sender = Stage(clock=clock), OpusSender()
    await stage.open()
    stage.socket.says(audio(sender, 2))
    await stage.pushed.wait()
    clock.now_s += EVERY_S
    stage.engine_says(output(0, SPEECH))
    await stage.socket.until_sent(2)
    assert Kind.METADATA not in stage.socket.kinds
    await stage.end()
