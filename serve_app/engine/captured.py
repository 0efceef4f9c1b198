"""The whole tick, prepared once for every batch size that may come: buckets.

A tick takes the smallest bucket that holds its rows and fills it up with *padding*: rows on the scratch slot that do
not execute. A bucket has static buffers and, on a GPU, a graph of all its kernels, captured at start-up; replaying it
is one launch. Elsewhere the *eager twin* runs the very same function on the very same buffers, so that a test on a CPU
sees what a graph would compute.

Three kinds of tick are prepared for each size, because a graph cannot leave anything out:

- plain: nobody is guided, everybody samples from the sorted candidates;
- guided: besides R rows, R null rows behind them, of which those without a session are padding;
- wide: as guided where the model can be guided, and everybody also looks beyond the sorted candidates.

A row gets the same tokens in each: what its neighbours need costs time, never an answer.
"""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import torch

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.stage_clock import StageClock
from serve_app.engine.staging import TickBuffers, TickInputs, TickOutputs, TickShape
from serve_app.model.kernels.plug import plug

SIZES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
_BEYOND: Final = 64
"""Above the last of `SIZES`, a bucket at every multiple."""
_WARM_UP_RUNS: Final = 2
"""Before a capture: libraries choose their kernels and allocate their workspaces in the first run of a shape."""


def bucket_sizes(rows: int) -> tuple[int, ...]:
    """The batch sizes to prepare for an engine of so many rows; the last holds them all."""
    steps = (*SIZES, *range(SIZES[-1] + _BEYOND, rows, _BEYOND))
    return (*(size for size in steps if size < rows), rows)


class Kind(enum.Enum):
    """What the rows of a tick need."""

    PLAIN = "plain"
    GUIDED = "guided"
    WIDE = "wide"


Step = Callable[[TickInputs, TickOutputs, Kind], None]
"""One tick from its inputs into its outputs. Reads no value on the host, allocates nothing that outlives the call."""
Replay = Callable[[], None]
"""The same tick again, on whatever its static inputs hold now."""


class Capture(Protocol):
    """How a tick on static buffers is prepared."""

    def __call__(self, tick: Callable[[], None]) -> Replay:
        """Prepare it. Runs it some times: its inputs must be padding."""
        ...


class EagerTwin:
    """Prepares nothing: every replay runs the function."""

    def __call__(self, tick: Callable[[], None]) -> Replay:
        tick()
        return tick


class CudaCapture:
    """A CUDA graph of the tick; all graphs share one pool of memory, so that the largest should come first.

    They may share it because only one runs at a time and none reads what another left there.

    Args:
        graphs: `torch.cuda`, or what stands in for it in a test.
    """

    def __init__(self, device: torch.device, graphs: Any = torch.cuda) -> None:
        self._device, self._graphs = device, graphs
        self._stream = graphs.Stream(device)
        self._pool = graphs.graph_pool_handle()

    def __call__(self, tick: Callable[[], None]) -> Replay:
        cuda, side = self._graphs, self._stream
        here = cuda.current_stream(self._device)
        side.wait_stream(here)
        with cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                tick()
        here.wait_stream(side)
        graph = cuda.CUDAGraph()
        # Thread-local: what another thread of the process does to the device meanwhile is not of this graph.
        with cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
            tick()
        replay: Replay = graph.replay
        return replay


def capture_on(device: torch.device | str, *, graphs: bool = True) -> Capture | None:
    """How an engine on this device prepares its ticks; None where live rows are best computed as they come: a CPU.

    On a GPU the operations of a tick get their Triton kernels here, where triton is installed.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    plug(device.type)
    return CudaCapture(device) if graphs else EagerTwin()


class Captured:
    """The prepared ticks of one engine. Engine thread; `counters` from any.

    Args:
        step: the tick.
        shape: of a tick of all the engine's rows; their number is also the scratch slot.
        guided: whether sessions may be.
        capture: how to prepare.
    """

    def __init__(self, step: Step, shape: TickShape, device: torch.device, *, guided: bool, capture: Capture) -> None:
        self.sizes = bucket_sizes(shape.rows)
        self._guided = guided
        kinds = (Kind.WIDE, Kind.GUIDED, Kind.PLAIN) if guided else (Kind.WIDE, Kind.PLAIN)
        self._buffers: dict[int, TickBuffers] = {}
        self._replays: dict[tuple[int, Kind], Replay] = {}
        # Largest first: what a smaller graph needs then fits into memory that the pool has already.
        for size in reversed(self.sizes):
            buffers = TickBuffers(dataclasses.replace(shape, rows=size), shape.rows, device)
            self._buffers[size] = buffers
            for kind in kinds:
                self._replays[size, kind] = capture(functools.partial(step, buffers.inputs, buffers.outputs, kind))
        names = [f"ticks_of_{size}" for size in self.sizes] + [f"ticks_{kind.value}" for kind in kinds]
        self._counted = dict.fromkeys([*names, "padding_rows"], 0)

    def run(self, batch: TickBatch, twins: Mapping[int, int], clock: StageClock, *, wide: bool) -> TickResult:
        """One tick of the rows: one copy in, one replay, one copy out, one wait.

        Args:
            twins: slot of the null row, by the slot of the session.
            wide: whether a row looks beyond the sorted candidates.
        """
        size, kind = self.bucket(batch.rows), self._kind(batch, twins, wide)
        buffers = self._buffers[size]
        clock.begin()
        buffers.fill(batch, twins)
        buffers.send()
        clock.mark("send")
        self._replays[size, kind]()
        clock.mark("step")
        buffers.fetch()
        clock.mark("fetch")
        stage_ms = clock.read()  # waits for the device
        self._count(size, kind, size - batch.rows)
        return buffers.result(batch.rows, stage_ms)

    def idle(self) -> None:
        """A tick of the largest bucket in which nobody advances; returns when the device has begun it."""
        size = self.sizes[-1]
        self._buffers[size].clear()
        self._replays[size, Kind.PLAIN]()

    def bucket(self, rows: int) -> int:
        """The smallest size that holds so many rows."""
        return next(size for size in self.sizes if size >= rows)

    def counters(self) -> Mapping[str, int]:
        """Ticks by bucket and by kind, and rows of padding that were computed. Any thread."""
        return dict(self._counted)

    def _kind(self, batch: TickBatch, twins: Mapping[int, int], wide: bool) -> Kind:
        if wide:
            return Kind.WIDE
        if self._guided and twins and any(slot in twins for slot in batch.slots.tolist()):
            return Kind.GUIDED
        return Kind.PLAIN

    def _count(self, size: int, kind: Kind, padding: int) -> None:
        counted = self._counted
        counted[f"ticks_of_{size}"] += 1
        counted[f"ticks_{kind.value}"] += 1
        counted["padding_rows"] += padding
