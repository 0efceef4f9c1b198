"""One run: what is asked for, in the order in which it is done, and everything that it finds as one JSON object."""

import dataclasses
import datetime
import functools
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from serve_app.bench import agreement, capacity, report
from serve_app.bench.kernels import count
from serve_app.bench.lengths import Lengths, mean
from serve_app.bench.machine import Machine
from serve_app.bench.models import build, bytes_of, narrow, on_meta, parameters_of
from serve_app.bench.ours import Ours
from serve_app.bench.reference import Reference, available
from serve_app.bench.roofline import work_of
from serve_app.bench.shapes import CODEC_STAGES, LM_STAGES, Shapes
from serve_app.bench.stage_graphs import StageGraphs
from serve_app.bench.timing import REWIND_TICKS, WARM_TICKS, Taken, alternate, sparse, sustain
from serve_app.errors import ConfigError
from serve_app.model.duplex import Duplex, DuplexState
from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KvName
from serve_app.model.quantised_linear import WeightsName
from serve_app.model.state import leaves, state_bytes_per_slot

SCHEMA: Final = 1
AGREEMENT_ROWS: Final = 2
AGREEMENT_TICKS: Final = 6
LIVE: Final = 4
MANY: Final = 64
SPARSE_SHARE: Final = 0.25
"""Of the context: what live rows hold when they are measured among many slots."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure.

    Attributes:
        context: steps that attention sees; None is the model's.
        repeat: ticks of every batch that are timed.
        ticks: of the long run; 0 for none.
        reference: whether to measure the reference as well, where it is installed.
        compiled: whether the reference may compile.
        weights, codec_dtype: as `models.build`.
        sparse: whether to measure a few rows among many slots.
        pages: whether slots share as many pages as a batch needs, of ``page_steps`` steps; else each has a ring.
        kv: 8-bit keys and values; None keeps them as the model is.
    """

    shapes: Shapes
    device: torch.device
    dtype: torch.dtype
    rows: tuple[int, ...]
    lengths: tuple[Lengths, ...]
    context: int | None = None
    repeat: int = 40
    ticks: int = 0
    reference: bool = True
    compiled: bool = False
    sparse: bool = True
    seed: int = 0
    weights: WeightsName | None = None
    codec_dtype: torch.dtype = torch.float32
    pages: bool = False
    page_steps: int = 64
    kv: KvName | None = None

    @property
    def format(self) -> str:
        """In words what numbers the model is made of."""
        parts = [str(self.dtype).removeprefix("torch.")]
        parts += [f"{self.weights} weights"] if self.weights else []
        parts += [] if self.codec_dtype == torch.float32 else [f"{str(self.codec_dtype).removeprefix('torch.')} codec"]
        return ", ".join(parts)

    def storage(self, pages: int) -> Storage:
        """With so many pages, where there are any."""
        return Storage(pages if self.pages else None, self.page_steps, self.kv)


class Run:
    """A model on its device, and what was found out about it so far.

    Args:
        say: takes lines for people as they come.

    Raises:
        ConfigError: the weights alone do not fit.
        CheckpointError: a folder that cannot be loaded.
    """

    def __init__(self, asked: Asked, machine: Machine, say: Say) -> None:
        self.asked, self.machine, self._say = asked, machine, say
        shape = self._on_meta()
        parameters, lm_parameters = parameters_of(shape), parameters_of(shape.lm)
        self._work = work_of(shape, asked.dtype, weights=asked.weights, codec_dtype=asked.codec_dtype, kv=asked.kv)
        narrow(shape, asked.weights, asked.codec_dtype)
        self._context = shape.lm.config.context
        self._weights_bytes = bytes_of(shape)
        if self._weights_bytes > machine.memory_bytes:
            sizes = f"{report.size(self._weights_bytes)}, there are {report.size(machine.memory_bytes)}"
            raise ConfigError("--model", f"the weights of {asked.shapes.name} alone take {sizes}")
        self.duplex = build(
            asked.shapes,
            asked.device,
            asked.dtype,
            asked.context,
            asked.seed,
            weights=asked.weights,
            codec_dtype=asked.codec_dtype,
        )
        state = shape.init_state(1, torch.device("meta"), asked.dtype, asked.storage(1))
        pages = state.lm.transformer.pages
        self._slot_bytes = state_bytes_per_slot(state)
        self._room = capacity.Room(
            memory_bytes=machine.memory_bytes,
            weights_bytes=self._weights_bytes,
            slot_bytes=self._slot_bytes,
            page_bytes=0 if pages is None else pages.page_bytes,
            page_steps=asked.page_steps,
            context=self._context,
            spare_steps=max(REWIND_TICKS, asked.repeat) + 2 * WARM_TICKS,
        )
        version = available() if asked.reference else None
        self._reference = None
        if version is not None:
            self._reference = Reference(asked.shapes, self.duplex, compiled=asked.compiled, seed=asked.seed)
        self.result: dict[str, Any] = {
            "schema": SCHEMA,
            "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "machine": machine.as_json(),
            "model": {
                "name": asked.shapes.name,
                "parameters": parameters,
                "lm_parameters": lm_parameters,
                "context": self._context,
                "weights_bytes": self._weights_bytes,
                "slot_bytes": self._slot_bytes,
                "page_bytes": self._room.page_bytes,
            },
            "storage": {"page_steps": asked.page_steps if asked.pages else None, "kv": asked.kv},
            "dtype": asked.format,
            "stages": list(asked.shapes.stages),
            "reference": version and f"moshi {version}, {'compiled' if asked.compiled else 'not compiled'}",
            "agreement": {},
            "cells": [],
            "capacity": [],
            "kernels": {},
            "sparse": None,
            "sustained": [],
        }

    def all(self) -> Mapping[str, Any]:
        """Everything, line by line."""
        for line in report.heading(self.result):
            self._say(line)
        batches = [self._steps(rows, lengths) for lengths in self.asked.lengths for rows in self.asked.rows]
        fitting = [steps for steps in batches if self._room.fits(steps)]
        self._agree()
        self._say(report.HEAD)
        ours = self._ours(fitting) if fitting else None
        for lengths in self.asked.lengths:
            for rows in self.asked.rows:
                if ours is not None and self._room.fits(self._steps(rows, lengths)):
                    cell = self._measured(ours, rows, lengths)
                else:
                    cell = self._needing(rows, lengths)
                self.result["cells"].append(cell)
                self._say(report.cell_line(cell))
        self._hold()
        if ours is not None and self.asked.ticks:
            self._sustain(ours)
        self.ours = ours
        if self.asked.sparse:
            self.result["sparse"] = self._sparse(0 if ours is None else state_bytes(ours.runner.state))
        shape = self._on_meta()
        narrow(shape, self.asked.weights, self.asked.codec_dtype)
        self.result["kernels"] = count(shape, storage=self.asked.storage(MANY)).by_stage
        for line in report.closing(self.result):
            self._say(line)
        return self.result

    def _agree(self) -> None:
        """Tokens and logits beside every speed."""
        made = self.asked.lengths[0].of(1, self._context)[0]
        rows = min(AGREEMENT_ROWS, max(self._room.most(lambda rows: [made] * rows), 1))
        stages, steps = self.asked.shapes.stages, [made] * rows
        found: dict[str, agreement.Agreement] = {}
        measured = self._ours([steps])
        found["measured and plain"] = agreement.of_measured(measured, steps, AGREEMENT_TICKS)
        if self._reference is not None and set(stages) & set(CODEC_STAGES):
            found["codes and PCM, the reference's"] = agreement.of_codec(
                self.duplex, self._reference, rows, AGREEMENT_TICKS
            )
        if self._reference is not None and set(stages) & set(LM_STAGES):
            found["tokens and logits, the reference's"] = agreement.of_lm(
                self.duplex, self._reference, steps, AGREEMENT_TICKS
            )
        for name, one in found.items():
            self.result["agreement"][name] = dataclasses.asdict(one)
            self._say(report.agreement_line(name, self.result["agreement"][name]))

    def _needing(self, rows: int, lengths: Lengths) -> dict[str, Any]:
        needs = self._room.needs(self._steps(rows, lengths))
        return {**self._named(rows, lengths), "fits": False, "needs_bytes": needs}

    def _steps(self, rows: int, lengths: Lengths) -> tuple[int, ...]:
        return lengths.of(rows, self._context)

    def _ours(self, batches: Sequence[Sequence[int]]) -> Ours:
        """A runner in which each of these batches finds room, one at a time."""
        pages = max(self._room.pages(steps) for steps in batches)
        rows = max(len(steps) for steps in batches)
        return Ours(self.duplex, rows, self.asked.seed, storage=self.asked.storage(pages))

    def _measured(self, ours: Ours, rows: int, lengths: Lengths) -> dict[str, Any]:
        steps = lengths.of(rows, self._context)
        ours.place(steps)
        shapes = self.asked.shapes
        stages = () if shapes.whole else shapes.stages
        if self._reference is None or not self._room_for_both(ours, steps):
            taken = alternate(ours, stages, self.asked.repeat, None)
        else:
            with self._reference.rows(steps, self.duplex, ours.runner.state) as reference:
                taken = alternate(ours, stages, self.asked.repeat, reference.tick)
        if not set(taken.stages_ms) >= set(shapes.stages):  # a captured tick is one piece
            ours.place(steps)
            graphs = StageGraphs(self.duplex, ours.runner.state, rows)
            taken = dataclasses.replace(taken, stages_ms=graphs.medians_ms(self.asked.repeat))
        floors = {name: self._work[name].floor_ms(steps, self.machine) for name in shapes.stages}
        return {**self._named(rows, lengths), "fits": True, **_told(taken, floors)}

    def _room_for_both(self, ours: Ours, steps: Sequence[int]) -> bool:
        """Whether the reference's rows, which are rings, fit beside ours; it holds its weights with us."""
        taken = state_bytes(ours.runner.state) + len(steps) * self._ring_bytes()
        return capacity.needed(self._weights_bytes + taken, 0, 0) <= self.machine.memory_bytes

    def _ring_bytes(self) -> int:
        """Of one slot as the reference has it."""
        return state_bytes_per_slot(self._on_meta().init_state(1, torch.device("meta"), self.asked.dtype))

    def _named(self, rows: int, lengths: Lengths) -> dict[str, Any]:
        return {"rows": rows, "lengths": lengths.label, "mean_steps": mean(lengths.of(rows, self._context))}

    def _hold(self) -> None:
        for lengths in self.asked.lengths:
            cells = [c for c in self.result["cells"] if c["lengths"] == lengths.label and c["fits"]]
            by_time, measured = capacity.in_time([(cell["rows"], cell["counted"]["p99_ms"]) for cell in cells])
            by_memory = self._room.most(functools.partial(self._steps, lengths=lengths))
            by_length = by_memory if self.asked.pages else self._held(lengths)
            found = capacity.Capacity(lengths.label, by_memory, by_length, by_time, measured)
            told = {**dataclasses.asdict(found), "sessions": found.sessions, "binds": found.binds}
            self.result["capacity"].append(told)

    def _held(self, lengths: Lengths) -> int:
        """Rings that would fit were each as long as what a conversation of this length holds."""
        lm = self._work["lm"]
        spared = self._context - min(mean(lengths.of(max(self.asked.rows), self._context)), self._context)
        slot_bytes = max(self._slot_bytes - int(spared * lm.step_bytes), 1)
        return capacity.fitting(self.machine.memory_bytes, self._weights_bytes, slot_bytes)

    def _sustain(self, ours: Ours) -> None:
        for lengths in self.asked.lengths:
            fitting = [rows for rows in self.asked.rows if self._room.fits(self._steps(rows, lengths))]
            if not fitting:
                continue
            rows = max(fitting)
            ours.place(self._steps(rows, lengths))
            found = sustain(ours, self.asked.ticks)
            self.result["sustained"].append({"rows": rows, "lengths": lengths.label, **dataclasses.asdict(found)})

    def _sparse(self, beside: int) -> float | str:
        """Beside so many bytes of state that are there already."""
        live = [max(int(SPARSE_SHARE * self._context), 1)] * LIVE
        room = dataclasses.replace(self._room, weights_bytes=self._weights_bytes + beside)
        empty = [0] * (MANY - LIVE) if self.asked.pages else []
        slots = [*live, *live, *empty] if self.asked.pages else [1] * (MANY + LIVE)
        if not room.fits(slots):
            return f"does not fit: needs {report.size(room.needs(slots))}; give less --rows or a shorter --context"
        storage = self.asked.storage(self._room.pages(live))
        few, many = (Ours(self.duplex, count, self.asked.seed, storage=storage) for count in (LIVE, MANY))
        return sparse(few, many, LIVE, live[0], self.asked.repeat)

    def _on_meta(self) -> Duplex:
        shape = on_meta(self.asked.shapes, self.asked.context)
        shape.lm.to(self.asked.dtype)
        return shape


def state_bytes(state: DuplexState) -> int:
    """Of all slots and of the pages that they share."""
    pages = state.lm.transformer.pages
    shared = [] if pages is None else [part for part in (pages.whole, pages.scale) if part is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*leaves(state), *shared))


def _told(taken: Taken, floors: Mapping[str, float]) -> dict[str, Any]:
    floor_ms = sum(floors.values())
    return {
        "counted": dataclasses.asdict(taken.counted),
        "wall": dataclasses.asdict(taken.wall),
        "stages_ms": dict(taken.stages_ms),
        "floor_ms": floor_ms,
        "floors_ms": dict(floors),
        "floor_share": floor_ms / taken.counted.p50_ms,
        "reference": None if taken.reference is None else dataclasses.asdict(taken.reference),
        "ratio": taken.ratio,
    }


def _commit() -> str | None:
    """The commit of the source that runs; None where there is no git."""
    try:
        command = ["git", "rev-parse", "--short", "HEAD"]
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
