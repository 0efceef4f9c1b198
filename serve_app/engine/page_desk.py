"""Between the pool's books and the device: gives pages to slots before they are written."""

from collections.abc import Sequence

from serve_app.model.page_pool import PagePool
from serve_app.model.pages import PageStore
from serve_app.units import Slot


class PageDesk:
    """Knows how many steps each slot has made and which of its pages its table has. Engine thread.

    Pages that the engine drew for a slot, or that are still to be drawn, are wiped here and put into the slot's table.
    """

    def __init__(self, pool: PagePool, store: PageStore) -> None:
        self.pool = pool
        self._store = store
        self._made: dict[int, int] = {}
        self._given: dict[int, int] = {}

    def reset(self, slots: Sequence[Slot]) -> None:
        """The slots were made fresh: their tables are empty. What was drawn for whoever opens them now stays drawn."""
        for slot in slots:
            self._made.pop(slot, None)
            self._given.pop(slot, None)

    def advance(self, slots: Sequence[int], steps: int = 1) -> None:
        """Let every slot make so many more steps.

        The engine has drawn their pages before it lets a session step; without an engine they are drawn now.
        """
        for slot in slots:
            made = self._made.get(slot, 0) + steps
            if self.pool.blocks_of(made) > self._given.get(slot, 0):
                drawn = self.pool.draw([slot], [made])
                assert drawn, "who steps has its pages"
                given = self._given.get(slot, 0)
                held = self.pool.held(slot)
                self._store.give(slot, held[given:], given)
                self._given[slot] = len(held)
            self._made[slot] = made

    def stand_at(self, slots: Sequence[int], steps: Sequence[int]) -> None:
        """Let every slot be where it has made so many steps, further on or back; pages that it has stay its own."""
        for slot, made in zip(slots, steps, strict=True):
            self._made[slot] = 0
            self.advance([slot], made)

    def wipe_scratch(self) -> None:
        """Overwrite what masked rows have written."""
        self._store.wipe_scratch()
