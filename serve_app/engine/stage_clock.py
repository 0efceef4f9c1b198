"""How long each stage of a tick took, on the host or on the device."""

import time
from collections.abc import Mapping
from typing import Any

import torch


class StageClock:
    """Marks between stages; on a GPU they are events, so that taking the time waits for nothing.

    Used by one thread: `begin`, `mark` after every stage, `read` at the end. Marks outside of that are ignored: they
    come from a tick that is captured and not run.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stages: list[str] = []
        self._marks: list[Any] = []
        self._events: list[Any] = []  # made once: a tick allocates nothing on the device
        self._runs = False

    def begin(self) -> None:
        """Start of a tick."""
        self._stages, self._marks, self._runs = [], [], True
        self._take()

    def mark(self, stage: str) -> None:
        """End of a stage."""
        if self._runs:
            self._stages.append(stage)
            self._take()

    def read(self) -> Mapping[str, float]:
        """Milliseconds by stage. Waits until a GPU has reached the last mark: the one wait of a tick."""
        self._runs = False
        if self._on_gpu:
            self._marks[-1].synchronize()
        spans = zip(self._stages, self._marks, self._marks[1:], strict=False)
        return {stage: self._span_ms(before, after) for stage, before, after in spans}

    def _span_ms(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after)) if self._on_gpu else 1_000 * float(after - before)

    def _take(self) -> None:
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        if len(self._events) == len(self._marks):
            self._events.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
        event = self._events[len(self._marks)]
        event.record()
        self._marks.append(event)
