"""Who sits where: the slot table with its transitions, and the rows of the batch behind it.

Pure logic without a lock, a clock or a thread; the engine holds its lock around every call.
"""

import collections
import dataclasses
import enum
from collections.abc import Mapping
from typing import Final

from serve_app.errors import EngineFull, StaleLease
from serve_app.model.page_pool import PagePool
from serve_app.units import Generation, Slot


class SlotState(enum.Enum):
    """Where a slot is in its life."""

    FREE = "free"
    LEASED = "leased"  # granted, nobody has opened it yet; expires
    PRIMING = "priming"  # opened, its rows wait for the engine thread to reset them and to feed them its prompt
    LIVE = "live"
    PARKED = "parked"  # its holder is gone and may come back: state and rows are kept, nothing steps
    DRAINING = "draining"  # closed by its holder, given back at the end of the tick
    FAILED = "failed"  # ended by a fault, wiped before anybody gets it


TRANSITIONS: Final[Mapping[SlotState, frozenset[SlotState]]] = {
    SlotState.FREE: frozenset({SlotState.LEASED}),
    SlotState.LEASED: frozenset({SlotState.PRIMING, SlotState.FREE}),
    SlotState.PRIMING: frozenset({SlotState.LIVE, SlotState.DRAINING, SlotState.FAILED}),
    SlotState.LIVE: frozenset({SlotState.PARKED, SlotState.DRAINING, SlotState.FAILED}),
    SlotState.PARKED: frozenset({SlotState.LIVE, SlotState.DRAINING, SlotState.FAILED}),
    SlotState.DRAINING: frozenset({SlotState.FREE, SlotState.FAILED}),
    SlotState.FAILED: frozenset({SlotState.FREE}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """The right to a slot. Stale as soon as the slot changes hands or is given back: its generation grows then."""

    slot: Slot
    generation: Generation


class SlotTable:
    """The seats of one engine.

    Free slots are given out in the order in which they came back, so that a slot rests as long as possible before
    somebody else sits on it.
    """

    def __init__(self, slots: int, *, unopened_s: float) -> None:
        """Args: slots: how many seats. unopened_s: how long a lease may stay unopened."""
        if slots < 1:
            raise ValueError(f"an engine needs at least one slot, got {slots}")
        self.slots = slots
        self._unopened_s = unopened_s
        self._states = [SlotState.FREE] * slots
        self._generations = [0] * slots
        self._leased_s = [0.0] * slots
        self._free = collections.deque(range(slots))

    def acquire(self, now_s: float) -> Lease:
        """Lease the slot that has been free longest. Raises EngineFull."""
        if not self._free:
            raise EngineFull(self.slots)
        slot = self._free.popleft()
        self._states[slot] = SlotState.LEASED
        self._leased_s[slot] = now_s
        return Lease(Slot(slot), Generation(self._generations[slot]))

    def holds(self, lease: Lease) -> bool:
        """Whether the lease still owns its slot."""
        return (
            0 <= lease.slot < self.slots
            and self._generations[lease.slot] == lease.generation
            and self._states[lease.slot] is not SlotState.FREE
        )

    def state(self, lease: Lease) -> SlotState:
        """Where the lease's slot is. Raises StaleLease."""
        if not self.holds(lease):
            raise StaleLease(lease.slot, lease.generation)
        return self._states[lease.slot]

    def move(self, lease: Lease, to: SlotState) -> None:
        """Make one transition of the table; FREE gives the slot back and grows its generation. Raises StaleLease."""
        state = self.state(lease)
        assert to in TRANSITIONS[state], f"slot {lease.slot} cannot go from {state.value} to {to.value}"
        self._states[lease.slot] = to
        if to is SlotState.FREE:
            self._generations[lease.slot] += 1
            self._free.append(lease.slot)

    def renew(self, lease: Lease) -> Lease:
        """A lease of the same parked slot for its next holder; the last one's is stale from now on."""
        assert self.state(lease) is SlotState.PARKED, "only a parked slot changes hands"
        self._generations[lease.slot] += 1
        return Lease(lease.slot, Generation(self._generations[lease.slot]))

    def expire(self, now_s: float) -> list[Lease]:
        """Give back every slot that was leased too long ago and never opened."""
        late = [
            Lease(Slot(slot), Generation(self._generations[slot]))
            for slot, state in enumerate(self._states)
            if state is SlotState.LEASED and now_s - self._leased_s[slot] >= self._unopened_s
        ]
        for lease in late:
            self.move(lease, SlotState.FREE)
        return late

    def count(self, state: SlotState) -> int:
        """How many slots are in this state."""
        return self._states.count(state)


class RowTable:
    """The rows of state that a runner has, and the pages that they draw on: a session owns one, or two under guidance.

    Like slots, rows that came back first are given out first.
    """

    def __init__(self, rows: int, pool: PagePool | None = None) -> None:
        """Args: rows: how many the runner has state for. pool: None where every row has room for its whole context."""
        self.rows = rows
        self._pool = pool
        self._free = collections.deque(range(rows))

    @property
    def free(self) -> int:
        """How many nobody owns."""
        return len(self._free)

    def require(self, count: int, slots: int) -> None:
        """Raises EngineFull when fewer than ``count`` are free; ``slots`` is what it tells of the engine."""
        if count > len(self._free):
            raise EngineFull(slots, count, len(self._free))

    def admit(self, count: int, steps: int, slots: int) -> tuple[Slot, ...]:
        """Give out so many rows, with pages for their first steps.

        Args:
            steps: of the prompt.
            slots: of the engine, for the error.

        Raises:
            EngineFull: too few rows or pages; nothing is given out then.
        """
        self.require(count, slots)
        if self._pool is not None:
            self._pool.admit([self._free[index] for index in range(count)], steps + 1, slots)
        return self.acquire(count)

    def acquire(self, count: int) -> tuple[Slot, ...]:
        """Give out so many, which are there."""
        assert count <= len(self._free), "require them first"
        return tuple(Slot(self._free.popleft()) for _ in range(count))

    def draw(self, rows: tuple[Slot, ...], steps: int) -> bool:
        """Whether a session may make its ``steps``-th step: False where it has to wait for a page."""
        return self._pool is None or self._pool.draw(rows, [steps] * len(rows))

    def release(self, rows: tuple[Slot, ...]) -> None:
        """Take them back, and their pages."""
        assert not set(rows) & set(self._free), f"rows {rows} are free already"
        self._free.extend(rows)
        if self._pool is not None:
            self._pool.release(rows)
