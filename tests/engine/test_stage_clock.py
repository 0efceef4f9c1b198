"""Time by stage, and the one wait of a tick."""

from typing import Any

import pytest
import torch

from serve_app.engine.stage_clock import StageClock


class FakeEvent:
    """An event that records when it was its turn."""

    made = 0
    waits = 0
    now_ms = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        FakeEvent.made += 1
        self.at_ms = 0.0

    def record(self) -> None:
        FakeEvent.now_ms += 1.0
        self.at_ms = FakeEvent.now_ms

    def synchronize(self) -> None:
        FakeEvent.waits += 1

    def elapsed_time(self, later: Any) -> float:
        return float(later.at_ms - self.at_ms)


def test_marks_outside_of_a_tick_are_ignored() -> None:
    clock = StageClock(torch.device("cpu"))
    clock.mark("captured")
    clock.begin()
    clock.mark("lm")
    assert list(clock.read()) == ["lm"]
    clock.mark("captured")
    assert list(clock.read()) == ["lm"]


def test_a_gpu_is_waited_for_once_a_tick_and_events_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    clock = StageClock(torch.device("cuda"))
    for tick in range(3):
        clock.begin()
        for stage in ("send", "step", "fetch"):
            clock.mark(stage)
        assert clock.read() == {"send": 1.0, "step": 1.0, "fetch": 1.0}
        assert FakeEvent.waits == tick + 1
    assert FakeEvent.made == 4
