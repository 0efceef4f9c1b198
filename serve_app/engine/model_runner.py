"""The runner that runs a model: preallocated state, one call per stage whatever the batch, numpy at the seam.

Live rows alone cost. On a CPU a tick computes exactly the sessions that have a frame; on a GPU the smallest captured
bucket that holds them, see `captured`.
"""

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.captured import Capture, Captured, Kind
from serve_app.engine.page_desk import PageDesk
from serve_app.engine.prefix_cache import PrefixCache
from serve_app.engine.prompts import PromptBook
from serve_app.engine.runner import Primed, RunnerInfo
from serve_app.engine.stage_clock import StageClock
from serve_app.engine.staging import TickInputs, TickOutputs, TickShape
from serve_app.errors import ParameterRefused
from serve_app.model.duplex import Duplex, DuplexState, TickOutput
from serve_app.model.lm import Given
from serve_app.model.page_pool import PagePool
from serve_app.model.pages import Storage
from serve_app.model.sampling import Whole, needs_whole
from serve_app.model.snapshot import Snapshot, put, take
from serve_app.model.state import Rows, reset, state_bytes_per_slot
from serve_app.spec import Offer, Prompt, Sampling, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What sessions of a model get that ask for nothing, and how it was taught to be guided.

    Attributes:
        sampling, guidance: defaults; the seeds mean nothing.
        no_text, masked_until: see `guidance.Guidance`.
        conditions: values of conditions that a session does not choose.
        against: what guidance leads away from; None: nothing chosen.
    """

    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    guidance: float = 1.0
    no_text: bool = False
    masked_until: int | None = None
    conditions: tuple[tuple[str, str], ...] = ()
    against: tuple[tuple[str, str], ...] | None = None


@dataclasses.dataclass(slots=True)
class _Reading:
    """A prompt that is being fed.

    Attributes:
        name: what it is found by afterwards.
        tokens: ``int64[1, streams, T]`` on the device, as said and heard at each step.
        fed: steps so far.
    """

    name: tuple[Prompt, tuple[tuple[str, str], ...], bool]
    tokens: Tensor
    fed: int = 0


class ModelRunner:
    """A `Duplex` and the state of ``slots`` sessions, fewer where sessions are guided. One thread.

    The model's parameters must be on one device and stay there; the LM's keys and values take its dtype.

    Args:
        habits: defaults of the checkpoint.
        prompts: None takes none.
        prefix_bytes: of states that prompts have left, kept for the next session with the same prompt.
        capture: how ticks are prepared, in `warm_up`; None computes live rows as they come.
        storage: how the LM's keys and values are kept; None is a ring for every slot.
        page_reserve: pages that admission leaves for those who are in already.
    """

    def __init__(
        self,
        duplex: Duplex,
        slots: int,
        *,
        name: str = "moshi",
        habits: Habits | None = None,
        prompts: PromptBook | None = None,
        prefix_bytes: int = 0,
        capture: Capture | None = None,
        storage: Storage | None = None,
        page_reserve: int = 0,
    ) -> None:
        self._duplex = duplex.eval()
        self._slots = slots
        self._name = name
        self._habits = habits if habits is not None else Habits()
        self._prompts = prompts
        self._prefixes = PrefixCache(prefix_bytes)
        self._device, self._dtype = duplex.lm.device, duplex.lm.dtype
        self._clock = StageClock(self._device)
        with torch.inference_mode():
            self._state = duplex.init_state(slots, self._device, self._dtype, storage)
        self._capture = capture
        self._captured: Captured | None = None
        self._desk: PageDesk | None = None
        pages = self._state.lm.transformer.pages
        if storage is not None and storage.pages is not None and pages is not None:
            pool = PagePool(storage.pages, storage.page_steps, self._context, reserve=page_reserve)
            self._desk = PageDesk(pool, pages)
        self._whole = np.zeros(slots, np.bool_)  # slots that sample from more than the sorted candidates
        self._twins: dict[int, Slot] = {}
        self._readings: dict[int, _Reading] = {}
        self._offer = self._offered()

    @property
    def slots(self) -> int:
        """How many slots there is state for; a guided session takes two."""
        return self._slots

    @property
    def offer(self) -> Offer:
        """What sessions of this model may ask for."""
        return self._offer

    @property
    def pool(self) -> PagePool | None:
        """The pages that slots draw on; None where every slot has a ring."""
        return None if self._desk is None else self._desk.pool

    @property
    def state(self) -> DuplexState:
        """Streaming state of every slot: written by `run`, and between ticks by a benchmark. Engine thread."""
        return self._state

    def stand_at(self, slots: Sequence[int], steps: Sequence[int]) -> None:
        """Have the pages of slots whose state a benchmark has put, or puts next, at so many steps. Engine thread."""
        if self._desk is not None:
            with torch.inference_mode():
                self._desk.stand_at(slots, steps)

    def check(self, spec: SessionSpec) -> int:
        """Refuse what this model cannot do, else the steps of the prompt. Any thread.

        Raises:
            ParameterRefused: not offered, or a prompt longer than the context.
        """
        self._offer.check(spec)
        if spec.prompt is None or self._prompts is None:
            return 0
        steps = self._prompts.frames(spec.prompt).shape[1]
        if steps > self._offer.prompt_steps:
            name, value = ("text_prompt", spec.prompt.text) if spec.prompt.text else ("voice_prompt", spec.prompt.voice)
            raise ParameterRefused(name, value, f"takes {steps} steps, longer than the context of {self._context}")
        return int(steps)

    @torch.inference_mode()
    def open(self, slot: Slot, spec: SessionSpec, twin: Slot | None = None) -> int:
        """Make the slots fresh, but for keys and values that their offset hides, and set what the session asked for."""
        slots = (slot,) if twin is None else (slot, twin)
        reset(self._state, self._index(*slots))
        self._forget(slots)
        if self._desk is not None:
            self._desk.reset(slots)
        if twin is not None:
            self._twins[slot] = twin
        lm, state, habits = self._duplex.lm, self._state.lm, self._habits
        state.sampling.set(slot, spec.sampling)
        state.bias.set(slot, spec)
        state.guidance.set(slot, spec.guidance, no_text=habits.no_text, masked_until=habits.masked_until)
        if lm.condition_provider is not None:
            against = dict(habits.against) if habits.against is not None else None
            lm.set_conditions(state, slot, self._conditions(spec), twin=twin, against=against)
        self._whole[slot] = needs_whole(spec.sampling, lm.config.text_card_out, lm.config.card)
        return self._begin(slot, spec) if spec.prompt is not None else 0

    def _begin(self, slot: Slot, spec: SessionSpec) -> int:
        """Open the session's prompt; returns its steps, 0 when somebody has fed it before."""
        assert spec.prompt is not None
        assert self._prompts is not None, "a prompt is refused where there are none"
        name = (spec.prompt, tuple(sorted(self._conditions(spec).items())), spec.guided)
        if self._recall(slot, name):
            return 0
        frames = torch.from_numpy(self._prompts.frames(spec.prompt)).to(self._device)
        self._readings[slot] = reading = _Reading(name, self._duplex.lm.delays.lay(frames[None]))
        return int(reading.tokens.shape[2])

    @torch.inference_mode()
    def prime(self, slot: Slot, steps: int) -> Primed:
        """Feed the next steps of the slot's prompt, or what the same prompt has left in the meantime."""
        reading = self._readings[slot]
        if reading.fed == 0 and self._recall(slot, reading.name, again=True):
            del self._readings[slot]
            return Primed(0, 0)
        part = reading.tokens[:, :, reading.fed : reading.fed + steps]
        self._advance((slot,), int(part.shape[2]))
        slots = self._index(slot)
        rows = self._rows(slots, torch.ones_like(slots, dtype=torch.bool), [slot])
        # Reading the verdict waits for the device: what this part took is what the next one may take.
        finite = bool(self._duplex.prime(part, self._state, rows).all())
        reading.fed += part.shape[2]
        left = reading.tokens.shape[2] - reading.fed
        if finite and not left:
            self._prefixes.keep(reading.name, self._lived(slot, reading.fed))
        if not left:
            del self._readings[slot]
        return Primed(int(part.shape[2]), int(left), finite)

    def _lived(self, slot: Slot, steps: int) -> tuple[Snapshot, ...]:
        return tuple(take(self._state.lm, row, steps) for row in self._slots_of(slot))

    def _recall(self, slot: Slot, name: tuple[object, ...], *, again: bool = False) -> bool:
        """Put what the prompt has left into the session's slots, if it was kept."""
        kept = self._prefixes.find(name, again=again)
        if kept is None:
            return False
        self._advance((slot,), kept[0].steps)
        for row, snapshot in zip(self._slots_of(slot), kept, strict=True):
            put(snapshot, self._state.lm, row)
        return True

    @torch.inference_mode()
    def wipe(self, slot: Slot) -> None:
        """Overwrite every value of the slot, and of scratch, where a masked write of it may have gone."""
        reset(self._state, self._index(slot, self._slots), wipe=True)
        if self._desk is not None:
            self._desk.wipe_scratch()
        self._whole[slot] = False
        self._forget((slot,))

    @torch.inference_mode()
    def run(self, batch: TickBatch) -> TickResult:
        """Step the rows of the batch; every stage is called once."""
        self._advance(batch.slots.tolist())
        if self._captured is not None:
            wide = bool(self._whole[batch.slots].any())
            return self._captured.run(batch, self._twins, self._clock, wide=wide)
        return self._run_live(batch)

    def _run_live(self, batch: TickBatch) -> TickResult:
        """The rows of the batch and no others."""
        self._clock.begin()
        pcm = torch.from_numpy(batch.pcm)[:, None].to(self._device)  # [R, 1, 1920]
        slots = torch.from_numpy(batch.slots).to(self._device)
        rows = self._rows(slots, torch.ones_like(slots, dtype=torch.bool), batch.slots.tolist(), _run(batch.slots))
        ended = None if batch.ended is None else torch.from_numpy(batch.ended).to(self._device)
        output = self._tick(pcm, rows, self._whole_rows(batch.slots), ended, self._given(batch))
        heads = output.heads
        return TickResult(
            pcm=output.pcm.cpu().numpy(),
            audible=output.decoded.cpu().numpy(),
            text_token=output.text.cpu().numpy(),
            codes=output.codes.to(torch.int16).cpu().numpy(),
            finite=output.finite.cpu().numpy(),
            stage_ms=self._clock.read(),
            heads=heads.cpu().numpy() if heads is not None and heads.shape[1] else None,
        )

    @torch.inference_mode()
    def warm_up(self, ticks: int = 2) -> float:
        """Prepare every captured tick, and run full ticks that advance nobody: no session meets what happens once.

        Returns:
            Milliseconds of the last one.
        """
        if self._capture is not None and self._captured is None:
            self._captured = self._prepared(self._capture)
        elapsed_ms = 0.0
        for _ in range(ticks):
            started_s = time.perf_counter()
            self._clock.begin()
            self._idle()
            self._clock.mark("idle")
            self._clock.read()
            elapsed_ms = 1_000 * (time.perf_counter() - started_s)
        return elapsed_ms

    def _prepared(self, capture: Capture) -> Captured:
        config, began_s = self._duplex.lm.config, time.perf_counter()
        heads = (config.extra_heads_num_heads, config.extra_heads_dim) if config.extra_heads_num_heads else (0, 0)
        shape = TickShape(self._slots, config.dep_q, heads)
        captured = Captured(self._step, shape, self._device, guided=self._offer.guided, capture=capture)
        logger.info("ticks of %s rows prepared in %.1f s", captured.sizes, time.perf_counter() - began_s)
        return captured

    def _idle(self) -> None:
        """A full tick in which nobody advances."""
        if self._captured is not None:
            self._captured.idle()
            return
        slots = torch.arange(self._slots, device=self._device)
        rows = Rows.of(slots, torch.zeros_like(slots, dtype=torch.bool), self._slots)
        self._tick(torch.zeros(self._slots, 1, FRAME_SAMPLES, device=self._device), rows, False).finite.cpu()

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
            weights_bytes=sum(
                t.numel() * t.element_size() for t in (*self._duplex.parameters(), *self._duplex.buffers())
            ),
            buckets=self._captured.sizes if self._captured is not None else (),
        )

    def counters(self) -> Mapping[str, int]:
        """Of the prompts, the pages and the captured ticks."""
        pages = {} if self._desk is None else self._desk.pool.counters()
        captured = self._captured.counters() if self._captured is not None else {}
        return {**self._prefixes.counters(), **pages, **captured}

    def _step(self, inputs: TickInputs, outputs: TickOutputs, kind: Kind) -> None:
        """The tick between static buffers, as it is captured: no value is read on the host."""
        scratch = self._slots
        self._rest()
        rows = Rows.of(inputs.slots, inputs.slots != scratch, scratch)
        if kind is not Kind.PLAIN and self._offer.guided:
            rows = rows.guided(inputs.twin_of, inputs.twin_slots, scratch)
        given = Given(inputs.given[:, 0], inputs.given[:, 1:])
        output = self._tick(inputs.pcm, rows, kind is Kind.WIDE, inputs.ended, given)
        outputs.take(output)

    def _rest(self) -> None:
        """Forget the steps that scratch has made: padding then looks at one step, however long others have talked."""
        mimi, lm = self._state.mimi, self._state.lm
        for offset in (
            lm.cache.offset,
            lm.transformer.offset,
            mimi.encoder.transformer.offset,
            mimi.decoder.transformer.offset,
        ):
            offset[self._slots :].zero_()

    def _tick(
        self, pcm: Tensor, rows: Rows, whole: Whole, ended: Tensor | None = None, given: Given | None = None
    ) -> TickOutput:
        """`Duplex.tick`, with the time taken between stages."""
        duplex, state = self._duplex, self._state
        if given is None:
            given = Given.nothing(pcm.shape[0], duplex.lm.config.dep_q, self._device)
        heard = duplex.encode(pcm, state, rows, ended)
        self._clock.mark("encode")
        thought = duplex.think(heard, state, rows, given.text, whole=whole)
        self._clock.mark("lm")
        spoken = duplex.speak(thought, state, rows, given.audio, whole=whole)
        said = duplex.lm.advance(thought.text, spoken.codes, state.lm, rows)
        self._clock.mark("depformer")
        voice = duplex.decode(said, state, rows)
        finite = duplex.finite(pcm, heard, thought, spoken, voice, rows)
        self._clock.mark("decode")
        heads = duplex.lm.heads(thought, rows)
        return TickOutput(said.step, said.text, said.codes, voice, duplex.audible(said), finite, heads)

    def _rows(self, slots: Tensor, exec_mask: Tensor, owners: Iterable[int], run: int | None = None) -> Rows:
        """The rows of these slots (``int64[R]``, on the host ``owners``), with the twins of those that are guided.

        Args:
            run: the first slot where the slots follow one another.
        """
        rows = Rows.of(slots, exec_mask, self._slots, run)
        twins = [(index, self._twins[slot]) for index, slot in enumerate(owners) if slot in self._twins]
        if not twins:
            return rows
        followed, their = zip(*twins, strict=True)
        return rows.guided(self._index(*followed), self._index(*their), self._slots)

    def _advance(self, slots: Sequence[int], steps: int = 1) -> None:
        """Have pages ready for so many more steps of the slots and their twins."""
        if self._desk is not None:
            self._desk.advance([row for slot in slots for row in self._slots_of(Slot(slot))], steps)

    def _slots_of(self, slot: Slot) -> tuple[Slot, ...]:
        twin = self._twins.get(slot)
        return (slot,) if twin is None else (slot, twin)

    def _forget(self, slots: Iterable[Slot]) -> None:
        """Drop what the host knows of the slots' last sessions."""
        for slot in slots:
            self._twins.pop(slot, None)
            self._readings.pop(slot, None)

    def _conditions(self, spec: SessionSpec) -> dict[str, str]:
        return {**dict(self._habits.conditions), **dict(spec.conditions)}

    @property
    def _context(self) -> int:
        return self._duplex.lm.config.context

    def _offered(self) -> Offer:
        lm, habits, prompts = self._duplex.lm, self._habits, self._prompts
        provider = lm.condition_provider
        conditions = {} if provider is None else provider.possible_values()
        return Offer(
            conditions=tuple((name, values or ()) for name, values in conditions.items()),
            guided=provider is not None or habits.no_text or habits.masked_until is not None,
            guidance=habits.guidance,
            prompt_steps=self._context if prompts is not None else 0,
            voices=prompts.voices if prompts is not None else (),
            extra_heads=lm.config.extra_heads_num_heads,
            sampling=habits.sampling,
        )

    def _whole_rows(self, slots: npt.NDArray[np.int64]) -> Whole:
        """The rows that look further than the sorted candidates: they alone pay for it."""
        rows = np.flatnonzero(self._whole[slots])
        return torch.tensor(rows, device=self._device) if rows.size else False

    def _given(self, batch: TickBatch) -> Given | None:
        if batch.given is None:
            return None
        tokens = torch.from_numpy(batch.given).to(self._device)
        return Given(tokens[:, 0], tokens[:, 1:])

    def _index(self, *slots: int) -> Tensor:
        return torch.tensor(slots, device=self._device)


def _run(slots: npt.NDArray[np.int64]) -> int | None:
    """The first slot where the slots follow one another, so that their state is read in place."""
    return int(slots[0]) if bool((np.diff(slots) == 1).all()) else None
