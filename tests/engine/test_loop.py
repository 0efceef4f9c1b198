"""The engine thread: it follows the data. Waits here are bounded and end on events."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from serve_app.engine.batch import TickBatch
from serve_app.engine.engine import Engine
from serve_app.engine.limits import Pace
from serve_app.engine.loop import EngineLoop
from serve_app.engine.runner import PassThroughRunner
from serve_app.errors import EngineDraining, EngineLost
from serve_app.spec import SessionSpec
from tests.engine.fakes import Listener, SummingRunner, frame

FOREVER_S = 600.0


@pytest.fixture
def runner() -> SummingRunner:
    return SummingRunner(4)


@pytest.fixture
def engine(runner: SummingRunner) -> Engine:
    return Engine(runner, clock=time.monotonic)


@pytest.fixture
def loop(engine: Engine) -> Iterator[EngineLoop]:
    loop = EngineLoop(engine)
    loop.start()
    yield loop
    assert loop.stop()


@pytest.mark.usefixtures("loop")
def test_frame_is_stepped_when_it_comes(engine: Engine) -> None:
    listener = Listener()
    lease = engine.acquire(SessionSpec())
    engine.open(lease, listener)
    for number in range(20):
        engine.push(lease, number, frame(1.0))
        assert listener.wait_for(lambda heard, want=number + 1: len(heard.steps(lease)) == want)  # type: ignore[misc]
    engine.close(lease)
    assert listener.wait_for(lambda heard: bool(heard.ends(lease)))


@pytest.mark.usefixtures("loop")
def test_frames_that_come_while_a_tick_runs_share_the_next_one(engine: Engine, runner: SummingRunner) -> None:
    listener = Listener()
    leases = [engine.acquire(SessionSpec()) for _ in range(4)]
    for lease in leases:
        engine.open(lease, listener)
    assert listener.wait_for(lambda heard: all(heard.opened(lease) for lease in leases))
    running, go_on = threading.Event(), threading.Event()

    def hold(batch: TickBatch) -> None:
        running.set()
        assert go_on.wait(10)

    runner.before_run = hold
    engine.push(leases[0], 0, frame(1.0))
    assert running.wait(10)
    for lease in leases[1:]:
        engine.push(lease, 0, frame(1.0))
    go_on.set()
    assert listener.wait_for(lambda heard: all(heard.steps(lease) for lease in leases))
    assert runner.batches == [[leases[0].slot], [lease.slot for lease in leases[1:]]]


def test_gather_window_ends_when_everybody_is_there(engine: Engine, runner: SummingRunner) -> None:
    loop = EngineLoop(engine, pace=Pace(gather_s=FOREVER_S))
    loop.start()
    listener = Listener()
    leases = [engine.acquire(SessionSpec()) for _ in range(2)]
    for lease in leases:
        engine.open(lease, listener)
    assert listener.wait_for(lambda heard: all(heard.opened(lease) for lease in leases))
    for lease in leases:
        engine.push(lease, 0, frame(1.0))
    assert listener.wait_for(lambda heard: all(heard.steps(lease) for lease in leases))
    assert runner.batches == [[lease.slot for lease in leases]]
    assert loop.stop()


def test_session_that_is_behind_does_not_wait_for_the_interval(engine: Engine) -> None:
    loop = EngineLoop(engine, pace=Pace(interval_s=FOREVER_S))
    listener = Listener()
    behind, silent = engine.acquire(SessionSpec()), engine.acquire(SessionSpec())
    for lease in (behind, silent):
        engine.open(lease, listener)
    for number in range(4):
        engine.push(behind, number, frame(1.0))
    loop.start()
    assert listener.wait_for(lambda heard: len(heard.steps(behind)) == 3)
    # One frame waits now, which is no hurry: only the push of a second makes the loop step again.
    engine.push(behind, 4, frame(1.0))
    assert listener.wait_for(lambda heard: len(heard.steps(behind)) == 4)
    assert engine.stats().pending_frames == 1
    assert loop.stop()


def test_stopped_loop_tells_its_sessions_that_the_engine_drains(engine: Engine) -> None:
    loop = EngineLoop(engine)
    loop.start()
    listener = Listener()
    lease = engine.acquire(SessionSpec())
    engine.open(lease, listener)
    assert listener.wait_for(lambda heard: heard.opened(lease))
    assert loop.stop()
    assert not loop.alive
    assert [type(end.error) for end in listener.ends(lease)] == [EngineDraining]


def test_loop_that_dies_takes_its_engine_out_of_service(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> int:
        raise RuntimeError("a fault of ours")

    listener = Listener()
    lease = engine.acquire(SessionSpec())
    engine.open(lease, listener)
    monkeypatch.setattr(engine, "tick", explode)
    loop = EngineLoop(engine)
    loop.start()
    assert listener.wait_for(lambda heard: bool(heard.ends(lease)))
    assert loop.stop()
    assert [type(end.error) for end in listener.ends(lease)] == [EngineLost]
    assert not engine.healthy


def test_loop_of_an_engine_that_became_unhealthy_ends_everybody_and_says_so(
    engine: Engine, runner: SummingRunner
) -> None:
    told: list[list[type]] = []
    listener = Listener()
    idle, busy = engine.acquire(SessionSpec()), engine.acquire(SessionSpec())
    dead = threading.Event()

    def on_dead() -> None:
        told.append([type(end.error) for lease in (idle, busy) for end in listener.ends(lease)])
        dead.set()

    def explode(batch: TickBatch) -> None:
        raise RuntimeError("device fault")

    runner.before_run = explode
    runner.wipe_error = RuntimeError("device fault")
    for lease in (idle, busy):
        engine.open(lease, listener)
    engine.push(busy, 0, frame(1.0))
    loop = EngineLoop(engine, on_dead=on_dead)
    loop.start()
    assert dead.wait(10)
    assert loop.stop()
    assert told == [[EngineLost, EngineLost]]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_loop_that_dies_says_so_even_when_nobody_can_be_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object, **kwargs: object) -> int:
        raise RuntimeError("a fault of ours")

    dead = threading.Event()
    monkeypatch.setattr(engine, "tick", explode)
    monkeypatch.setattr(engine, "shut", explode)
    loop = EngineLoop(engine, on_dead=dead.set)
    loop.start()
    assert dead.wait(10)
    assert loop.stop()


def test_stopped_loop_is_not_dead(engine: Engine) -> None:
    dead = threading.Event()
    loop = EngineLoop(engine, on_dead=dead.set)
    loop.start()
    assert loop.stop()
    assert not dead.is_set()


def test_many_threads_push_and_no_frame_is_lost_or_foreign() -> None:
    engine = Engine(PassThroughRunner(8), clock=time.monotonic)
    loop = EngineLoop(engine)
    loop.start()
    frames = 50

    def converse(speaker: int, foreign: list[int]) -> None:
        listener = Listener()
        lease = engine.acquire(SessionSpec())
        engine.open(lease, listener)
        for number in range(frames):
            pcm = frame(float(speaker))
            pcm[1] = number
            engine.push(lease, number, pcm)
            assert listener.wait_for(lambda heard, want=number + 1: len(heard.steps(lease)) == want)  # type: ignore[misc]
        for number, step in enumerate(listener.steps(lease)):
            assert step.pcm is not None
            if (step.number, float(step.pcm[0]), float(step.pcm[1])) != (number, speaker, number):
                foreign.append(number)
        engine.close(lease)
        assert listener.wait_for(lambda heard: bool(heard.ends(lease)))

    foreign: list[int] = []
    threads = [threading.Thread(target=converse, args=(speaker, foreign)) for speaker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert foreign == []
    stats = engine.stats()
    assert (stats.steps, stats.free, stats.stale_frames) == (8 * frames, 8, 0)
    assert stats.dropped_frames == {}
    assert loop.stop()


def test_pass_through_gives_every_bit_back() -> None:
    engine = Engine(PassThroughRunner(1), clock=time.monotonic)
    listener = Listener()
    lease = engine.acquire(SessionSpec())
    engine.open(lease, listener)
    pcm = np.random.default_rng(1).standard_normal(1_920).astype(np.float32)
    engine.push(lease, 5, pcm)
    engine.tick()
    (step,) = listener.steps(lease)
    assert step.pcm is not None
    np.testing.assert_array_equal(step.pcm, pcm)
    assert step.codes.shape == (0,)
