"""One run: what is asked for, in the order in which it is done, and everything that it finds as one JSON object."""

import dataclasses
import datetime
import subprocess
from collections.abc import Callable, Mapping
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
from serve_app.bench.timing import Taken, alternate, sparse, sustain
from serve_app.errors import ConfigError
from serve_app.model.duplex import Duplex
from serve_app.model.quantised_linear import WeightsName
from serve_app.model.state import state_bytes_per_slot

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

    @property
    def format(self) -> str:
        """In words what numbers the model is made of."""
        parts = [str(self.dtype).removeprefix("torch.")]
        parts += [f"{self.weights} weights"] if self.weights else []
        parts += [] if self.codec_dtype == torch.float32 else [f"{str(self.codec_dtype).removeprefix('torch.')} codec"]
        return ", ".join(parts)


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
        self._work = work_of(shape, asked.dtype, weights=asked.weights, codec_dtype=asked.codec_dtype)
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
        self._slot_bytes = state_bytes_per_slot(shape.init_state(1, torch.device("meta"), asked.dtype))
        self._fitting = capacity.fitting(machine.memory_bytes, self._weights_bytes, self._slot_bytes)
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
            },
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
        fitting = [rows for rows in self.asked.rows if rows <= self._fitting]
        self._agree()
        self._say(report.HEAD)
        ours = Ours(self.duplex, max(fitting), self.asked.seed) if fitting else None
        for lengths in self.asked.lengths:
            for rows in self.asked.rows:
                cell = self._needing(rows, lengths) if ours is None or rows > self._fitting else None
                if cell is None:
                    assert ours is not None
                    cell = self._measured(ours, rows, lengths)
                self.result["cells"].append(cell)
                self._say(report.cell_line(cell))
        self._hold()
        if ours is not None and self.asked.ticks:
            self._sustain(ours, max(fitting))
        self.ours = ours
        if self.asked.sparse:
            self.result["sparse"] = self._sparse(0 if ours is None else ours.runner.slots)
        shape = self._on_meta()
        narrow(shape, self.asked.weights, self.asked.codec_dtype)
        self.result["kernels"] = count(shape).by_stage
        for line in report.closing(self.result):
            self._say(line)
        return self.result

    def _agree(self) -> None:
        """Tokens and logits beside every speed."""
        stages, rows = self.asked.shapes.stages, min(AGREEMENT_ROWS, max(self._fitting, 1))
        steps = [self.asked.lengths[0].of(rows, self._context)[0]] * rows
        found: dict[str, agreement.Agreement] = {}
        measured = Ours(self.duplex, rows, self.asked.seed)
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
        needs = capacity.needed(self._weights_bytes, self._slot_bytes, rows)
        return {**self._named(rows, lengths), "fits": False, "needs_bytes": needs}

    def _measured(self, ours: Ours, rows: int, lengths: Lengths) -> dict[str, Any]:
        steps = lengths.of(rows, self._context)
        ours.place(steps)
        shapes = self.asked.shapes
        stages = () if shapes.whole else shapes.stages
        if self._reference is None or not self._room_for_both(ours, rows):
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

    def _room_for_both(self, ours: Ours, rows: int) -> bool:
        """Whether the reference's rows fit beside ours; it holds its weights with us."""
        both = ours.runner.slots + 1 + rows
        return capacity.needed(self._weights_bytes, self._slot_bytes, both) <= self.machine.memory_bytes

    def _named(self, rows: int, lengths: Lengths) -> dict[str, Any]:
        return {"rows": rows, "lengths": lengths.label, "mean_steps": mean(lengths.of(rows, self._context))}

    def _hold(self) -> None:
        for lengths in self.asked.lengths:
            cells = [c for c in self.result["cells"] if c["lengths"] == lengths.label and c["fits"]]
            by_time, measured = capacity.in_time([(cell["rows"], cell["counted"]["p99_ms"]) for cell in cells])
            found = capacity.Capacity(lengths.label, self._fitting, self._held(lengths), by_time, measured)
            told = {**dataclasses.asdict(found), "sessions": found.sessions, "binds": found.binds}
            self.result["capacity"].append(told)

    def _held(self, lengths: Lengths) -> int:
        """Slots that fit where keys and values take what conversations of this length hold."""
        lm = self._work["lm"]
        spared = self._context - min(mean(lengths.of(max(self.asked.rows), self._context)), self._context)
        slot_bytes = max(self._slot_bytes - int(spared * lm.step_bytes), 1)
        return capacity.fitting(self.machine.memory_bytes, self._weights_bytes, slot_bytes)

    def _sustain(self, ours: Ours, rows: int) -> None:
        for lengths in self.asked.lengths:
            ours.place(lengths.of(rows, self._context))
            found = sustain(ours, self.asked.ticks)
            self.result["sustained"].append({"rows": rows, "lengths": lengths.label, **dataclasses.asdict(found)})

    def _sparse(self, beside: int) -> float | str:
        """Beside so many slots that are there already."""
        slots = MANY + LIVE + beside
        if self._fitting < slots:
            needs = capacity.needed(self._weights_bytes, self._slot_bytes, slots)
            return f"does not fit: needs {report.size(needs)}; give less --rows or a shorter --context"
        few, many = (Ours(self.duplex, slots, self.asked.seed) for slots in (LIVE, MANY))
        return sparse(few, many, LIVE, max(int(SPARSE_SHARE * self._context), 1), self.asked.repeat)

    def _on_meta(self) -> Duplex:
        shape = on_meta(self.asked.shapes, self.asked.context)
        shape.lm.to(self.asked.dtype)
        return shape


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
