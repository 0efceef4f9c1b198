"""Who holds which page of keys and values: numbers alone, no tensor.

A conversation takes a page when its steps reach the end of the last one, and gives all back when it ends. Past the
context its window slides within the pages that it has. Page 0 is nobody's: what must not be kept is written there.
"""

import collections
import threading
from collections.abc import Mapping, Sequence

from serve_app.errors import EngineFull


class PagePool:
    """Pages of one model, drawn on by rows of its state. Any thread; every call takes microseconds.

    Pages that came back first are given out first, as slots are.

    Args:
        pages: that can be held; they are numbered from 1.
        page_steps: steps in one.
        context: steps that a row ever holds at once: the most that it draws.
        reserve: pages that admission leaves for those who are in already.
    """

    def __init__(self, pages: int, page_steps: int, context: int, *, reserve: int = 0) -> None:
        if pages < 1 or page_steps < 1 or context < 1 or reserve < 0:
            raise ValueError(f"pages {pages}, page_steps {page_steps}, context {context}, reserve {reserve}")
        self.pages, self.page_steps, self.context, self.reserve = pages, page_steps, context, reserve
        self._lock = threading.Lock()
        self._free = collections.deque(range(1, pages + 1))
        self._held: dict[int, list[int]] = {}
        self._waits = 0

    @property
    def blocks(self) -> int:
        """Pages of a row that holds its whole context."""
        return self.blocks_of(self.context)

    def blocks_of(self, steps: int) -> int:
        """Pages that a row needs which has made so many steps."""
        return -(-min(steps, self.context) // self.page_steps)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def held(self, row: int) -> tuple[int, ...]:
        """The pages of a row, in order of its ring positions."""
        with self._lock:
            return tuple(self._held.get(row, ()))

    def admit(self, rows: Sequence[int], steps: int, slots: int) -> None:
        """Draw the first pages of a new session's rows, and leave the reserve.

        Args:
            steps: that each of its rows makes before anybody could wait: its prompt and its first one.
            slots: of the engine, for the error.

        Raises:
            EngineFull: too few are free; nothing is drawn then.
        """
        with self._lock:
            if len(rows) * self.blocks_of(steps) + self.reserve > len(self._free):
                raise EngineFull(slots)
            self._draw(rows, steps)

    def draw(self, rows: Sequence[int], steps: Sequence[int]) -> bool:
        """Let every row have made so many steps, or none of them: False where too few pages are free."""
        with self._lock:
            wanted = sum(
                max(self.blocks_of(count) - len(self._held.get(row, ())), 0)
                for row, count in zip(rows, steps, strict=True)
            )
            if wanted > len(self._free):
                self._waits += 1
                return False
            for row, count in zip(rows, steps, strict=True):
                self._draw((row,), count)
            return True

    def release(self, rows: Sequence[int]) -> None:
        """Take back all that the rows hold."""
        with self._lock:
            for row in rows:
                self._free.extend(self._held.pop(row, ()))

    def counters(self) -> Mapping[str, int]:
        """For people: how many there are, how many are free, and how often somebody had to wait for one."""
        with self._lock:
            return {"pages": self.pages, "pages_free": len(self._free), "page_waits": self._waits}

    def _draw(self, rows: Sequence[int], steps: int) -> None:
        for row in rows:
            mine = self._held.setdefault(row, [])
            while len(mine) < self.blocks_of(steps):
                mine.append(self._free.popleft())
