"""How long each stage of a tick took, on the host or on the device."""

import time
from collections.abc import Mapping
from typing import Any

import torch


class StageClock:
    """Marks between stages; on a GPU they are events, so that taking the time waits for nothing.

    Used by one thread: `begin`, `mark` after every stage, `read` once the outputs are on the host.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def begin(self) -> None:
        """Start of a tick."""
        self._marks = [("", self._now())]

    def mark(self, stage: str) -> None:
        """End of a stage."""
        self._marks.append((stage, self._now()))

    def read(self) -> Mapping[str, float]:
        """Milliseconds by stage. On a GPU the last mark must have been reached."""
        spans: dict[str, float] = {}
        for (_, before), (stage, after) in zip(self._marks, self._marks[1:], strict=False):
            spans[stage] = before.elapsed_time(after) if self._on_gpu else 1_000 * (after - before)
        return spans

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
