"""The queue for one model's rows: bounded, fair between tenants, first come within a tenant.

Fair means: the next row goes to the tenant that would hold the fewest rows for its weight. Shares of rows held, not of
sessions started: who has held less than its share gets the next free row, whatever others have queued before, so a
tenant within its share waits as if it had engines of its own. Fair queueing of starts (one for you, one for me) was
measured beside it and lost: docs/adr/0007.

Alone, that rule would never serve a tenant whose share is less than one row. So time since a tenant was last served
counts too: after `patience_s` it stands as if it held one row per weight less. Comparing two tenants gives the same
answer at any later time, which is what lets them stand in a heap.
"""

import collections
import dataclasses
import heapq
import itertools
import math

from serve_app.units import SessionId


@dataclasses.dataclass(slots=True)
class Waiter:
    """One caller in the queue.

    Attributes:
        weight: its tenant's.
        arrived_s: monotonic; earlier than the call where a successor takes over a caller that has waited.
    """

    session: SessionId
    tenant: str
    weight: float
    rows: int
    arrived_s: float


@dataclasses.dataclass(slots=True)
class _Line:
    """One tenant's part: its waiters in order of arrival, the rows that it holds, and its place in the heap."""

    tenant: str
    weight: float = 1.0
    held: int = 0
    served_s: float = -math.inf
    waiters: "collections.OrderedDict[SessionId, Waiter]" = dataclasses.field(default_factory=collections.OrderedDict)
    version: int = 0


class FairQueue:
    """Who is next. Not thread-safe; every change costs the logarithm of the tenants that wait.

    Args:
        limit: callers at a time. When it is reached, a newcomer pushes out the last of the tenant with most callers for
            its weight, if its own tenant has fewer; so nobody fills the queue for the others.
        patience_s: see above; infinite switches it off.
    """

    def __init__(self, limit: int, patience_s: float = 900.0) -> None:
        self._limit = limit
        self._patience_s = patience_s
        self._lines: dict[str, _Line] = {}
        self._heap: list[tuple[float, float, int, _Line, int]] = []
        self._serial = itertools.count()
        self._length = 0
        self._waiting: dict[str, _Line] = {}  # lines with waiters

    def __len__(self) -> int:
        return self._length

    def join(self, waiter: Waiter) -> Waiter | None:
        """Put a caller at its place.

        Returns:
            Who has to leave because the queue is full: another, who is out now, or the newcomer, who never was in.
        """
        pushed = None
        if self._length >= self._limit:
            pushed = self._most_greedy(waiter)
            if pushed is waiter:
                return waiter
            self.leave(pushed)
        line = self._line(waiter.tenant)
        line.weight = waiter.weight
        last = next(reversed(line.waiters.values()), None)
        line.waiters[waiter.session] = waiter
        self._waiting[line.tenant] = line
        self._length += 1
        if last is not None and waiter.arrived_s < last.arrived_s:
            # Somebody who waited under a predecessor: rare, so the whole line is sorted.
            in_order = sorted(line.waiters.values(), key=lambda one: one.arrived_s)
            line.waiters = collections.OrderedDict((one.session, one) for one in in_order)
        if last is None or self._head_of(line) is waiter:
            self._file(line)
        return pushed

    def limit(self, callers: int) -> list[Waiter]:
        """Let so many wait from now on. Returns who has left: each was the last of the longest line for its weight."""
        self._limit = callers
        pushed = []
        while self._length > callers:
            line = max(self._waiting.values(), key=lambda one: len(one.waiters) / one.weight)
            pushed.append(next(reversed(line.waiters.values())))
            self.leave(pushed[-1])
        return pushed

    def leave(self, waiter: Waiter) -> None:
        """Take a caller out: gone, or about to be let in."""
        line = self._lines[waiter.tenant]
        was_head = self._head_of(line) is waiter
        del line.waiters[waiter.session]
        self._length -= 1
        if not line.waiters:
            del self._waiting[line.tenant]
        if was_head:
            self._file(line)
        self._forget_idle(line)

    def held(self, tenant: str, rows: int, now_s: float | None = None) -> None:
        """Rows that a tenant got (with the time, where we let it in) or gave back (below zero)."""
        line = self._line(tenant)
        line.held += rows
        assert line.held >= 0, f"{tenant} gave back more than it held"
        if now_s is not None:
            line.served_s = now_s
        if line.waiters:
            self._file(line)
        self._forget_idle(line)

    def held_by(self, tenant: str) -> int:
        """Rows that a tenant holds."""
        line = self._lines.get(tenant)
        return line.held if line else 0

    def head(self) -> Waiter | None:
        """Who is next; stays in the queue."""
        while self._heap:
            _, _, _, line, version = self._heap[0]
            if version == line.version and line.waiters:
                return self._head_of(line)
            heapq.heappop(self._heap)
        return None

    def place(self, waiter: Waiter) -> int:
        """How many are let in until this one is, itself included, as things stand. Looks at all tenants that wait."""
        line = self._lines[waiter.tenant]
        ahead_rows = 0
        place = 1
        for other in line.waiters.values():
            if other is waiter:
                break
            ahead_rows += other.rows
            place += 1
        if place == 1 and self.head() is waiter:
            return 1
        level = (line.held + ahead_rows + waiter.rows) / line.weight
        for rival in self._waiting.values():
            if rival is not line:
                rows = self._head_of(rival).rows
                before = math.ceil((level * rival.weight - rival.held) / rows - 1e-9) - 1
                place += min(max(before, 0), len(rival.waiters))
        return max(place, 2) if self._length > 1 else 1

    def _most_greedy(self, newcomer: Waiter) -> Waiter:
        """The last of the line that is longest for its weight, the newcomer counted; ties are the newcomer's loss."""
        own = self._lines.get(newcomer.tenant)
        longest = ((len(own.waiters) if own else 0) + 1) / newcomer.weight
        greediest = None
        for line in self._waiting.values():
            if len(line.waiters) / line.weight > longest:
                longest, greediest = len(line.waiters) / line.weight, line
        return newcomer if greediest is None else next(reversed(greediest.waiters.values()))

    def _line(self, tenant: str) -> _Line:
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = _Line(tenant)
        return line

    def _forget_idle(self, line: _Line) -> None:
        if not line.held and not line.waiters:
            line.version += 1
            self._lines.pop(line.tenant, None)

    @staticmethod
    def _head_of(line: _Line) -> Waiter:
        return next(iter(line.waiters.values()))

    def _file(self, line: _Line) -> None:
        """Give a line its place in the heap; older entries are known by their version and dropped in passing."""
        line.version += 1
        if not line.waiters:
            return
        head = self._head_of(line)
        share = (line.held + head.rows) / line.weight + max(line.served_s, head.arrived_s) / self._patience_s
        heapq.heappush(self._heap, (share, head.arrived_s, next(self._serial), line, line.version))
        if len(self._heap) > 64 + 4 * len(self._waiting):
            self._heap = [entry for entry in self._heap if entry[4] == entry[3].version and entry[3].waiters]
            heapq.heapify(self._heap)
