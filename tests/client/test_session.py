import asyncio

import numpy as np
import pytest

from serve_app.client import (
    Audio,
    Error,
    NotAllowed,
    RequestRefused,
    ServerFull,
    ServerGone,
    ServerUnreachable,
    Session,
    Text,
    UnexpectedServer,
)
from serve_app.client.events import PCM, Event
from serve_app.errors import CapacityError
from serve_app.spec import Sampling
from serve_app.units import FRAME_SAMPLES
from tests.client.echo import EchoServer, Refusal
from tests.client.loop import in_loop


def tone(frames: int) -> PCM:
    """A rising tone, so that every moment of it is different."""
    sample = np.arange(frames * FRAME_SAMPLES)
    return np.asarray(0.3 * np.sin(0.05 * sample + 1e-6 * sample**2), dtype=np.float32)


async def heard(session: Session, *, audio: int) -> list[Event]:
    """Events until that many frames of sound have come."""
    events: list[Event] = []
    missing = audio * FRAME_SAMPLES
    async for event in session:
        events.append(event)
        missing -= event.pcm.size if isinstance(event, Audio) else 0
        if missing <= 0:
            break
    return events


async def drain(session: Session, events: list[Event]) -> None:
    """Every event until the session ends, into ``events``."""
    async for event in session:
        events.append(event)


@in_loop
async def test_what_is_said_comes_back_as_sound() -> None:
    async with EchoServer().running() as server, Session.open(server.url) as session:
        pcm = tone(20)
        await session.send(pcm)
        sound = np.concatenate([e.pcm for e in await heard(session, audio=20) if isinstance(e, Audio)])
        lag = int(np.argmax(np.correlate(sound, pcm[9_600:19_200], "valid"))) - 9_600
        assert 0 <= lag < FRAME_SAMPLES  # twice through a codec of 6.5 ms
        shifted = sound[9_600 + lag : 19_200 + lag]
        assert np.corrcoef(shifted, pcm[9_600:19_200])[0, 1] > 0.95


@in_loop
async def test_sound_of_any_length_leaves_in_whole_frames() -> None:
    async with EchoServer().running() as server, Session.open(server.url) as session:
        for size in (1, 1_918, 1, 5_000, 760):
            await session.send(np.zeros(size, np.float32))
        await heard(session, audio=4)
        assert len(server.frames) == 4


@in_loop
async def test_text_comes_after_the_sound_of_its_step() -> None:
    async with EchoServer().running() as server, Session.open(server.url) as session:
        await session.send(tone(7))
        kinds = [type(event) for event in await heard(session, audio=7)]
        assert kinds == [Audio] * 6 + [Text, Audio]


@in_loop
async def test_round_trips_know_the_delay_of_the_model() -> None:
    async with EchoServer(delay_frames=2).running() as server, Session.open(server.url) as session:
        for _ in range(2):
            await session.send(tone(1))
        for _ in range(5):
            await session.send(tone(1))
            await heard(session, audio=1)
        assert session.round_trips.delay_frames == 2
        assert len(session.round_trips.all_s()) == 5
        assert await session.network_round_trip_s() >= 0


@in_loop
async def test_sampling_and_key_reach_the_server() -> None:
    async with (
        EchoServer().running() as server,
        Session.open(server.url, sampling=Sampling(text_seed=4, audio_top_k=9), key="secret"),
    ):
        assert server.queries[0]["text_seed"] == "4"
        assert server.queries[0]["audio_topk"] == "9"
        assert server.authorizations == ["Bearer secret"]


@in_loop
async def test_without_sampling_the_server_chooses() -> None:
    async with EchoServer().running() as server, Session.open(server.url):
        assert server.queries == [{}]


@in_loop
async def test_a_full_server_says_why_and_when_to_come_again() -> None:
    async with EchoServer(refusal=Refusal()).running() as server:
        with pytest.raises(ServerFull, match="all 16 slots are taken") as caught:
            async with Session.open(server.url):
                pass
        assert (caught.value.why, caught.value.retry_after_s) == ("full", 7.0)
        assert isinstance(caught.value, CapacityError)


@in_loop
async def test_a_refused_parameter_is_told_in_the_servers_words() -> None:
    said = '{"reason": "bad_parameter", "message": "text_temperature=99: too hot"}'
    async with EchoServer(refusal=Refusal(400, said, {})).running() as server:
        with pytest.raises(RequestRefused, match="too hot") as caught:
            async with Session.open(server.url):
                pass
        assert (caught.value.status, caught.value.why) == (400, "bad_parameter")


@in_loop
async def test_a_wrong_key_is_not_allowed() -> None:
    async with EchoServer(refusal=Refusal(401, "{}", {})).running() as server:
        with pytest.raises(NotAllowed):
            async with Session.open(server.url, key="wrong"):
                pass


@in_loop
async def test_a_server_of_another_kind_is_unexpected() -> None:
    async with EchoServer(refusal=Refusal(500, "<html>", {})).running() as server:
        with pytest.raises(UnexpectedServer, match="HTTP 500"):
            async with Session.open(server.url):
                pass


@in_loop
async def test_nobody_at_the_address_is_unreachable() -> None:
    async with EchoServer().running() as server:
        pass
    with pytest.raises(ServerUnreachable, match=str(server.port)):
        async with Session.open(server.url):
            pass


@in_loop
async def test_a_server_that_never_shakes_hands_is_given_up() -> None:
    async with EchoServer(shakes=False).running() as server:
        with pytest.raises(ServerUnreachable, match="no handshake"):
            async with Session.open(server.url, open_timeout_s=0.2):
                pass


@in_loop
async def test_a_session_that_fails_ends_with_code_and_last_words() -> None:
    async with (
        EchoServer(end_after_frames=2, end_code=1011, said="internal error").running() as server,
        Session.open(server.url) as session,
    ):
        await session.send(tone(2))
        events: list[Event] = []
        with pytest.raises(ServerGone, match="internal error") as caught:
            await drain(session, events)
        assert caught.value.code == 1011
        assert not caught.value.worth_retrying
        assert Error("internal error") in events


@in_loop
async def test_a_restarting_server_is_worth_retrying() -> None:
    async with (
        EchoServer(end_after_frames=1, end_code=1012).running() as server,
        Session.open(server.url) as session,
    ):
        await session.send(tone(1))
        with pytest.raises(ServerGone) as caught:
            await drain(session, [])
        assert caught.value.worth_retrying


@in_loop
async def test_sending_to_a_server_that_is_gone_says_so() -> None:
    async with (
        EchoServer(end_after_frames=1, end_code=1012).running() as server,
        Session.open(server.url) as session,
    ):
        await session.send(tone(1))
        with pytest.raises(ServerGone):
            await drain(session, [])
        with pytest.raises(ServerGone):
            await session.send(tone(1))


@in_loop
async def test_closing_ends_the_iteration_and_frees_the_server() -> None:
    async with EchoServer().running() as server:
        async with Session.open(server.url) as session:
            listening = asyncio.create_task(heard(session, audio=1))
            await asyncio.sleep(0)
            await session.close()
            assert await listening == []
        assert server.queries == [{}]
    assert server.closed == 1
