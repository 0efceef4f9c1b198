"""Does an empty slot cost anything? The same four conversations in a small and in a large engine, turn about.

    python -m serve_app.bench.live_rows

Both engines run in one process and take turns, so that what else the machine does meets both: the ratio is sound where
the times are not. The last line is JSON.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from serve_app.checkpoint.served import load_served
from serve_app.config import CheckpointSettings, EngineSettings
from serve_app.engine.captured import Capture, EagerTwin
from serve_app.engine.engine import Engine
from serve_app.engine.events import Event
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.slots import Lease
from serve_app.model.duplex import Duplex
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES

LIVE: Final = 4
SMALL: Final = 4
LARGE: Final = 64
SPREAD: Final = (3, 17, 40, 61)
"""Where four conversations may sit after a day of coming and going."""
WARM_TICKS: Final = 60
"""More than the demo's ring holds steps, so that nothing is touched for the first time."""
TICKS: Final = 150


@dataclasses.dataclass(slots=True)
class Talkers:
    """An engine in which some slots talk and the others are empty."""

    engine: Engine
    leases: Sequence[Lease]
    number: int = 0

    @classmethod
    def seated(cls, duplex: Duplex, slots: int, where: Sequence[int], capture: Capture | None) -> "Talkers":
        """Fill the engine and send everybody away but those."""
        runner = ModelRunner(duplex, slots, capture=capture)
        runner.warm_up(1)
        engine = Engine(runner, clock=time.monotonic)
        leases = [engine.acquire(SessionSpec()) for _ in range(slots)]
        for lease in leases:
            engine.open(lease, _ignore)
        for lease in leases:
            if lease.slot not in where:
                engine.close(lease)
        engine.tick()
        return cls(engine, [lease for lease in leases if lease.slot in where])

    def tick(self, pcm: np.ndarray) -> float:
        """One frame of everybody; returns its milliseconds."""
        for lease in self.leases:
            self.engine.push(lease, self.number, pcm)
        self.number += 1
        began_s = time.perf_counter()
        rows = self.engine.tick()
        assert rows == len(self.leases)
        return 1_000 * (time.perf_counter() - began_s)


@dataclasses.dataclass(frozen=True, slots=True)
class Ratio:
    """What the large engine's ticks took over the small one's: medians, and the ratio of the medians."""

    name: str
    small_ms: float
    large_ms: float
    ratio: float


def compare(name: str, small: Talkers, large: Talkers, ticks: int = TICKS) -> Ratio:
    """Tick both in turns, in either order."""
    generator = np.random.default_rng(0)
    frames = generator.normal(0, 0.1, (16, FRAME_SAMPLES)).astype(np.float32)
    for tick in range(WARM_TICKS):
        small.tick(frames[tick % 16])
        large.tick(frames[tick % 16])
    spent: dict[int, list[float]] = {0: [], 1: []}
    for tick in range(ticks):
        order = ((0, small), (1, large)) if tick % 2 else ((1, large), (0, small))
        for index, talkers in order:
            spent[index].append(talkers.tick(frames[tick % 16]))
    small_ms, large_ms = statistics.median(spent[0]), statistics.median(spent[1])
    return Ratio(name, small_ms, large_ms, large_ms / small_ms)


def measure(duplex: Duplex, ticks: int = TICKS) -> list[Ratio]:
    """Side by side and spread out, with live rows alone and padded."""
    found = []
    for way, capture in (("live rows", None), ("eager twin", EagerTwin())):
        for seats, where in (("side by side", range(LIVE)), ("spread", SPREAD)):
            small = Talkers.seated(duplex, SMALL, range(LIVE), capture)
            large = Talkers.seated(duplex, LARGE, where, capture)
            found.append(compare(f"{way}, {seats}", small, large, ticks))
    return found


def main() -> None:
    """Measure on the demo's checkpoint, one thread."""
    settings = EngineSettings(checkpoint=CheckpointSettings(folder="serve_app/demo/checkpoint"), threads=1)
    assert settings.checkpoint is not None
    duplex = load_served(settings, settings.checkpoint).duplex
    found = measure(duplex)
    for ratio in found:
        line = f"{ratio.name:26} {ratio.small_ms:7.2f} {ratio.large_ms:7.2f} ms  {ratio.ratio:5.3f}\n"
        sys.stdout.write(line)
    about = {"live": LIVE, "small": SMALL, "large": LARGE, "torch": torch.__version__}
    sys.stdout.write(json.dumps({**about, "ratios": {ratio.name: round(ratio.ratio, 3) for ratio in found}}) + "\n")


def _ignore(events: Sequence[Event]) -> None:
    """A sink that nobody reads."""


if __name__ == "__main__":
    main()
