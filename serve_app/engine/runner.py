"""The seam to the model: a runner owns tensors and nothing else."""

import dataclasses
import time
from typing import Final, Protocol

import numpy as np

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.spec import Sampling
from serve_app.units import Slot

PAD_TOKEN: Final = 3
"""Text padding in Kyutai's vocabularies: nothing is written."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What a runner is, for people and for ``/info``."""

    model: str
    device: str
    dtype: str
    state_bytes_per_slot: int
    dep_q: int
    delay_steps: int = 0
    weights_bytes: int = 0


class Runner(Protocol):
    """Computes one tick. Every method is called on the engine thread.

    Any exception out of ``open`` or ``run`` ends the sessions concerned and the slots are wiped; an exception out of
    ``wipe`` makes the engine unhealthy.
    """

    @property
    def slots(self) -> int:
        """How many slots there is state for."""
        ...

    def open(self, slot: Slot, sampling: Sampling) -> None:
        """Reset the rows of a slot and set how they sample. Cheap: it happens between ticks."""
        ...

    def wipe(self, slot: Slot) -> None:
        """Overwrite every value of a slot, so that nothing that is not finite survives for its next holder."""
        ...

    def run(self, batch: TickBatch) -> TickResult:
        """Step the rows of the batch; one call per model stage, whatever R is."""
        ...

    def describe(self) -> RunnerInfo:
        """What this runner is."""
        ...


class PassThroughRunner:
    """No model: every frame comes back as it went in, at once. Measures the path around the model."""

    def __init__(self, slots: int) -> None:
        self._slots = slots

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return self._slots

    def open(self, slot: Slot, sampling: Sampling) -> None:
        """Nothing to reset."""

    def wipe(self, slot: Slot) -> None:
        """Nothing to wipe."""

    def run(self, batch: TickBatch) -> TickResult:
        """Give every row its own frame back; the text is always padding and there are no codes."""
        started_s = time.perf_counter()
        rows = batch.rows
        pcm = batch.pcm.copy()
        return TickResult(
            pcm=pcm,
            audible=np.ones(rows, np.bool_),
            text_token=np.full(rows, PAD_TOKEN, np.int64),
            codes=np.zeros((rows, 0), np.int16),
            finite=np.asarray(np.isfinite(pcm).all(axis=1), np.bool_),
            stage_ms={"pass": 1_000 * (time.perf_counter() - started_s)},
        )

    def describe(self) -> RunnerInfo:
        """No model, no state."""
        return RunnerInfo(model="pass-through", device="cpu", dtype="float32", state_bytes_per_slot=0, dep_q=0)
