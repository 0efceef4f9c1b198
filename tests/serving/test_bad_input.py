"""The table of bad input on a real cluster: how each offence ends, while a neighbour hears every bit as if alone.

After each: one line in the log for whoever offended, nothing that looks like a fault of ours, and the slot is free.
"""

import asyncio
import dataclasses
import re
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from load_tests.speech import encoded
from serve_app.audio.budget import audio_budget
from serve_app.audio.opus import OpusReceiver, OpusSender
from tests.serving.cluster import WAIT_S, Cluster, eventually
from tests.serving.conftest import SILENCE_S, SLOTS
from tests.serving.conversation import FRAME_S, Visitor, tone, visit

TEST_S: Final = 40.0
NEIGHBOUR_FRAMES: Final = 38
LAST_WORD: Final = re.compile(r"conversation end cause=(\S+)")
REFUSAL: Final = re.compile(r"conversation refused reason=(\S+)")
LEFT: Final = frozenset({"client", "aborted"})
"""How a log line names a visitor who left: HAProxy tells some ends of a connection and cuts the handler for others."""
OUR_FAULT: Final = re.compile(r"WARNING serve_app|ERROR serve_app|CRITICAL serve_app|Traceback")


@dataclasses.dataclass(frozen=True)
class Offence:
    """What a visitor does, and how it is answered.

    Attributes:
        commit: does it, within an open conversation, until the other side has closed or the visitor is gone.
        cause: in the log line.
        code: of the close frame; None where nobody is there to read it.
        words: every error message, in order, by what it must contain.
    """

    name: str
    commit: Callable[[Visitor], Awaitable[None]]
    cause: str
    code: int | None = None
    words: tuple[str, ...] = ()


async def send_until_closed(visitor: Visitor, messages: Sequence[str | bytes]) -> None:
    listening = asyncio.create_task(visitor.listen())
    for message in messages:
        if listening.done():
            break
        try:
            await visitor.socket.send(message)
        except ConnectionClosed:
            break
        await asyncio.sleep(0.01)
    await listening


def sends(*messages: str | bytes, times: int = 1) -> Callable[[Visitor], Awaitable[None]]:
    """Send these over and over."""
    return lambda visitor: send_until_closed(visitor, messages * times)


def noise() -> list[bytes]:
    generator = np.random.default_rng(1)
    return [b"\x01" + generator.bytes(400) for _ in range(60)]


async def be_silent(visitor: Visitor) -> None:
    await visitor.listen()


async def cut_the_line(visitor: Visitor) -> None:
    """TCP ends without a close frame, as when a process is killed."""
    await visitor.say(tone(440, 1))
    visitor.socket.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


async def fall_asleep(visitor: Visitor) -> None:
    """Neither read nor say anything ever again, as when a laptop is shut: no close frame, no end of TCP, no pong."""
    visitor.socket.transport.pause_reading()
    await asyncio.sleep(SILENCE_S + 1.5)


OFFENCES: Final = [
    Offence("meaningless", sends("hello", b"", b"\x63what", "", times=40), "protocol_abuse", 1008, ("meaningless",)),
    Offence("too large", sends(b"\x01" + bytes(64 * 1024)), "message_too_large", 1009, ("over the limit",)),
    Offence("webm", sends(b"\x01\x1aE\xdf\xa3" + bytes(300), times=60), "bad_audio", 1007, ("is WebM", "is WebM")),
    Offence("wav", sends(b"\x01RIFF" + bytes(300), times=60), "bad_audio", 1007, ("is WAV", "is WAV")),
    Offence("random", sends(*noise()), "bad_audio", 1007, ("not Ogg", "not Ogg")),
    Offence(
        "truncated",
        sends(*(message[: len(message) // 2] for message in encoded(None, 5.0))),
        "bad_audio",
        1007,
        ("damaged Ogg page", "damaged Ogg page"),
    ),
    Offence("silent", be_silent, "no_audio", 1008, (f"no audio for {SILENCE_S:g} s",)),
    Offence("cut", cut_the_line, "left"),
    Offence("asleep", fall_asleep, "no_audio"),
]


@pytest.fixture
def idle(cluster: Cluster) -> Cluster:
    eventually(lambda: cluster.ready() and cluster.info()["slots_free"] == SLOTS, WAIT_S)
    return cluster


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(TEST_S):
            await work

    asyncio.run(bounded())


def said() -> list[bytes]:
    """The neighbour's messages."""
    return encoded(None, NEIGHBOUR_FRAMES * FRAME_S)


def undisturbed(messages: Sequence[bytes]) -> list[bytes]:
    """What a server without other visitors answers, to the bit."""
    receiver, sender = OpusReceiver(audio_budget(), lambda: 0.0), OpusSender()
    return [b"\x01" + sender.encode(frame) for message in messages for frame in receiver.feed(message[1:]).frames]


async def talk_beside(cluster: Cluster, offend: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Hold a conversation in real time, let the other misbehave meanwhile, and compare every byte."""
    messages = said()
    async with visit(cluster.chat) as neighbour:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        offending = asyncio.create_task(offend())
        heard = []
        for index, message in enumerate(messages):
            await asyncio.sleep(max(0.0, began_s + index * FRAME_S - loop.time()))
            await neighbour.socket.send(message)
            heard.append(await neighbour.socket.recv())
        assert heard == undisturbed(messages)
        await offending


def told(cluster: Cluster, since: int, what: re.Pattern[str], count: int) -> list[str]:
    """What the log lines that came since say, sorted, once so many have come; whoever left is called ``left``."""

    def found() -> list[str] | None:
        said = [match[1] for line in list(cluster.lines)[since:] if (match := what.search(line))]
        return sorted("left" if cause in LEFT else cause for cause in said) if len(said) >= count else None

    return eventually(found, WAIT_S) or []


def assert_settled(cluster: Cluster, since: int, *causes: str) -> None:
    """One line for each conversation that was held, none about a fault of ours, every slot free."""
    eventually(lambda: cluster.info()["slots_free"] == SLOTS, WAIT_S)
    assert told(cluster, since, LAST_WORD, len(causes)) == sorted(causes)
    assert [line for line in list(cluster.lines)[since:] if OUR_FAULT.search(line)] == []


@pytest.mark.parametrize("offence", OFFENCES, ids=lambda offence: offence.name)
def test_an_offender_is_answered_and_its_neighbour_hears_every_bit(idle: Cluster, offence: Offence) -> None:
    since = len(idle.lines)
    seen: list[Visitor] = []

    async def offend() -> None:
        async with visit(idle.chat, ping_interval=None, close_timeout=0.1) as visitor:
            seen.append(visitor)
            await offence.commit(visitor)

    run(talk_beside(idle, offend))
    (visitor,) = seen
    assert visitor.close_code == offence.code
    assert len(visitor.errors) == len(offence.words)
    for error, words in zip(visitor.errors, offence.words, strict=True):
        assert words in error
    assert_settled(idle, since, "left", offence.cause)


def test_all_that_comes_too_fast_is_heard_or_reported_as_dropped(idle: Cluster) -> None:
    since = len(idle.lines)
    bursts, frames = 20, 12

    async def hurry() -> None:
        async with visit(idle.chat) as visitor:
            for _ in range(bursts):
                await visitor.say(tone(440, frames))
            dropped = 0
            while dropped + visitor.messages < bursts * frames - 1:  # what is not a whole frame is carried over
                visitor.take(await visitor.socket.recv())
                dropped = sum(sum(report["frames"].values()) for report in visitor.metadata)
            assert dropped + visitor.messages <= bursts * frames
            assert {cause for report in visitor.metadata for cause in report["frames"]} >= {"too_fast"}

    run(talk_beside(idle, hurry))
    assert_settled(idle, since, "left", "left")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("?audio_temperature=nan", 400, "bad_parameter"),
        ("?text_topk=-1", 400, "bad_parameter"),
        ("s/nowhere", 404, "not_found"),
    ],
)
def test_a_wrong_request_is_refused_before_the_upgrade_and_logged_once(
    idle: Cluster, path: str, status: int, reason: str
) -> None:
    since = len(idle.lines)

    async def ask() -> None:
        assert await refused(f"{idle.chat}{path}") == status

    run(talk_beside(idle, ask))
    assert_settled(idle, since, "left")
    assert told(idle, since, REFUSAL, 1).count(reason) == 1


def test_a_visitor_of_a_full_server_is_refused_and_logged(idle: Cluster) -> None:
    since = len(idle.lines)

    async def crowd() -> None:
        async with visit(idle.chat) as one, visit(idle.chat) as another:
            for visitor in (one, another):
                await visitor.say(tone(440, 1))
            assert await refused(idle.chat) == 503

    run(talk_beside(idle, crowd))
    assert_settled(idle, since, "left", "left", "left")
    assert set(told(idle, since, REFUSAL, 1)) == {"full"}


async def refused(address: str) -> int:
    """Status of a refusal before the upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, compression=None)
    return caught.value.response.status_code
