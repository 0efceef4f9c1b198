import asyncio
import io
from pathlib import Path

import numpy as np
import pytest

from serve_app.client.events import Place, place_in
from serve_app.client.failures import AudioFileError, ServerFull, ServerGone
from serve_app.client.progress import Progress
from serve_app.client.session import Session
from serve_app.client.talk import Conversation, main, talk
from serve_app.client.wav import read_wav, write_wav
from serve_app.config import KEY_VARIABLE
from serve_app.spec import Sampling
from serve_app.units import FRAME_S, FRAME_SAMPLES
from tests.client.echo import EchoServer, Refusal
from tests.client.loop import in_loop


class FastTime:
    """A clock that only sleeping moves, without waiting; lets everybody else run meanwhile."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0.002)


async def talked(
    folder: Path, server: EchoServer, frames: float, out: io.StringIO | None = None, *, redraw: bool = False
) -> Conversation:
    samples = np.sin(np.arange(round(frames * FRAME_SAMPLES)) * 0.1)
    write_wav(folder / "in.wav", np.asarray(0.4 * samples, dtype=np.float32))
    time = FastTime()
    return await talk(
        folder / "in.wav",
        folder / "out.wav",
        url=server.url,
        sampling=Sampling(text_seed=1),
        tail_s=4 * FRAME_S,
        progress=Progress(out or io.StringIO(), redraw=redraw),
        clock=time.clock,
        sleep=time.sleep,
    )


@in_loop
async def test_the_answer_is_as_long_as_the_conversation(tmp_path: Path) -> None:
    async with EchoServer(delay_frames=1).running() as server:
        conversation = await talked(tmp_path, server, 9.5)
    assert conversation.spoken_frames == 14
    assert read_wav(tmp_path / "out.wav").size == 14 * FRAME_SAMPLES


@in_loop
async def test_the_answer_lies_where_it_was_heard(tmp_path: Path) -> None:
    async with EchoServer(delay_frames=3).running() as server:
        await talked(tmp_path, server, 10)
    levels = np.abs(read_wav(tmp_path / "out.wav").reshape(-1, FRAME_SAMPLES)).max(axis=1)
    assert levels[:3].max() == 0.0
    assert levels[3:10].min() > 0.2
    assert levels[11:].max() < 0.1


@in_loop
async def test_frames_leave_at_real_time_pace(tmp_path: Path) -> None:
    time = FastTime()
    write_wav(tmp_path / "in.wav", np.ones(5 * FRAME_SAMPLES, np.float32) * 0.1)
    async with EchoServer().running() as server:
        await talk(
            tmp_path / "in.wav",
            tmp_path / "out.wav",
            url=server.url,
            tail_s=0.0,
            progress=Progress(io.StringIO(), redraw=False),
            clock=time.clock,
            sleep=time.sleep,
        )
    assert time.now_s - 100.0 == pytest.approx(5 * FRAME_S)


@in_loop
async def test_the_transcript_is_written_as_it_comes(tmp_path: Path) -> None:
    out = io.StringIO()
    async with EchoServer().running() as server:
        conversation = await talked(tmp_path, server, 10, out)
    assert conversation.transcript == " word1 word2"
    assert out.getvalue() == " word1 word2\n"


@in_loop
async def test_a_terminal_sees_progress_and_the_whole_transcript_at_the_end(tmp_path: Path) -> None:
    out = io.StringIO()
    async with EchoServer().running() as server:
        await talked(tmp_path, server, 10, out, redraw=True)
    lines = out.getvalue().split("\r\x1b[K")
    assert any("0.8 / 1.1 s" in line and "round trip" in line for line in lines)
    assert lines[-1] == "word1 word2\n"


@in_loop
async def test_what_was_heard_is_kept_when_the_server_goes(tmp_path: Path) -> None:
    async with EchoServer(end_after_frames=5, end_code=1012).running() as server:
        with pytest.raises(ServerGone):
            await talked(tmp_path, server, 30)
    assert read_wav(tmp_path / "out.wav").size >= 5 * FRAME_SAMPLES


@in_loop
async def test_a_full_server_leaves_no_file(tmp_path: Path) -> None:
    async with EchoServer(refusal=Refusal()).running() as server:
        with pytest.raises(ServerFull):
            await talked(tmp_path, server, 3)
    assert not (tmp_path / "out.wav").exists()


@in_loop
async def test_a_bad_output_path_is_refused_before_anything_is_said(tmp_path: Path) -> None:
    write_wav(tmp_path / "in.wav", np.zeros(FRAME_SAMPLES, np.float32))
    async with EchoServer().running() as server:
        with pytest.raises(AudioFileError):
            await talk(
                tmp_path / "in.wav",
                tmp_path / "none" / "out.wav",
                url=server.url,
                progress=Progress(io.StringIO(), redraw=False),
            )
        assert server.queries == []


def test_the_command_tells_errors_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.wav"), str(tmp_path / "out.wav")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("serve_app talk: ")
    assert "none.wav: No such file or directory" in said
    assert said.count("\n") == 1


def test_the_command_refuses_sampling_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), "--text-temperature", "nan"]) == 1
    assert "text_temperature" in capsys.readouterr().err


QUEUE = ({"place": 2, "eta_s": None}, {"place": 2, "eta_s": 41}, {"place": 1, "eta_s": 7.5})


@in_loop
async def test_who_waits_hears_its_place_and_then_talks(tmp_path: Path) -> None:
    out, aside = io.StringIO(), io.StringIO()
    write_wav(tmp_path / "in.wav", np.ones(3 * FRAME_SAMPLES, np.float32) * 0.1)
    async with EchoServer(queue=QUEUE).running() as server:
        time = FastTime()
        conversation = await talk(
            tmp_path / "in.wav",
            tmp_path / "out.wav",
            url=server.url,
            tail_s=0.0,
            progress=Progress(out, redraw=False, aside=aside),
            clock=time.clock,
            sleep=time.sleep,
        )
    assert conversation.spoken_frames == 3
    assert aside.getvalue().splitlines() == [
        "every slot is taken; place 2 in the queue",
        "every slot is taken; place 1 in the queue, about 8 s",
    ]
    assert "queue" not in out.getvalue()


@in_loop
async def test_how_long_the_conversation_can_go_on_is_told_beside_the_transcript(tmp_path: Path) -> None:
    out, aside = io.StringIO(), io.StringIO()
    write_wav(tmp_path / "in.wav", np.ones(3 * FRAME_SAMPLES, np.float32) * 0.1)
    async with EchoServer(
        tells=[{"going_away": {"s": 30, "why": "rollout"}}, {"session": {"ends_in_s": 60}}]
    ).running() as server:
        await talk(
            tmp_path / "in.wav",
            tmp_path / "out.wav",
            url=server.url,
            tail_s=0.2,
            progress=Progress(out, redraw=False, aside=aside),
        )
    assert aside.getvalue().splitlines() == [
        "the server is being replaced: this conversation has 30 s",
        "this conversation has lasted almost as long as it may: 60 s are left",
    ]
    assert "replaced" not in out.getvalue()


def test_a_terminal_sees_its_place_redrawn() -> None:
    out = io.StringIO()
    progress = Progress(out, redraw=True)
    progress.waiting(Place(2, 41.0))
    progress.waiting(Place(1, None))
    assert out.getvalue().split("\r\x1b[K")[1:] == [
        "every slot is taken; place 2 in the queue, about 41 s",
        "every slot is taken; place 1 in the queue",
    ]


@in_loop
async def test_waiting_longer_than_opening_may_take_is_no_fault_while_the_server_speaks() -> None:
    places: list[Place] = []
    async with (
        EchoServer(queue=QUEUE, queue_pause_s=0.4).running() as server,
        Session.open(server.url, open_timeout_s=1.0, waiting=places.append),
    ):
        assert [place.place for place in places] == [2, 2, 1]


@pytest.mark.parametrize(
    "value",
    [None, [], {"type": "dropped"}, {"queue": 1}, {"queue": {"place": "2"}}, {"queue": {"place": 1, "eta_s": "x"}}],
)
def test_other_metadata_is_no_place(value: object) -> None:
    assert place_in(value) is None


@in_loop
async def test_a_refusal_in_the_queue_is_a_full_server() -> None:
    async with EchoServer(queue=QUEUE, shakes=False, turned_away="queue_full").running() as server:
        with pytest.raises(ServerFull) as caught:
            async with Session.open(server.url):
                pass
    assert caught.value.why == "queue_full"


def test_a_key_comes_from_a_file_or_the_environment_and_never_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    async def listen(spoken: Path, answered: Path, *, key: str | None, **options: object) -> Conversation:
        asked.append(key)
        return Conversation()

    monkeypatch.setattr("serve_app.client.talk.talk", listen)
    monkeypatch.setenv(KEY_VARIABLE, "chorus_from_the_environment")
    (tmp_path / "key").write_text("chorus_from_a_file\n")
    files = [str(tmp_path / "in.wav"), str(tmp_path / "out.wav")]
    assert main(files) == 0
    assert main([*files, "--key-file", str(tmp_path / "key")]) == 0
    assert asked == ["chorus_from_the_environment", "chorus_from_a_file"]
    with pytest.raises(SystemExit):
        main([*files, "--key", "chorus_on_the_command_line"])
