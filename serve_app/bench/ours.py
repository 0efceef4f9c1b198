"""Our tick as an engine runs it: a `ModelRunner`, numpy in and numpy out."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from serve_app.bench.fill import place, rewind
from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.captured import capture_on
from serve_app.engine.model_runner import ModelRunner
from serve_app.model.duplex import Duplex
from serve_app.model.pages import Storage
from serve_app.spec import GREEDY, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot

LOUDNESS: Final = 0.3
FRAMES: Final = 16
"""Frames of noise to hear, made once: making them is not part of a tick."""


class Ours:
    """The batch that is measured: some slots of a runner, each in the middle of a greedy conversation.

    Args:
        slots: of the runner, the most rows that are measured.
        storage: of keys and values; its pages are to be enough for what is placed. None is rings.
    """

    def __init__(self, duplex: Duplex, slots: int, seed: int = 0, *, storage: Storage | None = None) -> None:
        self.duplex, self.storage = duplex, storage
        self.runner = ModelRunner(duplex, slots, capture=capture_on(duplex.lm.device), storage=storage)
        self.runner.warm_up()
        self.last: TickResult | None = None
        self._heard = noise(slots, seed)
        self._slots: tuple[int, ...] = ()
        self._steps: tuple[int, ...] = ()
        self._ticks = 0

    def place(self, steps: Sequence[int], slots: Sequence[int] | None = None) -> None:
        """Open a row for each number of steps, in the middle of a conversation that has made so many."""
        self._slots = tuple(range(len(steps))) if slots is None else tuple(slots)
        self._steps, self._ticks = tuple(steps), 0
        if self.runner.pool is not None:
            self.runner.pool.release(range(self.runner.slots))
        for slot in self._slots:
            self.runner.open(Slot(slot), SessionSpec(sampling=GREEDY))
        self.runner.stand_at(self._slots, self._steps)
        place(self.duplex, self.runner.state, self._slots, self._steps)

    def rewind(self) -> None:
        """Back to the number of steps that the rows were placed with."""
        rewind(self.duplex, self.runner.state, self._slots, self._steps)
        self.runner.stand_at(self._slots, self._steps)
        self._ticks = 0

    def frame(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """What the rows hear in the next tick, ``float32[R, 1920]``."""
        return self._heard[self._ticks % FRAMES, : len(self._slots)]

    def tick(self) -> Mapping[str, float]:
        """One tick, copies included. Returns milliseconds by stage."""
        steps = np.asarray(self._steps, np.int64) + self._ticks
        batch = TickBatch(slots=np.asarray(self._slots, np.int64), steps=steps, pcm=self.frame())
        self.last = self.runner.run(batch)
        self._ticks += 1
        return self.last.stage_ms


def noise(rows: int, seed: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """Frames to hear, ``float32[frames, R, 1920]``."""
    drawn = np.random.default_rng(seed).standard_normal((FRAMES, rows, FRAME_SAMPLES), np.float32)
    return np.float32(LOUDNESS) * drawn
