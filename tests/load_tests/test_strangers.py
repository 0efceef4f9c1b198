import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.strangers import FRAMES_PER_TONE, MAX_SESSIONS, judged, run, sung
from serve_app.audio.opus import OpusReceiver, OpusSender
from serve_app.budget import Budget
from serve_app.client.events import PCM
from tests.client.echo import EchoServer
from tests.client.loop import in_loop

SINGERS = st.integers(0, MAX_SESSIONS - 1)


def through_opus(frames: list[PCM]) -> list[PCM]:
    sender, receiver = OpusSender(), OpusReceiver(Budget(1.0, 100.0), lambda: 0.0)
    return [heard for frame in frames for heard in receiver.feed(sender.encode(frame)).frames]


@pytest.mark.parametrize("singer", range(0, MAX_SESSIONS, 7))
def test_every_frame_is_known_after_opus_there_and_back(singer: int) -> None:
    heard = through_opus(through_opus([sung(singer, frame) for frame in range(40)]))
    assert {judged(pcm, singer, frame) for frame, pcm in enumerate(heard) if frame >= 3} == {"own"}


@given(SINGERS, SINGERS)
def test_a_frame_of_anybody_else_is_found(mine: int, other: int) -> None:
    assert (judged(sung(other, 5), mine, 5) == "own") == (mine == other)


@given(SINGERS, SINGERS.filter(lambda singer: singer > 0))
def test_a_little_of_somebody_else_is_foreign(mine: int, shift: int) -> None:
    other = (mine + shift) % MAX_SESSIONS
    assert judged(np.asarray(sung(mine, 5) + 0.3 * sung(other, 5), np.float32), mine, 5) == "foreign"


def test_silence_is_unheard() -> None:
    assert judged(np.zeros(1920, np.float32), 3, 5) == "unheard"


def test_a_frame_of_another_time_is_misplaced() -> None:
    assert judged(sung(3, 5 + FRAMES_PER_TONE), 3, 5) == "misplaced"


@in_loop
async def test_strangers_stay_strangers_on_an_honest_server() -> None:
    async with EchoServer(delay_frames=1).running() as server:
        verdict = await run(server.url, 3, 2.0)
    assert verdict.clean, verdict
    assert verdict["own"] == 3 * 22


@in_loop
async def test_a_server_that_mixes_its_sessions_up_is_caught() -> None:
    async with EchoServer(mixes=True).running() as server:
        verdict = await run(server.url, 2, 1.0)
    assert verdict["unheard"] + verdict["foreign"] > 0
    assert not verdict.clean
