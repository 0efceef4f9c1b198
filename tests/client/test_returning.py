"""A session whose connection breaks comes back by itself, where it was asked to and the server lets it."""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest

from serve_app.client import Audio, Metadata, ServerGone, Session
from serve_app.client.events import PCM, Event
from serve_app.client.progress import Progress
from serve_app.client.returning import WayBack
from serve_app.client.talk import talk
from serve_app.client.wav import read_wav, write_wav
from serve_app.units import FRAME_SAMPLES
from tests.client.echo import EchoServer, Refusal
from tests.client.loop import in_loop

LATE = Refusal(410, '{"reason": "session_gone", "message": "too late"}', {})


def tone(frames: int) -> PCM:
    return np.asarray(0.3 * np.sin(0.05 * np.arange(frames * FRAME_SAMPLES)), dtype=np.float32)


async def until(session: Session, kind: type[Event]) -> Event:
    """The next event of this kind."""
    async for event in session:
        if isinstance(event, kind):
            return event
    raise AssertionError("it ended")


@in_loop
async def test_a_session_that_is_cut_off_comes_back_and_goes_on() -> None:
    async with EchoServer(grace_s=5.0).running() as server, Session.open(server.url, resumable=True) as session:
        for cut in range(3):
            await session.send(tone(1))
            assert isinstance(await until(session, Audio), Audio)
            first = server.token
            server.abort()
            told = await until(session, Metadata)
            assert isinstance(told, Metadata)
            assert isinstance(told.value, dict)
            assert told.value["resumed"]["away_s"] >= 0
            assert server.queries[cut + 1] == {"resumable": "1", "resume": first}
        assert server.token == "echo.4"


@in_loop
async def test_nobody_sees_the_token() -> None:
    async with (
        EchoServer(grace_s=5.0, end_after_frames=2, end_code=1000).running() as server,
        Session.open(server.url, resumable=True) as session,
    ):
        await session.send(tone(2))
        assert [type(event) async for event in session] == [Audio, Audio]


@in_loop
async def test_what_is_said_without_a_connection_is_lost_and_counted() -> None:
    async with EchoServer(grace_s=5.0).running() as server, Session.open(server.url, resumable=True) as session:
        await session.send(tone(1))
        await until(session, Audio)
        server.abort()
        async with asyncio.timeout(10):
            while not session.lost_frames:  # until this side knows
                await session.send(tone(1))
                await asyncio.sleep(0)
        await until(session, Metadata)
        heard = len(server.frames)
        await session.send(tone(1))
        await until(session, Audio)
        assert len(server.frames) == heard + 1


@in_loop
async def test_a_session_that_is_not_kept_any_more_ends_as_it_broke() -> None:
    async with EchoServer(grace_s=5.0).running() as server, Session.open(server.url, resumable=True) as session:
        server.token = "another"
        server.abort()
        with pytest.raises(ServerGone) as gone:
            await until(session, Audio)
        assert gone.value.code == 1006
        with pytest.raises(ServerGone):
            await session.send(tone(1))


@in_loop
async def test_tries_end_with_the_grace() -> None:
    async with EchoServer(grace_s=0.3).running() as server, Session.open(server.url, resumable=True) as session:
        server.refusal = Refusal()
        server.abort()
        with pytest.raises(ServerGone):
            await until(session, Audio)


@in_loop
async def test_who_did_not_ask_or_got_no_token_does_not_come_back() -> None:
    for grace_s, resumable in ((5.0, False), (None, True)):
        async with EchoServer(grace_s=grace_s).running() as server:
            async with Session.open(server.url, resumable=resumable) as session:
                server.abort()
                with pytest.raises(ServerGone):
                    await until(session, Audio)
            assert len(server.queries) == 1


@pytest.mark.parametrize("code", [1007, 1008, 1011, 1013, 4001])
def test_an_end_that_the_server_meant_is_the_end(code: int) -> None:
    @in_loop
    async def converse() -> None:
        async with EchoServer(grace_s=5.0, end_after_frames=1, end_code=code).running() as server:
            async with Session.open(server.url, resumable=True) as session:
                await session.send(tone(1))
                with pytest.raises(ServerGone) as gone:
                    await until(session, Metadata)
                assert gone.value.code == code
            assert len(server.queries) == 1

    converse()


@pytest.mark.parametrize("value", [None, 3, {}, {"resume": 1}, {"resume": {"token": 1}}, {"resume": {"token": "x"}}])
def test_other_metadata_is_no_way_back(value: object) -> None:
    way_back = WayBack()
    assert not way_back.hears(value)
    assert not way_back.leads_back(ServerGone(1006))


@in_loop
async def test_pauses_grow_to_a_bound_while_the_grace_lasts() -> None:
    pauses: list[float] = []

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    way_back = WayBack(sleep)
    assert way_back.hears({"resume": {"token": "t", "grace_s": 60}})
    asked = "ws://host/api/chat?auth_id=k&resumable=1"
    async for address, left_s in way_back.attempts(asked, lambda: len(pauses) == 9):
        assert address == f"{asked}&resume=t"
        assert 0 < left_s <= 5.0
    assert pauses[0] < 0.2
    assert all(1.9 < pause_s <= 3.0 for pause_s in pauses[6:])


@in_loop
async def test_a_file_is_spoken_on_after_a_cut(tmp_path: Path) -> None:
    frames = 30
    write_wav(tmp_path / "in.wav", tone(frames))
    async with EchoServer(grace_s=5.0).running() as server:
        spoken = 0
        at_s = 0.0

        async def sleep(pause_s: float) -> None:
            """Real time, made fast; the connection breaks on the way."""
            nonlocal spoken, at_s
            at_s += pause_s
            spoken += 1
            await asyncio.sleep(0.005)
            if spoken == frames // 2:
                server.abort()

        progress = Progress(io.StringIO(), redraw=False)
        conversation = await talk(
            tmp_path / "in.wav",
            tmp_path / "out.wav",
            url=server.url,
            resumable=True,
            tail_s=0.0,
            progress=progress,
            clock=lambda: at_s,
            sleep=sleep,
        )
    assert conversation.spoken_frames == frames
    assert len(server.queries) == 2
    assert read_wav(tmp_path / "out.wav").size == frames * FRAME_SAMPLES
