"""What a checkpoint costs in memory, worked out on the meta device: nothing is loaded, not even from disk."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch

from serve_app.checkpoint.beside import GRAPHS, graph_bytes, laid_out_bytes
from serve_app.checkpoint.duplex import build_on_meta, read_shapes
from serve_app.checkpoint.memory import device_memory
from serve_app.checkpoint.named import source_of
from serve_app.checkpoint.occupancy import MEAN_S, most_sessions
from serve_app.checkpoint.source import CheckpointSource, Layout, read_layout
from serve_app.checkpoint.weights import FP32_PARTS
from serve_app.config import EngineSettings, read_config
from serve_app.errors import ChorusError, ConfigError
from serve_app.model.lm import LM
from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KV_DTYPES
from serve_app.model.quantised_linear import Int8Linear, WeightsName
from serve_app.model.state import state_bytes_per_slot

META: Final = torch.device("meta")
SPARE_SHARE: Final = 0.1
"""Of the memory: activations of ticks that nobody captures, the allocator's rounding, the driver."""
GIB: Final = 1 << 30
CONFIG_SUFFIXES: Final = (".yaml", ".yml")
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Memory of one engine, in bytes.

    Attributes:
        codec_weights, lm_weights: of the modules, tables that loading derives included.
        codec_state, lm_state: of one slot.
        parameters: of codec and language model together.
        context: steps that the language model's attention sees.
        page: of one page of keys and values; 0 where every slot has room for its whole context, ``lm_state`` then.
        page_steps: steps of it.
        beside: what else is there, whatever the slots: see `beside`.
    """

    codec_weights: int
    lm_weights: int
    codec_state: int
    lm_state: int
    parameters: int
    context: int
    page: int = 0
    page_steps: int = 0
    beside: int = 0

    @property
    def weights(self) -> int:
        return self.codec_weights + self.lm_weights

    @property
    def state(self) -> int:
        """Of one slot."""
        return self.codec_state + self.lm_state

    def needs(self, slots: int, pages: int = 0) -> int:
        """Bytes that ``slots`` slots, the scratch row, the pages, the weights and what is beside them take."""
        shared = (pages + 2) * self.page if self.page else 0
        return self.weights + self.beside + (slots + 1) * self.state + shared

    def fits(self, memory_bytes: int, pages: int = 0) -> int:
        """Slots that fit beside the weights, the pages and the scratch row, with a tenth of the memory to spare."""
        room = int(memory_bytes * (1 - SPARE_SHARE)) - self.needs(0, pages)
        return max(room // self.state, 0)

    def shares(self, memory_bytes: int) -> tuple[int, int]:
        """Conversations of the usual lengths that fit when they share pages, and how many pages: see `occupancy`."""
        room = int(memory_bytes * (1 - SPARE_SHARE)) - self.weights - self.beside
        return most_sessions(room, self.state, self.page, self.page_steps, self.context)

    def require(self, slots: int, memory_bytes: int, pages: int = 0) -> None:
        """Refuse more slots than fit.

        Raises:
            ConfigError: names the number that fits.
        """
        fitting = self.fits(memory_bytes, pages)
        if slots > fitting:
            raise ConfigError("slots", f"{slots} were asked for, {fitting} fit in {_size(memory_bytes)}")


def storage_of(settings: EngineSettings) -> Storage:
    """How a deployment keeps keys and values."""
    return Storage(settings.pages, settings.page_steps, settings.kv_dtype)


def plan(
    layout: Layout,
    dtype: torch.dtype,
    context: int | None = None,
    storage: Storage | None = None,
    *,
    weights: WeightsName | None = None,
    codec_dtype: torch.dtype = torch.float32,
) -> Plan:
    """Work out the memory that a checkpoint needs.

    Args:
        layout: from `source.read_layout`; its weights need not be here.
        dtype: of the language model's weights and state.
        context: as `duplex.read_shapes`.
        weights, codec_dtype: as `duplex.load_duplex`.
        storage: how keys and values are kept; None is a ring for every slot.

    Raises:
        NotBuilt, CheckpointError: as `duplex.read_shapes`.
    """
    shapes = read_shapes(layout, context)
    duplex = build_on_meta(*shapes, weights, codec_dtype)
    state = duplex.init_state(1, META, dtype, storage)
    pages = state.lm.transformer.pages
    return Plan(
        codec_weights=sum(t.nbytes for t in (*duplex.mimi.parameters(), *duplex.mimi.buffers())),
        lm_weights=_bytes(duplex.lm, dtype),
        codec_state=state_bytes_per_slot(state.mimi),
        lm_state=state_bytes_per_slot(state.lm),
        parameters=sum(parameter.numel() for parameter in build_on_meta(*shapes).parameters()),
        context=duplex.lm.config.context,
        page=0 if pages is None else pages.page_bytes,
        page_steps=0 if pages is None else pages.page_steps,
    )


def beside_of(
    layout: Layout,
    dtype: torch.dtype,
    device: str,
    slots: int,
    context: int | None = None,
    *,
    weights: WeightsName | None = None,
    codec_dtype: torch.dtype = torch.float32,
) -> int:
    """What an engine of so many slots takes beside weights and state: see `beside`. Takes a second or two."""
    duplex = build_on_meta(*read_shapes(layout, context), weights, codec_dtype)
    if not device.startswith("cuda"):
        return laid_out_bytes(duplex, slots, dtype, codec_dtype)
    duplex.lm.to(dtype)
    duplex.eval()
    guided = bool(layout.config.get("conditioners"))
    return graph_bytes(duplex, slots, guided=guided, dtype=dtype)


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve_app plan``. Returns the exit status; an error that we know is one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        for line in describe(options):
            print(line)  # noqa: T201
    except ChorusError as error:
        print(f"serve_app plan: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def describe(options: argparse.Namespace) -> Iterator[str]:
    """Lines of the answer.

    Raises:
        ConfigError, CheckpointError: the deployment or the checkpoint cannot be read.
    """
    if options.target.suffix in CONFIG_SUFFIXES:
        engine = read_config(options.target).engine_of(options.model)
        if engine.checkpoint is None:
            raise ConfigError(str(options.target), "has no checkpoint, so there is nothing to plan")
        source, device, slots = source_of(engine.checkpoint), engine.device, options.slots or engine.slots
        dtype, context = options.dtype or engine.dtype, options.context or engine.context
        storage, weights, codec = storage_of(engine), engine.weights, engine.codec_dtype
    else:
        source, device, slots = CheckpointSource(folder=options.target), "cpu", options.slots or 1
        dtype, context = options.dtype or "float32", options.context
        storage, weights, codec = Storage(), None, "float32"
    weights, codec = options.weights or weights, options.codec_dtype or codec
    storage = dataclasses.replace(storage, pages=options.pages or storage.pages, kv=options.kv or storage.kv)
    layout, pages = read_layout(source), storage.pages or 0
    made = plan(layout, DTYPES[dtype], context, storage, weights=weights, codec_dtype=DTYPES[codec])
    if options.target.suffix in CONFIG_SUFFIXES:  # a folder alone says nothing of a device
        beside = beside_of(layout, DTYPES[dtype], device, slots, context, weights=weights, codec_dtype=DTYPES[codec])
        made = dataclasses.replace(made, beside=beside)
    memory = device_memory(device) if options.memory_gib is None else int(options.memory_gib * GIB)

    yield f"checkpoint        {source}"
    yield f"parameters        {made.parameters / 1e6:,.1f} M"
    short = f", matrices in {weights}" if weights else ""
    parts = f"codec {_size(made.codec_weights)} in {codec}, language model {_size(made.lm_weights)} in {dtype}{short}"
    yield f"weights           {_size(made.weights)}: {parts}"
    parts = (
        f"codec {_size(made.codec_state)}, language model {_size(made.lm_state)} for a context of {made.context} steps"
    )
    yield f"state per slot    {_size(made.state)}: {parts}"
    if pages:
        yield f"pages             {pages} of {made.page_steps} steps and {_size(made.page)}, which all slots share"
    if not made.beside:
        yield "beside            unknown without a deployment: graphs of a GPU, or what a CPU lays out"
    elif device.startswith("cuda"):
        parts = f"the most that lives at once in a tick of {slots} rows, and {GRAPHS} graphs; an estimate"
        yield f"captured graphs   {_size(made.beside)}: {parts}"
    else:
        parts = f"weights as oneDNN reads them, for ticks of {slots} rows; Python and torch take some 400 MiB more"
        yield f"laid out          {_size(made.beside)}: {parts}"
    yield f"{slots:<4d} slots need   {_size(made.needs(slots, pages))}, scratch row included"
    if memory is None:
        yield f"slots that fit    unknown: no {device} device here; give --memory-gib"
    else:
        yield f"slots that fit    {made.fits(memory, pages)} in {_size(memory)}, a tenth of it kept free"
        paged = dataclasses.replace(storage, pages=1)
        shared = plan(layout, DTYPES[dtype], context, paged, weights=weights, codec_dtype=DTYPES[codec])
        shared = dataclasses.replace(shared, beside=made.beside)
        sessions, most = shared.shares(memory)
        kept = storage.kv or dtype
        lengths = f"of lognormal length, mean {MEAN_S / 60:g} min; short of pages once in 100,000 moments"
        yield f"sharing pages     {sessions} conversations with {most} pages in {kept}, {lengths}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app plan", description="Say what fits, without loading anything.")
    parser.add_argument("target", type=Path, help="a deployment such as configs/prod.yaml, or a checkpoint's folder")
    parser.add_argument("--model", help="of the deployment, where it has several; default: the first")
    parser.add_argument("--memory-gib", type=float, help="of the device; else what this machine has")
    parser.add_argument("--slots", type=int, help="in place of the deployment's")
    parser.add_argument("--context", type=int, help="steps that attention sees, at most the checkpoint's")
    parser.add_argument("--pages", type=int, help="that slots share, in place of the deployment's")
    parser.add_argument("--kv", choices=sorted(KV_DTYPES), help="of keys and values, in place of the deployment's")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the language model")
    parser.add_argument("--weights", choices=["int8"], help="of its matrices, in place of the deployment's")
    parser.add_argument("--codec-dtype", choices=sorted(DTYPES), help="of the codec, in place of the deployment's")
    return parser


def _bytes(lm: LM, dtype: torch.dtype) -> int:
    """Of weights as loading keeps them."""
    scales = {id(part.scale) for part in lm.modules() if isinstance(part, Int8Linear)}
    total = 0
    for name, tensor in (*lm.named_parameters(), *lm.named_buffers()):
        exact = not tensor.is_floating_point() or id(tensor) in scales or name.startswith(FP32_PARTS)
        total += tensor.nbytes if exact else tensor.numel() * dtype.itemsize
    return total


def _size(count: int) -> str:
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / (1 << 20):,.2f} MiB"
