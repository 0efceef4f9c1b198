"""The seam to the model: a runner owns tensors and nothing else."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Final, Protocol

import numpy as np

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.model.page_pool import PagePool
from serve_app.spec import Offer, SessionSpec
from serve_app.units import Slot

PAD_TOKEN: Final = 3
"""Text padding in Kyutai's vocabularies: nothing is written."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What a runner is, for people and for ``/info``.

    Attributes:
        buckets: batch sizes whose tick is prepared; none where live rows are computed as they come.
    """

    model: str
    device: str
    dtype: str
    state_bytes_per_slot: int
    dep_q: int
    delay_steps: int = 0
    weights_bytes: int = 0
    buckets: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Primed:
    """Steps of a prompt that were fed just now, steps that are left, and whether the fed ones were finite."""

    steps: int
    left_steps: int
    finite: bool = True


class Runner(Protocol):
    """Computes one tick. Every method is called on the engine thread, except where it says otherwise.

    Any exception out of ``open``, ``prime`` or ``run`` ends the sessions concerned and the slots are wiped; an
    exception out of ``wipe`` makes the engine unhealthy.
    """

    @property
    def slots(self) -> int:
        """How many slots there is state for; a guided session takes two of them."""
        ...

    @property
    def offer(self) -> Offer:
        """What sessions may ask for. Any thread."""
        ...

    @property
    def pool(self) -> PagePool | None:
        """The pages that rows draw on, by their slot; None where each has room for its whole context. Any thread."""
        ...

    def check(self, spec: SessionSpec) -> int:
        """Refuse what this runner cannot do, before anything is done for it; else say how long the prompt is in steps.

        Any thread. Raises: ParameterRefused.
        """
        ...

    def open(self, slot: Slot, spec: SessionSpec, twin: Slot | None = None) -> int:
        """Reset the slot and its twin and set what the session asked for. Cheap: it happens between ticks.

        Args:
            twin: the second slot of a guided session.

        Returns:
            Steps of the prompt that ``prime`` has to feed first; 0 when the session may converse at once.
        """
        ...

    def prime(self, slot: Slot, steps: int) -> Primed:
        """Feed at most so many steps of the slot's prompt at once, and wait for them."""
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

    def counters(self) -> Mapping[str, int]:
        """What it has counted since it was made, for ``/info``. Any thread."""
        ...


class PassThroughRunner:
    """No model: every frame comes back as it went in, at once. Measures the path around the model."""

    def __init__(self, slots: int) -> None:
        self._slots = slots

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return self._slots

    @property
    def offer(self) -> Offer:
        """Nothing can be chosen."""
        return Offer()

    @property
    def pool(self) -> PagePool | None:
        """Nothing is held."""
        return None

    def check(self, spec: SessionSpec) -> int:
        """Refuse everything that needs a model."""
        self.offer.check(spec)
        return 0

    def open(self, slot: Slot, spec: SessionSpec, twin: Slot | None = None) -> int:
        """Nothing to reset."""
        return 0

    def prime(self, slot: Slot, steps: int) -> Primed:
        """Nothing to feed."""
        return Primed(0, 0)

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

    def counters(self) -> Mapping[str, int]:
        """Nothing is counted."""
        return {}
