"""State beside the weights: which rows run, one masked write, one reset.

Every streaming state is a frozen dataclass of preallocated tensors (or of such dataclasses, or tuples of them) whose
dimension 0 counts slots, plus one *scratch* row at the end. Tensors are written in place and never rebound, so their
addresses hold for CUDA graphs. A row that must not advance writes to scratch: a masked write costs an index, never a
read of what was there.

Field metadata: ``fresh`` is the value of an empty slot (default 0); ``masked=True`` marks bulk storage that an offset
hides, which `reset` may leave and only `reset(..., wipe=True)` clears. ``paged=True`` marks what does not count
slots and is none of `reset`'s, see `pages`.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from serve_app.model.fused import fill_rows


@dataclasses.dataclass(frozen=True, slots=True)
class Twins:
    """The N null rows of a tick: one behind every row under guidance, see `guidance`.

    Attributes:
        of: ``int64[N]``, index in the tick of the row that each twin follows.
        slots: ``int64[N]``, the slot that holds the twin's keys, values and conditions; a padding twin's is scratch.
        write: ``int64[N]``, the slot each twin writes: its own, or scratch where its row does not execute.
        null: ``int64[R]``, index among the R + N rows of the one each row is held against: its twin, or itself.
    """

    of: Tensor
    slots: Tensor
    write: Tensor
    null: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one tick.

    Attributes:
        slots: ``int64[R]``, the slot whose state each row reads.
        exec_mask: ``bool[R]``, whether the row advances.
        write: ``int64[R]``, the slot each row writes: its own, or scratch where it does not execute.
        run: the first slot, where the host knows that the slots are ``run, run + 1, ...`` in order; then `read` gives
            a view. Gathering keys and values is a quarter of a codec step of 16 rows on a CPU.
        twins: null rows of the sessions under guidance; None where nobody is.
    """

    slots: Tensor
    exec_mask: Tensor
    write: Tensor
    run: int | None = None
    twins: Twins | None = None

    @classmethod
    def of(cls, slots: Tensor, exec_mask: Tensor, scratch: int, run: int | None = None) -> "Rows":
        """Rows whose state has ``scratch + 1`` rows. Graph-safe: no value is read on the host."""
        return cls(slots, exec_mask, torch.where(exec_mask, slots, scratch), run)

    def masked(self, mask: Tensor, scratch: int) -> "Rows":
        """The same rows, executing only where ``mask`` (``bool[R]``) holds as well; twins are left out."""
        return Rows.of(self.slots, self.exec_mask & mask, scratch, self.run)

    def guided(self, of: Tensor, slots: Tensor, scratch: int) -> "Rows":
        """The same rows with twins. Graph-safe.

        Args:
            of: ``int64[N]``, the row that each twin follows. Rows have one twin or none.
            slots: ``int64[N]``, the slot of each twin; scratch for padding, which steers nobody.
        """
        count = self.slots.shape[0]
        behind = torch.arange(count, count + of.shape[0], device=of.device)
        # Padding goes to an element of its own at the end, so that it hides no row.
        target = torch.where(slots == scratch, count, of)
        null = torch.arange(count + 1, device=of.device).index_copy(0, target, behind)[:-1]
        write = torch.where(self.exec_mask.index_select(0, of), slots, scratch)
        return dataclasses.replace(self, twins=Twins(of, slots, write, null))

    def with_twins(self) -> "Rows":
        """The R rows of the tick and the N twins behind them, as rows of their own."""
        if self.twins is None:
            return self
        of = self.twins.of
        return Rows(
            torch.cat([self.slots, self.twins.slots]),
            torch.cat([self.exec_mask, self.exec_mask.index_select(0, of)]),
            torch.cat([self.write, self.twins.write]),
        )

    def read(self, store: Tensor) -> Tensor:
        """What the rows hold of a ``[slots + 1, ...]`` store: ``[R, ...]``, maybe a view: use it before a commit."""
        if self.run is None:
            return store.index_select(0, self.slots)
        return store.narrow(0, self.run, self.slots.shape[0])


def all_rows(slots: int, device: torch.device | str = "cpu") -> Rows:
    """Every slot of a state made for ``slots`` slots, all executing."""
    index = torch.arange(slots, device=device)
    return Rows(index, torch.ones(slots, dtype=torch.bool, device=device), index, run=0)


def commit(store: Tensor, rows: Rows, value: Tensor) -> None:
    """Write ``value`` (``[R, ...]``) to the rows of ``store`` (``[slots + 1, ...]``) that execute."""
    store.index_copy_(0, rows.write, value.to(store.dtype))


def reset(state: Any, slots: Tensor, *, wipe: bool = False) -> None:
    """Make the given slots (``int64[N]``) fresh in every tensor of a state.

    Args:
        state: a state dataclass, a tuple of them, or None.
        slots: slots to reset; the scratch index is allowed and harmless.
        wipe: clear masked bulk storage (keys and values) too. Needed after a value that was not finite, because
            0 x NaN is NaN; costs the memory traffic of the slot.
    """
    filled = [(bits(tensor), fresh) for tensor, fresh, masked in _leaves(state) if wipe or not masked]
    fill_rows([store for store, _ in filled], slots, [float(fresh) for _, fresh in filled])


def bits(tensor: Tensor) -> Tensor:
    """8-bit floating point as bytes, which torch can fill; zero is zero in both. Everything else as it is."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


def state_bytes_per_slot(state: Any) -> int:
    """Bytes that one slot of this state occupies."""
    return sum(tensor[0].numel() * tensor.element_size() for tensor, _, _ in _leaves(state))


def leaves(state: Any) -> list[Tensor]:
    """Every tensor of a state that counts slots, in field order."""
    return [tensor for tensor, _, _ in _leaves(state)]


def _leaves(state: Any) -> Iterator[tuple[Tensor, float, bool]]:
    if state is None:
        return
    if isinstance(state, tuple):
        for part in state:
            yield from _leaves(part)
        return
    for field in dataclasses.fields(state):
        if field.metadata.get("paged"):
            continue
        value = getattr(state, field.name)
        if isinstance(value, Tensor):
            yield value, field.metadata.get("fresh", 0), field.metadata.get("masked", False)
        else:
            yield from _leaves(value)
