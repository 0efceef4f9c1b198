"""What a model takes beside its weights and its state: a GPU's graphs, and what a CPU lays out once for its products.

Both are worked out on the meta device. The resident memory of the demo on a CPU is what the sums are held against, see
`docs/performance-triton.md`; a GPU has shown neither.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from serve_app.model.conv import CausalConv, CausalConvTranspose
from serve_app.model.duplex import Duplex
from serve_app.model.linear import Linear
from serve_app.model.mimi import Mimi
from serve_app.model.product import DIRECT_FROM_STEPS, PACKED_FROM
from serve_app.model.rvq import ResidualQuantizer
from serve_app.model.seanet import Seanet
from serve_app.model.state import Rows
from serve_app.units import FRAME_SAMPLES

META: Final = torch.device("meta")
GRAPHS: Final = 33
"""Eleven sizes of three kinds; see `engine.captured`."""
GRAPH_BYTES: Final = 2 << 20
"""Of a graph of a thousand kernels, its nodes and their arguments: a guess, 2 KiB a node."""


def graph_bytes(duplex: Duplex, rows: int, *, guided: bool, dtype: torch.dtype) -> int:
    """Captured graphs: ``peak + GRAPHS x GRAPH_BYTES``.

    The peak is the most that lives at one moment of the largest tick, every row sampling from the whole vocabulary,
    with a twin where sessions may be guided. The graphs share one pool and the largest is captured first, so the others
    fit into what it took.

    Args:
        duplex: of shapes alone; its constants are on the meta device as well afterwards.
    """
    duplex = duplex.to(META)
    state = duplex.init_state(1, META, dtype)
    slots = torch.zeros(rows, dtype=torch.int64, device=META)
    every = Rows(slots, torch.ones(rows, dtype=torch.bool, device=META), slots)
    if guided:
        every = every.guided(slots, slots, 1)
    pcm = torch.zeros(rows, 1, FRAME_SAMPLES, device=META)
    with torch.inference_mode(), _Living() as living:
        duplex.tick(pcm, state, every, whole=True)
    peak_bytes: int = living.peak_bytes
    return peak_bytes + GRAPHS * GRAPH_BYTES


def laid_out_bytes(duplex: Duplex, rows: int, dtype: torch.dtype, codec_dtype: torch.dtype = torch.float32) -> int:
    """What `product` derives from weights on a CPU, for ticks of up to so many rows.

    Blocks of every weight whose product makes `PACKED_FROM` multiplications or more, and the matrix that a convolution
    is: of a transposed one always, of another where it is computed over windows. And the entries of the codebooks that
    are searched, negated.
    """
    mimi = duplex.mimi
    half = mimi.config.steps_per_frame
    lm = sum(_blocks(linear.weight.numel(), rows) for linear in _linears(duplex.lm))
    codec = sum(_blocks(linear.weight.numel(), rows * half) for linear in _linears(mimi))
    codec += sum(_convolution(weight, steps, rows, again) for weight, steps, again in _convolutions(mimi))
    table = mimi.config.card * mimi.config.codebook_dim  # a level's entries, negated
    codec += duplex.lm.config.user_q * (table + _blocks(table, rows))
    return lm * dtype.itemsize + codec * codec_dtype.itemsize


def _linears(module: nn.Module) -> Iterator[Linear]:
    return (inner for inner in module.modules() if isinstance(inner, Linear))


def _blocks(entries: int, positions: int) -> int:
    return entries if entries * positions >= PACKED_FROM else 0


def _convolution(weight: Tensor, steps: int, rows: int, again: bool) -> int:
    """Entries besides the weight's; ``again`` where it is arranged anew however many steps it gives."""
    blocks = _blocks(weight.numel(), rows * steps)
    direct = steps > DIRECT_FROM_STEPS and weight.shape[1] > 1 and blocks > 0
    matrix = again or (weight.shape[-1] > 1 and not direct)
    return blocks + (weight.numel() if matrix else 0)


def _convolutions(mimi: Mimi) -> Iterator[tuple[Tensor, int, bool]]:
    """Weight, steps that come out in a tick, and whether it is transposed, of everything that is a convolution."""
    yield from _of_seanet(mimi.encoder, FRAME_SAMPLES)
    yield mimi.downsample.conv._inner.weight, 1, False
    for quantizer in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
        assert isinstance(quantizer, ResidualQuantizer)
        yield quantizer.input_proj.weight, 1, False
        yield quantizer.output_proj.weight, 1, False
    yield from _of_seanet(mimi.decoder, mimi.config.steps_per_frame)


def _of_seanet(seanet: Seanet, steps: int) -> Iterator[tuple[Tensor, int, bool]]:
    for layer in seanet.modules():
        if isinstance(layer, CausalConvTranspose):
            yield layer._inner.weight, steps, True
            steps *= layer.stride
        elif isinstance(layer, CausalConv):
            steps //= layer.stride
            yield layer._inner.weight, steps, False


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what is alive at once, of all that is made while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = self._now_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {_home(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and (home := _home(leaf)) not in self._known | given:
                storage = leaf.untyped_storage()
                self._known.add(home)
                self._now_bytes += storage.nbytes()
                weakref.finalize(storage, self._gone, home, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._now_bytes)
        return made

    def _gone(self, home: int, count: int) -> None:
        self._known.discard(home)
        self._now_bytes -= count


def _home(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
