"""The runner that runs a model: preallocated state, one call per stage whatever the batch, numpy at the seam.

Eager. Rows of a tick are exactly the sessions that have a frame, so live rows alone cost.
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.prefix_cache import PrefixCache
from serve_app.engine.prompts import PromptBook
from serve_app.engine.runner import Primed, RunnerInfo
from serve_app.engine.stage_clock import StageClock
from serve_app.errors import ParameterRefused
from serve_app.model.duplex import Duplex, DuplexState, TickOutput
from serve_app.model.lm import Given
from serve_app.model.sampling import Whole, needs_whole
from serve_app.model.snapshot import Snapshot, put, take
from serve_app.model.state import Rows, reset, state_bytes_per_slot
from serve_app.spec import Offer, Prompt, Sampling, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot


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

    The model's parameters must be on one device and stay there; the LM's keys and values take the dtype of its weights.

    Args:
        habits: defaults of the checkpoint.
        prompts: None takes none.
        prefix_bytes: of states that prompts have left, kept for the next session with the same prompt.
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
    ) -> None:
        self._duplex = duplex.eval()
        self._slots = slots
        self._name = name
        self._habits = habits if habits is not None else Habits()
        self._prompts = prompts
        self._prefixes = PrefixCache(prefix_bytes)
        weight = duplex.lm.text_linear.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._clock = StageClock(self._device)
        with torch.inference_mode():
            self._state = duplex.init_state(slots, self._device, self._dtype)
        self._host_pcm = torch.zeros(slots, 1, FRAME_SAMPLES, pin_memory=self._device.type == "cuda")
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
    def state(self) -> DuplexState:
        """Streaming state of every slot: written by `run`, and between ticks by a benchmark. Engine thread."""
        return self._state

    def check(self, spec: SessionSpec) -> None:
        """Refuse what this model cannot do. Any thread.

        Raises:
            ParameterRefused: not offered, or a prompt longer than the context.
        """
        self._offer.check(spec)
        if spec.prompt is None or self._prompts is None:
            return
        steps = self._prompts.frames(spec.prompt).shape[1]
        if steps > self._offer.prompt_steps:
            name, value = ("text_prompt", spec.prompt.text) if spec.prompt.text else ("voice_prompt", spec.prompt.voice)
            raise ParameterRefused(name, value, f"takes {steps} steps, longer than the context of {self._context}")

    @torch.inference_mode()
    def open(self, slot: Slot, spec: SessionSpec, twin: Slot | None = None) -> int:
        """Make the slots fresh, but for keys and values that their offset hides, and set what the session asked for."""
        slots = (slot,) if twin is None else (slot, twin)
        reset(self._state, self._index(*slots))
        self._forget(slots)
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
        for row, snapshot in zip(self._slots_of(slot), kept, strict=True):
            put(snapshot, self._state.lm, row)
        return True

    @torch.inference_mode()
    def wipe(self, slot: Slot) -> None:
        """Overwrite every value of the slot, and of scratch, where a masked write of it may have gone."""
        reset(self._state, self._index(slot, self._slots), wipe=True)
        self._whole[slot] = False
        self._forget((slot,))

    @torch.inference_mode()
    def run(self, batch: TickBatch) -> TickResult:
        """Step the rows of the batch; every stage is called once."""
        count = batch.rows
        self._clock.begin()
        self._host_pcm.numpy()[:count, 0] = batch.pcm
        pcm = self._host_pcm[:count].to(self._device, non_blocking=True)
        slots = torch.tensor(batch.slots, device=self._device)
        rows = self._rows(slots, torch.ones_like(slots, dtype=torch.bool), batch.slots.tolist(), _run(batch.slots))
        ended = None if batch.ended is None else torch.from_numpy(batch.ended).to(self._device)
        output = self._tick(pcm, rows, self._whole_rows(batch.slots), ended)
        return TickResult(
            pcm=output.pcm.cpu().numpy(),
            audible=output.decoded.cpu().numpy(),
            text_token=output.text.cpu().numpy(),
            codes=output.codes.to(torch.int16).cpu().numpy(),
            finite=output.finite.cpu().numpy(),
            stage_ms=self._clock.read(),
            heads=output.heads.cpu().numpy() if output.heads is not None and output.heads.shape[1] else None,
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

    def counters(self) -> Mapping[str, int]:
        """Of the prompts."""
        return self._prefixes.counters()

    def _tick(self, pcm: Tensor, rows: Rows, whole: Whole, ended: Tensor | None = None) -> TickOutput:
        """`Duplex.tick`, with the time taken between stages."""
        duplex, state = self._duplex, self._state
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

    def _index(self, *slots: int) -> Tensor:
        return torch.tensor(slots, device=self._device)


def _run(slots: npt.NDArray[np.int64]) -> int | None:
    """The first slot where the slots follow one another, so that their state is read in place."""
    return int(slots[0]) if bool((np.diff(slots) == 1).all()) else None
