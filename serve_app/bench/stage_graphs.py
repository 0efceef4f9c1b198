"""Time by stage where the whole tick is one graph, in which no clock can stand: every stage as a graph of its own.

Their sum is a little more than the whole: each stage is launched, and waits for the one before it. On a CPU the stages
run as they are, which is how a test sees them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch

from serve_app.bench.shapes import STAGES
from serve_app.engine.stage_clock import StageClock
from serve_app.model.duplex import Duplex, DuplexState
from serve_app.model.lm import Given
from serve_app.model.state import all_rows
from serve_app.units import FRAME_SAMPLES

WARM_RUNS: Final = 2


class StageGraphs:
    """The stages of a tick of the first rows of a state, prepared one by one; preparing them advances the rows."""

    def __init__(self, duplex: Duplex, state: DuplexState, rows: int) -> None:
        self._device = duplex.lm.device
        every = all_rows(rows, self._device)
        pcm = torch.zeros(rows, 1, FRAME_SAMPLES, device=self._device)
        given = Given.nothing(rows, duplex.lm.config.dep_q, self._device)
        made: dict[str, Any] = {}  # what a stage leaves for the next one, at addresses that stay

        def encode() -> None:
            made["heard"] = duplex.encode(pcm, state, every)

        def think() -> None:
            made["thought"] = duplex.think(made["heard"], state, every, given.text, whole=False)

        def speak() -> None:
            spoken = duplex.speak(made["thought"], state, every, given.audio, whole=False)
            made["said"] = duplex.lm.advance(made["thought"].text, spoken.codes, state.lm, every)

        def decode() -> None:
            made["voice"] = duplex.decode(made["said"], state, every)

        with torch.inference_mode():
            steps = zip(STAGES, (encode, think, speak, decode), strict=True)
            self._stages = {name: self._prepared(stage) for name, stage in steps}

    @torch.inference_mode()
    def medians_ms(self, repeat: int) -> Mapping[str, float]:
        """Run all stages in turn, so many times."""
        taken: dict[str, list[float]] = {name: [] for name in self._stages}
        for _ in range(repeat):
            clock = StageClock(self._device)
            clock.begin()
            for name, stage in self._stages.items():
                stage()
                clock.mark(name)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            for name, span_ms in clock.read().items():
                taken[name].append(span_ms)
        return {name: float(np.median(times)) for name, times in taken.items()}

    def _prepared(self, stage: Callable[[], None]) -> Callable[[], None]:
        if self._device.type != "cuda":
            stage()
            return stage
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_RUNS):
                stage()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            stage()
        replay: Callable[[], None] = graph.replay
        return replay
