"""What only a socket can do: hellos, losses, slow peers, and 32 conversations on a real engine."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from serve_app.engine.engine import Engine
from serve_app.engine.loop import EngineLoop
from serve_app.engine.runner import PassThroughRunner
from serve_app.errors import EngineLost, LinkError, StaleLease
from serve_app.link.channel import Channel
from serve_app.link.client import EngineLink
from serve_app.link.codec import Decoder, encode
from serve_app.link.limits import LinkLimits
from serve_app.link.messages import (
    VERSION,
    Attach,
    Detach,
    Dropped,
    Ended,
    Hello,
    Key,
    Message,
    Opened,
    Output,
    Welcome,
)
from serve_app.link.port import Address, Grant
from serve_app.link.server import LinkServer
from serve_app.serving.engine_port import EngineOverLink
from serve_app.spec import SessionSpec
from tests.link.fakes import EchoPort, frame, next_output, on_loop, output, rest

FOREVER_S = 3_600.0


class RawPeer:
    """A gateway by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = Decoder()

    @classmethod
    async def connect(cls, address: Address) -> "RawPeer":
        return cls(*await asyncio.open_connection(address.host, address.port))

    def say(self, *messages: Message) -> None:
        self.writer.write(b"".join(encode(message) for message in messages))

    async def hear_all(self) -> list[Message]:
        """Everything until the other side closes."""
        heard = []
        try:
            while data := await self.reader.read(65_536):
                heard += self.decoder.feed(data)
        except ConnectionResetError:
            pass
        await self.close()
        return heard

    def listen(self) -> None:
        """Read again."""
        self.reader._transport.resume_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionResetError):
            await self.writer.wait_closed()

    async def hear(self) -> list[Message]:
        """At least one message."""
        heard: list[Message] = []
        while not heard:
            data = await self.reader.read(65_536)
            assert data
            heard = self.decoder.feed(data)
        return heard


# --- hello ------------------------------------------------------------------------------------------------------------


@on_loop
async def test_connection_that_says_no_hello_is_closed() -> None:
    async with await LinkServer.start(EchoPort(), limits=LinkLimits(hello_s=0.1)) as server:
        peer = await RawPeer.connect(server.address)
        assert await peer.hear_all() == []


@on_loop
async def test_hello_is_answered_and_the_connection_outlives_the_timer() -> None:
    async with await LinkServer.start(EchoPort(), limits=LinkLimits(hello_s=0.1)) as server:
        idle = await RawPeer.connect(server.address)
        async with await EngineLink.connect(server.address) as link:
            await idle.hear_all()  # the timer of a later connection has run out by now
            idle = await RawPeer.connect(server.address)
            await idle.hear_all()
            assert not link.lost


@on_loop
async def test_gateway_of_another_version_is_answered_and_closed() -> None:
    async with await LinkServer.start(EchoPort()) as server:
        peer = await RawPeer.connect(server.address)
        peer.say(Hello(VERSION + 1))
        assert await peer.hear_all() == [Welcome(VERSION)]


@contextlib.asynccontextmanager
async def answering(data: bytes) -> AsyncIterator[Address]:
    """A server that answers whoever comes with these bytes; gone, with its connection, at the end."""
    finished = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()
        finished.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        yield Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        await finished.wait()


@on_loop
async def test_engine_of_another_version_is_refused_naming_both() -> None:
    async with answering(encode(Welcome(VERSION + 6))) as address:
        with pytest.raises(LinkError, match=f"speaks version {VERSION}, the engine version {VERSION + 6}"):
            await EngineLink.connect(address)


@on_loop
async def test_server_that_is_no_engine_is_refused() -> None:
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address:
        with pytest.raises(LinkError, match="the limit is"):
            await EngineLink.connect(address)


@on_loop
async def test_engine_that_is_not_there_is_lost() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody can answer there
        with pytest.raises(EngineLost):
            await EngineLink.connect(Address("127.0.0.1", taken.getsockname()[1]))


@on_loop
async def test_engine_that_accepts_and_says_nothing_is_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(EngineLost):
        await EngineLink.connect(Address("127.0.0.1", mute.getsockname()[1]), limits=LinkLimits(hello_s=0.05))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode(Detach(Key(0, 0))),
        encode(Hello()) + encode(Hello()),
        encode(Hello()) + encode(Opened(Key(0, 0))),
        encode(Hello()) + struct.pack("<IB", 2**31, 4),
    ],
    ids=["other protocol", "no hello", "two hellos", "wrong direction", "too long"],
)
@on_loop
async def test_peer_that_breaks_the_protocol_is_closed_and_others_stay(data: bytes) -> None:
    async with await LinkServer.start(EchoPort()) as server, await EngineLink.connect(server.address) as link:
        channel = await link.attach(server.grant(0, 0))
        peer = await RawPeer.connect(server.address)
        peer.writer.write(data)
        assert await peer.hear_all() in ([], [Welcome()])
        channel.send(1, frame(1.0))
        assert (await next_output(channel)).number == 1


@on_loop
async def test_lease_of_one_gateway_cannot_be_used_by_another() -> None:
    port = EchoPort()
    async with await LinkServer.start(port) as server, await EngineLink.connect(server.address) as link:
        channel = await link.attach(server.grant(0, 0))
        thief = await RawPeer.connect(server.address)
        thief.say(Hello(), Detach(Key(0, 0)), Attach(Key(0, 0), bytes(16)))
        heard: list[Message] = []
        while not any(isinstance(message, Ended) for message in heard):
            heard += await thief.hear()
        await thief.close()
        assert port.closed == []
        channel.send(1, frame(1.0))
        assert (await next_output(channel)).number == 1


# --- ports ------------------------------------------------------------------------------------------------------------


@on_loop
async def test_server_takes_the_first_free_port_of_its_range() -> None:
    async with await LinkServer.start(EchoPort()) as first:
        taken = first.address.port
        async with await LinkServer.start(EchoPort(), ports=(taken, 0)) as second:
            assert second.address.port not in (taken, 0)
        with pytest.raises(LinkError, match=f"no free port.*{taken}"):
            await LinkServer.start(EchoPort(), ports=(taken,))


@on_loop
async def test_server_listens_on_loopback_by_default() -> None:
    async with await LinkServer.start(EchoPort()) as server:
        assert server.address.host == "127.0.0.1"


# --- losses -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_gateway_that_vanishes_frees_its_leases_and_no_others() -> None:
    port = EchoPort()
    async with await LinkServer.start(port) as server, await EngineLink.connect(server.address) as other:
        staying = await other.attach(server.grant(9, 0))
        vanishing = await EngineLink.connect(server.address)
        for slot in range(3):
            await vanishing.attach(server.grant(slot, 0))
        vanishing.pipe.abort()
        await port.until(lambda engine: sorted(engine.closed) == [Key(slot, 0) for slot in range(3)])
        staying.send(1, frame(1.0))
        assert (await next_output(staying)).number == 1


@on_loop
async def test_lost_engine_ends_every_channel_with_engine_lost() -> None:
    server = await LinkServer.start(EchoPort())
    link = await EngineLink.connect(server.address)
    channels = [await link.attach(server.grant(slot, 0)) for slot in range(3)]
    for connection in server.connections:
        connection.pipe.abort()
    for channel in channels:
        (ended,) = await rest(channel)
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, EngineLost)
    await server.close()


@on_loop
async def test_what_the_engine_said_last_is_written_before_the_server_closes() -> None:
    port = EchoPort()
    server = await LinkServer.start(port)
    link = await EngineLink.connect(server.address)
    channel = await link.attach(server.grant(0, 0))
    port.say(output(Key(0, 0), 1, frame(1.0)))
    port.say(Ended(Key(0, 0), "draining"))
    await server.close()
    assert [type(event) for event in await rest(channel)] == [Output, Ended]


# --- slow peers -------------------------------------------------------------------------------------------------------


async def deaf_peer(server: LinkServer) -> tuple[RawPeer, Grant]:
    """A gateway with one session that has stopped reading."""
    peer = await RawPeer.connect(server.address)
    grant = server.grant(0, 0)
    peer.say(Hello(), Attach(grant.key, grant.token))
    heard: list[Message] = []
    while Opened(grant.key) not in heard:
        heard += await peer.hear()
    peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
    return peer, grant


async def say_until_it_waits(server: LinkServer, port: EchoPort, key: Key) -> int:
    """Outputs until the kernel's buffers and the transport's are full; how many."""
    (connection,) = server.connections
    said = 0
    while connection.pipe.waiting_bytes == 0:
        port.say(output(key, said, frame(0.0)))
        said += 1
        await asyncio.sleep(0)
    return said


@on_loop
async def test_closing_server_says_what_waits_to_a_gateway_that_is_slow() -> None:
    port = EchoPort()
    server = await LinkServer.start(port, limits=LinkLimits(close_s=FOREVER_S))
    peer, grant = await deaf_peer(server)
    said = await say_until_it_waits(server, port, grant.key)
    port.say(Ended(grant.key, "draining"))
    closing = asyncio.create_task(server.close())
    await asyncio.sleep(0)
    peer.listen()
    heard = await peer.hear_all()
    assert [message.number for message in heard if isinstance(message, Output)] == list(range(said))
    assert heard[-1] == Ended(grant.key, "draining")
    await closing


@on_loop
async def test_closing_server_waits_a_bounded_time_for_a_gateway_that_never_reads() -> None:
    port = EchoPort()
    server = await LinkServer.start(port, limits=LinkLimits(close_s=0.01))
    peer, grant = await deaf_peer(server)
    await say_until_it_waits(server, port, grant.key)
    await server.close()
    assert port.closed == [grant.key]
    peer.listen()
    await peer.hear_all()


@on_loop
async def test_gateway_that_leaves_too_much_unread_is_cut_off_and_its_sessions_end() -> None:
    port = EchoPort()
    async with await LinkServer.start(port, limits=LinkLimits(connection_bytes=64 * 1_024)) as server:
        peer, grant = await deaf_peer(server)
        await say_until_it_waits(server, port, grant.key)
        for number in range(10):
            port.say(output(grant.key, number, frame(0.0)))
        await port.until(lambda engine: engine.closed == [grant.key])
        assert server.connections == set()
        peer.listen()
        await peer.hear_all()


# --- strangers --------------------------------------------------------------------------------------------------------


@on_loop
async def test_peer_that_forges_grants_is_closed_after_a_few() -> None:
    async with await LinkServer.start(EchoPort(), limits=LinkLimits(refusals=3)) as server:
        peer = await RawPeer.connect(server.address)
        peer.say(Hello(), *(Attach(Key(slot, 0), bytes(16)) for slot in range(1_000)))
        heard = await peer.hear_all()
        assert sum(isinstance(message, Ended) for message in heard) <= 4


@on_loop
async def test_gateway_that_proved_itself_may_present_many_stale_grants() -> None:
    async with (
        await LinkServer.start(EchoPort(), limits=LinkLimits(refusals=3)) as server,
        await EngineLink.connect(server.address) as link,
    ):
        channel = await link.attach(server.grant(0, 0))
        for generation in range(10):
            stale = server.grant(1, generation)
            server.revoke(1, generation)
            with pytest.raises(StaleLease):
                await link.attach(stale)
        channel.send(1, frame(1.0))
        assert (await next_output(channel)).number == 1


@on_loop
async def test_connection_that_never_attaches_is_closed_and_one_that_did_may_idle() -> None:
    async with (
        await LinkServer.start(EchoPort(), limits=LinkLimits(attach_s=0.3)) as server,
        await EngineLink.connect(server.address) as link,
    ):
        channel = await link.attach(server.grant(0, 0))
        channel.close()
        await rest(channel)
        peer = await RawPeer.connect(server.address)
        peer.say(Hello(), Attach(Key(0, 0), bytes(16)))
        # Its time runs out after the link's.
        assert [type(message) for message in await peer.hear_all()] == [Welcome, Ended]
        assert not link.lost


@on_loop
async def test_link_that_was_closed_unused_is_told_from_an_engine_that_went() -> None:
    async with (
        await LinkServer.start(EchoPort(), limits=LinkLimits(attach_s=0.05)) as server,
        await EngineLink.connect(server.address) as unused,
    ):
        await unused.pipe.gone.wait()
        assert (unused.lost, unused.channels.attached) == (True, 0)


@on_loop
async def test_gateways_are_capped_and_a_place_is_free_again_when_one_goes() -> None:
    async with await LinkServer.start(EchoPort(), limits=LinkLimits(connections=1)) as server:
        first = await EngineLink.connect(server.address)
        with pytest.raises(EngineLost):
            await EngineLink.connect(server.address)
        await first.attach(server.grant(0, 0))
        assert first.channels.attached == 1
        (connection,) = server.connections
        await first.close()
        await connection.pipe.gone.wait()
        await (await EngineLink.connect(server.address)).close()


# --- bursts -----------------------------------------------------------------------------------------------------------


@on_loop
async def test_gateway_that_does_not_read_costs_bounded_memory_and_its_outputs_are_counted() -> None:
    port = EchoPort()
    async with await LinkServer.start(port, limits=LinkLimits(session_bytes=64 * 1_024)) as server:
        peer, grant = await deaf_peer(server)
        said = await say_until_it_waits(server, port, grant.key)
        for _ in range(50):
            port.say(output(grant.key, said, frame(0.0)))
            said += 1
        (connection,) = server.connections
        assert connection.pipe.waiting_bytes <= 64 * 1_024
        port.say(Ended(grant.key))
        peer.listen()
        heard: list[Message] = []
        while not any(isinstance(message, Ended) for message in heard):
            heard += await peer.hear()
        await peer.close()
        lost = sum(message.frames for message in heard if isinstance(message, Dropped))
        outputs = [message.number for message in heard if isinstance(message, Output)]
        assert outputs == sorted(outputs)
        assert outputs[-1] == said - 1
        assert lost == server.dropped_outputs > 0
        assert len(outputs) + lost == said


@on_loop
async def test_burst_larger_than_the_outbox_crosses_an_idle_link_whole() -> None:
    port = EchoPort()
    port.silent = True
    limits = LinkLimits(session_bytes=8 * 1_024)  # one frame
    async with (
        await LinkServer.start(port, limits=limits) as server,
        await EngineLink.connect(server.address, limits=limits) as link,
    ):
        grant = server.grant(0, 0)
        attaching = asyncio.create_task(link.attach(grant))
        await port.until(lambda engine: grant.key in engine.sinks)
        port.say(Opened(grant.key))
        channel = await attaching
        for number in range(30):
            channel.send(number, frame(number))
        await port.until(lambda engine: len(engine.pushed) == 30)
        assert link.dropped_frames == 0


@on_loop
async def test_burst_from_the_engine_thread_wakes_the_loop_once() -> None:
    port = EchoPort()
    async with await LinkServer.start(port) as server, await EngineLink.connect(server.address) as link:
        channels = [await link.attach(server.grant(slot, 0)) for slot in range(8)]
        loop = asyncio.get_running_loop()
        woken: list[object] = []
        wake = loop.call_soon_threadsafe

        def count(callback: object, *args: object, **kwargs: object) -> asyncio.Handle:
            woken.append(callback)
            return wake(callback, *args, **kwargs)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = count  # type: ignore[method-assign]

        def tick() -> None:
            sink = next(iter(port.sinks.values()))
            sink([output(Key(slot, 0), 1) for slot in range(8)])

        engine_thread = threading.Thread(target=tick)
        engine_thread.start()
        engine_thread.join()
        assert len(woken) == 1
        for channel in channels:
            assert (await next_output(channel)).number == 1


# --- a real engine ----------------------------------------------------------------------------------------------------


async def converse(channel: Channel, speaker: int, frames: int) -> list[str]:
    """Send frames that say whose they are, at a tenth of a frame's pace at most; what is wrong with the answers."""
    wrong = []
    heard = asyncio.Event()
    answered = 0

    async def speak() -> None:
        for number in range(frames):
            pcm = frame(float(speaker))
            pcm[1] = number
            channel.send(number, pcm)
            while number - answered >= 4:
                heard.clear()
                await heard.wait()

    speaking = asyncio.create_task(speak())
    async for event in channel:
        if not isinstance(event, Output) or event.pcm is None:
            wrong.append(f"{speaker}: {event}")
            break
        if (event.number, float(event.pcm[0]), float(event.pcm[1])) != (answered, speaker, answered):
            wrong.append(f"{speaker}: frame {event.number} of {event.pcm[0]} for {answered}")
        answered += 1
        heard.set()
        if answered == frames:
            channel.close()
            break
    speaking.cancel()
    return wrong + [f"{speaker}: {event}" for event in await rest(channel) if event != Ended(channel.key)]


@on_loop
async def test_32_channels_of_two_gateways_lose_no_frame_and_hear_no_other() -> None:
    engine = Engine(PassThroughRunner(32), clock=time.monotonic)
    turning = EngineLoop(engine)
    turning.start()
    port = EngineOverLink(engine, lambda key: None, lambda key: None)
    try:
        async with (
            await LinkServer.start(port) as server,
            await EngineLink.connect(server.address) as first,
            await EngineLink.connect(server.address) as second,
        ):
            channels = []
            for speaker in range(32):
                lease = engine.acquire(SessionSpec())
                grant = server.grant(lease.slot, lease.generation)
                channels.append(await (first, second)[speaker % 2].attach(grant))
            talks = [converse(channel, speaker, 40) for speaker, channel in enumerate(channels)]
            wrong = [fault for faults in await asyncio.gather(*talks) for fault in faults]
            assert wrong == []
        stats = engine.stats()
        assert (stats.steps, stats.free, stats.dropped_frames) == (32 * 40, 32, {})
    finally:
        assert turning.stop()


@on_loop
async def test_lost_gateway_gives_its_slots_back_to_the_engine() -> None:
    engine = Engine(PassThroughRunner(4), clock=time.monotonic)
    turning = EngineLoop(engine)
    turning.start()
    freed = asyncio.Event()
    loop = asyncio.get_running_loop()
    port = EngineOverLink(engine, lambda key: None, lambda key: loop.call_soon_threadsafe(freed.set))  # type: ignore[arg-type]
    try:
        async with await LinkServer.start(port) as server:
            link = await EngineLink.connect(server.address)
            lease = engine.acquire(SessionSpec())
            await link.attach(server.grant(lease.slot, lease.generation))
            link.pipe.abort()
            await freed.wait()
            assert engine.stats().free == 4
    finally:
        assert turning.stop()


def test_pcm_that_arrives_may_be_kept() -> None:
    (first,) = Decoder().feed(encode(output(Key(0, 0), 0, frame(1.0))))
    Decoder().feed(encode(output(Key(0, 0), 0, frame(2.0))))
    assert isinstance(first, Output)
    assert first.pcm is not None
    np.testing.assert_array_equal(first.pcm, frame(1.0))
