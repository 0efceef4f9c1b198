"""Where the time goes: a trace for a browser (chrome://tracing, Perfetto), and its time by stage and kind of work."""

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from serve_app.bench.ours import Ours
from serve_app.errors import ConfigError
from serve_app.model.duplex import Duplex

TICKS: Final = 12
SHOWN: Final = 15
MARK: Final = "stage "
WHOLE: Final = "whole tick"
AROUND: Final = "around"
CALLS: Final = {"encode": "encode", "lm": "think", "depformer": "speak", "decode": "decode"}
"""Of a `Duplex`, by the names that stages have here."""
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "products": ("_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm", "_int8pack_mm", "gemm"),
    "convolutions": ("_convolution", "conv1d"),
    "attention": ("scaled_dot_product", "flash", "attention"),
    "activations": ("elu", "silu", "gelu"),
    "sampling": ("sort", "topk", "argmax", "exponential", "softmax", "cumsum"),
}
"""What the names of operations contain; the rest is small operations, and Python between them."""
SMALL: Final = "small operations"


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """What a tick was spent on, in milliseconds.

    On a CPU the quickest of some, since neighbours on the machine only ever slow one down; on a GPU their mean.

    Attributes:
        operations: own time, calls a tick and name, the longest first.
        stages: by stage and kind; empty on a GPU, where a captured tick is one piece.
    """

    operations: tuple[tuple[float, float, str], ...]
    stages: Mapping[str, Mapping[str, float]]

    def lines(self) -> Iterator[str]:
        """Two tables."""
        total_ms = sum(own_ms for own_ms, _, _ in self.operations) or 1.0
        yield f"{'ms a tick':>10s} {'share':>6s} {'calls':>7s}  operation"
        for own_ms, calls, name in self.operations[:SHOWN]:
            yield f"{own_ms:10.3f} {100 * own_ms / total_ms:5.1f}% {calls:7.1f}  {name}"
        if not self.stages:
            return
        yield "  ".join([f"{'share of the tick, %':20s}", *(f"{stage:>9s}" for stage in self.stages), "      all"])
        for kind in (*KINDS, SMALL):
            parts = [100 * kinds.get(kind, 0.0) / total_ms for kinds in self.stages.values()]
            yield "  ".join([f"{kind:20s}", *(f"{part:9.1f}" for part in (*parts, sum(parts)))])


def record(ours: Ours, path: Path, device: torch.device) -> Profile:
    """Profile a few ticks of the rows that are placed, and write the trace.

    Raises:
        ConfigError: the trace cannot be written.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with _marked(ours.duplex):
        ours.tick()
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(TICKS):
                with record_function(WHOLE):
                    ours.tick()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:
        raise ConfigError("--profile", f"{path}: {error}") from error
    if not on_gpu:
        return _quickest(profiler.events())
    rows = [(e.self_device_time_total / 1_000 / TICKS, e.count / TICKS, e.key) for e in profiler.key_averages()]
    return Profile(tuple(sorted(rows, reverse=True)), {})


@contextlib.contextmanager
def _marked(duplex: Duplex) -> Iterator[None]:
    """Within: the stages of its ticks stand in a trace by name."""
    for stage, call in CALLS.items():
        setattr(duplex, call, _spanned(MARK + stage, getattr(duplex, call)))
    try:
        yield
    finally:
        for call in CALLS.values():
            delattr(duplex, call)


def _spanned(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(name):
            return inner(*args, **kwargs)

    return call


def _quickest(events: Any) -> Profile:
    """Of the ticks in a trace of the CPU."""
    ticks = [event for event in events if event.name == WHOLE]
    quickest = min(ticks, key=lambda event: event.cpu_time_total)
    own: dict[str, list[float]] = defaultdict(list)
    stages: dict[str, dict[str, float]] = {stage: defaultdict(float) for stage in (*CALLS, AROUND)}
    for event in events:
        above = _above(event)
        if quickest not in above:
            continue
        span_ms = event.self_cpu_time_total / 1_000
        stage = next((one.name.removeprefix(MARK) for one in above if one.name.startswith(MARK)), AROUND)
        stages[stage][_kind(event.name)] += span_ms
        own[event.name].append(span_ms)
    rows = sorted(((sum(spans), float(len(spans)), name) for name, spans in own.items()), reverse=True)
    return Profile(tuple(rows), {stage: dict(kinds) for stage, kinds in stages.items()})


def _above(event: Any) -> list[Any]:
    """An event and those that it happened within."""
    found = []
    while event is not None:
        found.append(event)
        event = event.cpu_parent
    return found


def _kind(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), SMALL)
