import json

import pytest

from load_tests.pace import Plan, main, run
from load_tests.speech import encoded
from serve_app.audio.budget import audio_budget
from serve_app.audio.opus import OpusReceiver
from serve_app.units import FRAME_SAMPLES
from tests.client.echo import EchoServer, Refusal
from tests.client.loop import in_loop


def test_speech_is_one_message_a_frame_and_one_stream() -> None:
    messages = encoded(None, 2.0)
    receiver = OpusReceiver(audio_budget(), lambda: 0.0)
    assert len(messages) == 25
    for message in messages:
        received = receiver.feed(message[1:])
        assert [frame.shape for frame in received.frames] == [(FRAME_SAMPLES,)]
        assert not received.problems


@in_loop
async def test_sessions_hold_their_conversations_side_by_side() -> None:
    async with EchoServer(delay_frames=1).running() as server:
        outcome = await run(Plan(url=server.url, sessions=3, seconds=0.8))
    assert (outcome.opened, outcome.frames_sent, outcome.frames_received) == (3, 30, 27)
    assert (outcome.delay_frames, outcome.frames_lost, outcome.clean) == (1, 0, True)
    assert outcome.text_messages == 3
    assert 0 < outcome.latency_p50_ms < 80


@in_loop
async def test_refusals_are_counted_by_status() -> None:
    async with EchoServer(refusal=Refusal()).running() as server:
        outcome = await run(Plan(url=server.url, sessions=2, seconds=0.4))
    assert (outcome.opened, outcome.refusals) == (0, {"HTTP 503": 2})


@in_loop
async def test_sessions_that_the_server_ends_are_counted_by_close_code() -> None:
    async with EchoServer(end_after_frames=2, end_code=1012).running() as server:
        outcome = await run(Plan(url=server.url, sessions=2, seconds=0.8))
    assert outcome.endings == {"close 1012": 2}
    assert outcome.frames_lost > 0


def test_nobody_at_the_address_is_a_report_and_not_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:9", "--sessions", "1", "--seconds", "0.1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["opened"] == 0


def test_a_missing_speech_file_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--speech", "/nonexistent.wav", "--sessions", "1"]) == 2
    assert "nonexistent.wav" in capsys.readouterr().err
