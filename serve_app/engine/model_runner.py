"""The runner that runs a model: preallocated state, one call per stage whatever the batch, numpy at the seam.

Eager. Rows of a tick are exactly the sessions that have a frame, so live rows alone cost.
"""

import time

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.runner import RunnerInfo
from serve_app.engine.stage_clock import StageClock
from serve_app.model.duplex import Duplex, TickOutput
from serve_app.model.lm import Given
from serve_app.model.sampling import Whole, needs_whole
from serve_app.model.state import Rows, reset, state_bytes_per_slot
from serve_app.spec import Sampling
from serve_app.units import FRAME_SAMPLES, Slot


class ModelRunner:
    """A `Duplex` and the state of ``slots`` sessions. One thread.

    The model's parameters must be on one device and stay there; the LM's keys and values take the dtype of its weights.
    """

    def __init__(self, duplex: Duplex, slots: int, *, name: str = "moshi") -> None:
        self._duplex = duplex.eval()
        self._slots = slots
        self._name = name
        weight = duplex.lm.text_linear.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._clock = StageClock(self._device)
        with torch.inference_mode():
            self._state = duplex.init_state(slots, self._device, self._dtype)
        self._host_pcm = torch.zeros(slots, 1, FRAME_SAMPLES, pin_memory=self._device.type == "cuda")
        self._whole = np.zeros(slots, np.bool_)  # slots that sample from more than the sorted candidates

    @property
    def slots(self) -> int:
        """How many slots there is state for."""
        return self._slots

    @torch.inference_mode()
    def open(self, slot: Slot, sampling: Sampling) -> None:
        """Make the slot fresh, but for keys and values that its offset hides, and set how it samples."""
        reset(self._state, self._index(slot))
        self._state.lm.sampling.set(slot, sampling)
        config = self._duplex.lm.config
        self._whole[slot] = needs_whole(sampling, config.text_card_out, config.card)

    @torch.inference_mode()
    def wipe(self, slot: Slot) -> None:
        """Overwrite every value of the slot, and of scratch, where a masked write of it may have gone."""
        reset(self._state, self._index(slot, self._slots), wipe=True)
        self._whole[slot] = False

    @torch.inference_mode()
    def run(self, batch: TickBatch) -> TickResult:
        """Step the rows of the batch; every stage is called once."""
        count = batch.rows
        self._clock.begin()
        self._host_pcm.numpy()[:count, 0] = batch.pcm
        pcm = self._host_pcm[:count].to(self._device, non_blocking=True)
        slots = torch.tensor(batch.slots, device=self._device)
        rows = Rows.of(slots, torch.ones_like(slots, dtype=torch.bool), self._slots, _run(batch.slots))
        output = self._tick(pcm, rows, self._whole_rows(batch.slots))
        return TickResult(
            pcm=output.pcm.cpu().numpy(),
            audible=output.decoded.cpu().numpy(),
            text_token=output.text.cpu().numpy(),
            codes=output.codes.to(torch.int16).cpu().numpy(),
            finite=output.finite.cpu().numpy(),
            stage_ms=self._clock.read(),
        )

    @torch.inference_mode()
    def warm_up(self, ticks: int = 2) -> float:
        """Run full ticks that advance nobody, so that the first session meets no lazy initialisation.

        Returns:
            Milliseconds of the last one.
        """
        slots = torch.arange(self._slots, device=self._device)
        rows = Rows.of(slots, torch.zeros_like(slots, dtype=torch.bool), self._slots)
        elapsed_ms = 0.0
        for _ in range(ticks):
            started_s = time.perf_counter()
            self._clock.begin()
            self._tick(self._host_pcm.to(self._device), rows, False).finite.cpu()
            elapsed_ms = 1_000 * (time.perf_counter() - started_s)
        return elapsed_ms

    def describe(self) -> RunnerInfo:
        """What this runner is."""
        config = self._duplex.lm.config
        return RunnerInfo(
            model=self._name,
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            state_bytes_per_slot=state_bytes_per_slot(self._state),
            dep_q=config.dep_q,
            delay_steps=config.max_delay,
            weights_bytes=sum(p.numel() * p.element_size() for p in self._duplex.parameters()),
        )

    def _tick(self, pcm: Tensor, rows: Rows, whole: Whole) -> TickOutput:
        """`Duplex.tick`, with the time taken between stages."""
        duplex, state = self._duplex, self._state
        given = Given.nothing(pcm.shape[0], duplex.lm.config.dep_q, self._device)
        heard = duplex.encode(pcm, state, rows)
        self._clock.mark("encode")
        thought = duplex.think(heard, state, rows, given.text, whole=whole)
        self._clock.mark("lm")
        spoken = duplex.speak(thought, state, rows, given.audio, whole=whole)
        said = duplex.lm.advance(thought.text, spoken.codes, state.lm, rows)
        self._clock.mark("depformer")
        voice = duplex.decode(said, state, rows)
        finite = duplex.finite(pcm, heard, thought, spoken, voice, rows)
        self._clock.mark("decode")
        return TickOutput(said.step, said.text, said.codes, voice, said.complete, finite)

    def _whole_rows(self, slots: npt.NDArray[np.int64]) -> Whole:
        """The rows that look further than the sorted candidates: they alone pay for it."""
        rows = np.flatnonzero(self._whole[slots])
        return torch.tensor(rows, device=self._device) if rows.size else False

    def _index(self, *slots: int) -> Tensor:
        return torch.tensor(slots, device=self._device)


def _run(slots: npt.NDArray[np.int64]) -> int | None:
    """The first slot where the slots follow one another, so that their state is read in place."""
    return int(slots[0]) if bool((np.diff(slots) == 1).all()) else None
