"""Many jobs through one runner: as alone, live rows only, one failure alone."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.runner import PassThroughRunner
from serve_app.errors import NotFinite, ParameterRefused
from serve_app.offline.batch import Order, Outcome, run_batch
from serve_app.offline.job import Job, Pacing
from serve_app.spec import Prompt, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot


class Recorder(PassThroughRunner):
    """Passes frames through, and remembers what it was asked to do; a frame of 0.9 gives what is not finite."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.rows: list[int] = []
        self.opened: list[tuple[int, int | None]] = []
        self.wiped: list[int] = []

    def open(self, slot: Slot, spec: SessionSpec, twin: Slot | None = None) -> int:
        self.opened.append((slot, twin))
        return 0

    def check(self, spec: SessionSpec) -> int:
        if spec.prompt is not None:
            raise ParameterRefused("text_prompt", "", "no prompts here")
        return 0

    def wipe(self, slot: Slot) -> None:
        self.wiped.append(slot)

    def run(self, batch: TickBatch) -> TickResult:
        self.rows.append(batch.rows)
        result = super().run(batch)
        result.finite[:] = batch.pcm.max(axis=1) < 0.9
        return result


def order(number: int, frames: int, level: float = 0.1, spec: SessionSpec | None = None) -> Order:
    pcm = np.full(frames * FRAME_SAMPLES, level + number / 1_000, np.float32)
    return Order(number, spec or SessionSpec(), lambda: Job(pcm, Pacing()))


def outcomes(runner: Recorder, orders: list[Order], seats: int) -> Mapping[int, Outcome]:
    return {outcome.number: outcome for outcome in run_batch(runner, iter(orders), seats)}


def test_every_recording_comes_back_whole_whatever_goes_beside_it() -> None:
    lengths = [3, 1, 7, 2, 5, 1, 4]
    runner = Recorder(3)
    done = outcomes(runner, [order(n, length) for n, length in enumerate(lengths)], 3)
    for number, length in enumerate(lengths):
        job = done[number].job
        assert job is not None
        assert job.voice is not None
        assert job.voice.size == (1 + length) * FRAME_SAMPLES
        assert set(job.voice[FRAME_SAMPLES:]) == {np.float32(0.1 + number / 1_000)}


def test_a_tick_has_the_rows_that_are_in_and_no_more() -> None:
    runner = Recorder(2)
    outcomes(runner, [order(0, 1), order(1, 4), order(2, 1)], 2)
    assert runner.rows == [2, 2, 2, 2, 1]


def test_a_free_slot_is_taken_at_once() -> None:
    runner = Recorder(2)
    outcomes(runner, [order(n, 1) for n in range(5)], 2)
    assert runner.rows == [2, 2, 2, 2, 1, 1]


def test_recordings_are_read_when_their_turn_comes() -> None:
    begun: list[int] = []

    def read(number: int) -> Job:
        begun.append(number)
        return Job(np.zeros(FRAME_SAMPLES, np.float32), Pacing())

    def orders() -> Iterator[Order]:
        for number in range(4):
            yield Order(number, SessionSpec(), lambda number=number: read(number))  # type: ignore[misc]

    results = run_batch(Recorder(1), orders(), 1)
    assert begun == []
    next(results)
    assert begun == [0]


def test_values_that_are_not_finite_end_one_recording_alone() -> None:
    runner = Recorder(2)
    done = outcomes(runner, [order(0, 3, level=0.95), order(1, 3), order(2, 3)], 2)
    assert isinstance(done[0].error, NotFinite)
    assert done[0].job is None
    assert done[1].job is not None
    assert done[2].job is not None
    assert runner.wiped == [0]


def test_a_recording_that_cannot_begin_leaves_its_slot_to_the_next() -> None:
    runner = Recorder(1)
    done = outcomes(runner, [order(0, 1, spec=SessionSpec(prompt=Prompt(text="be kind"))), order(1, 1)], 1)
    assert isinstance(done[0].error, ParameterRefused)
    assert done[1].job is not None


def test_guided_recordings_have_a_slot_of_their_own_each_for_the_twin() -> None:
    runner = Recorder(4)
    outcomes(runner, [order(n, 1, spec=SessionSpec(guidance=2.0)) for n in range(2)], 2)
    assert sorted(runner.opened) == [(0, 2), (1, 3)]


def test_no_recordings_are_no_ticks() -> None:
    runner = Recorder(1)
    assert outcomes(runner, [], 1) == {}
    assert runner.rows == []


@pytest.mark.parametrize("seats", [1, 2, 5])
def test_the_progress_counts_every_frame(seats: int) -> None:
    ticks: list[int] = []
    list(run_batch(Recorder(seats), iter([order(n, 2) for n in range(3)]), seats, ticks.append))
    assert sum(ticks) == 3 * 3
