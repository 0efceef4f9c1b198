"""What holds over a socket and in process alike."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import numpy as np
import pytest

from serve_app.errors import EngineLost, NotFinite, StaleLease
from serve_app.link.client import EngineLink
from serve_app.link.local import LocalLink
from serve_app.link.messages import Dropped, Ended, Key
from serve_app.link.port import Grant
from serve_app.link.server import LinkServer
from serve_app.units import FRAME_SAMPLES
from tests.link.fakes import EchoPort, frame, next_output, on_loop, output, rest

Link = EngineLink | LocalLink
Granting = Callable[[int, int], Grant]
Twin = Callable[[EchoPort], AbstractAsyncContextManager[tuple[Link, Granting]]]


@contextlib.asynccontextmanager
async def over_a_socket(port: EchoPort) -> AsyncIterator[tuple[Link, Granting]]:
    async with await LinkServer.start(port) as server, await EngineLink.connect(server.address) as link:
        yield link, server.grant


@contextlib.asynccontextmanager
async def in_process(port: EchoPort) -> AsyncIterator[tuple[Link, Granting]]:
    link = LocalLink(port)
    yield link, link.grant
    await link.close()


twins = pytest.mark.parametrize("twin", [over_a_socket, in_process])


@twins
@on_loop
async def test_frame_comes_back_to_the_bit(twin: Twin) -> None:
    pcm = np.random.default_rng(0).standard_normal(FRAME_SAMPLES).astype(np.float32)
    async with twin(EchoPort()) as (link, grant):
        channel = await link.attach(grant(0, 0))
        channel.send(-9, pcm)
        event = await next_output(channel)
        assert event.number == -9
        assert event.pcm is not None
        assert event.pcm.tobytes() == pcm.tobytes()


@twins
@on_loop
async def test_inbox_full_of_frames_in_one_turn_of_the_loop_arrives_whole(twin: Twin) -> None:
    async with twin(EchoPort()) as (link, grant):
        channel = await link.attach(grant(0, 0))
        for number in range(16):
            channel.send(number, frame(number))
        assert [(await next_output(channel)).number for _ in range(16)] == list(range(16))


@twins
@on_loop
async def test_step_token_codes_and_times_arrive(twin: Twin) -> None:
    port = EchoPort()
    async with twin(port) as (link, grant):
        channel = await link.attach(grant(0, 0))
        said = output(Key(0, 0), 12, codes=range(-1, 16))
        port.say(said)
        assert await next_output(channel) == said


@twins
@on_loop
async def test_closed_channel_hears_its_end_and_the_engine_is_told(twin: Twin) -> None:
    port = EchoPort()
    async with twin(port) as (link, grant):
        channel = await link.attach(grant(0, 0))
        channel.close()
        assert await rest(channel) == [Ended(Key(0, 0))]
        assert port.closed == [Key(0, 0)]


@twins
@on_loop
async def test_fault_and_drops_of_the_engine_arrive_typed(twin: Twin) -> None:
    port = EchoPort()
    async with twin(port) as (link, grant):
        channel = await link.attach(grant(0, 0))
        port.say(Dropped(Key(0, 0), 3, "lag"))
        port.say(Ended.of(Key(0, 0), NotFinite("a value")))
        dropped, ended = await rest(channel)
        assert dropped == Dropped(Key(0, 0), 3, "lag")
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, NotFinite)


@twins
@on_loop
async def test_grant_attaches_once(twin: Twin) -> None:
    async with twin(EchoPort()) as (link, grant):
        granted = grant(0, 0)
        channel = await link.attach(granted)
        with pytest.raises(StaleLease):
            await link.attach(granted)
        channel.close()
        await rest(channel)
        with pytest.raises(StaleLease):
            await link.attach(granted)


@twins
@on_loop
async def test_same_slot_serves_the_next_generation(twin: Twin) -> None:
    async with twin(EchoPort()) as (link, grant):
        for generation in range(3):
            channel = await link.attach(grant(0, generation))
            channel.send(generation, frame(generation))
            assert (await next_output(channel)).number == generation
            channel.close()
            await rest(channel)


@twins
@on_loop
async def test_engine_that_does_not_open_in_time_is_lost(twin: Twin) -> None:
    port = EchoPort()
    port.silent = True
    async with twin(port) as (link, grant):
        with pytest.raises(EngineLost):
            await link.attach(grant(0, 0), timeout_s=0.01)
        await port.until(lambda engine: engine.closed == [Key(0, 0)])
        assert len(link.channels) == 0  # the engine is silent: no Ended will ever come


@twins
@on_loop
async def test_caller_that_gives_up_leaves_no_channel_behind(twin: Twin) -> None:
    port = EchoPort()
    port.silent = True
    async with twin(port) as (link, grant):
        attaching = asyncio.create_task(link.attach(grant(0, 0)))
        await port.until(lambda engine: Key(0, 0) in engine.sinks)
        attaching.cancel()
        await asyncio.wait({attaching})
        await port.until(lambda engine: engine.closed == [Key(0, 0)])
        assert len(link.channels) == 0


@twins
@on_loop
async def test_closing_the_link_ends_its_channels_and_frees_their_leases(twin: Twin) -> None:
    port = EchoPort()
    async with twin(port) as (link, grant):
        channels = [await link.attach(grant(slot, 0)) for slot in range(3)]
        await link.close()
        for channel in channels:
            (ended,) = await rest(channel)
            assert isinstance(ended, Ended)
            assert isinstance(ended.error, EngineLost)
        await port.until(lambda engine: sorted(engine.closed) == [Key(slot, 0) for slot in range(3)])
        assert link.lost
        with pytest.raises(EngineLost):
            await link.attach(grant(5, 0))
