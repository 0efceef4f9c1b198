"""The books of the pages: whatever comes and goes, every page is free or has one holder."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.errors import EngineFull
from serve_app.model.page_pool import PagePool

PAGES, STEPS, CONTEXT, RESERVE, ROWS = 9, 4, 18, 2, 5


class Books(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, STEPS, CONTEXT, reserve=RESERVE)
        self.made: dict[int, int] = {}

    @rule(row=st.integers(0, ROWS - 1), twin=st.booleans(), steps=st.integers(1, 2 * CONTEXT))
    def admit(self, row: int, twin: bool, steps: int) -> None:
        rows = [row, (row + 1) % ROWS] if twin else [row]
        if any(other in self.made for other in rows):
            return
        free = self.pool.free
        try:
            self.pool.admit(rows, steps, ROWS)
        except EngineFull:
            assert len(rows) * self.pool.blocks_of(steps) + RESERVE > free == self.pool.free
            return
        assert self.pool.free >= RESERVE
        self.made.update(dict.fromkeys(rows, steps))

    @rule(rows=st.lists(st.integers(0, ROWS - 1), unique=True, max_size=2), more=st.integers(0, CONTEXT))
    def draw(self, rows: list[int], more: int) -> None:
        before = {row: self.pool.held(row) for row in range(ROWS)}
        counts = [self.made.get(row, 0) + more for row in rows]
        if self.pool.draw(rows, counts):
            self.made.update(zip(rows, counts, strict=True))
        else:
            assert before == {row: self.pool.held(row) for row in range(ROWS)}
        for row, pages in before.items():
            assert self.pool.held(row)[: len(pages)] == pages, "what a row has written stays where it is"

    @rule(rows=st.lists(st.integers(0, ROWS - 1), unique=True, max_size=2))
    def release(self, rows: list[int]) -> None:
        self.pool.release(rows)
        for row in rows:
            self.made.pop(row, None)

    @invariant()
    def every_page_is_free_or_has_one_holder(self) -> None:
        held = [page for row in range(ROWS) for page in self.pool.held(row)]
        assert len(held) == len(set(held))
        assert set(held) <= set(range(1, PAGES + 1))
        assert self.pool.free + len(held) == PAGES

    @invariant()
    def a_row_holds_what_its_steps_need_and_never_more_than_its_context(self) -> None:
        for row in range(ROWS):
            needed = -(-min(self.made.get(row, 0), CONTEXT) // STEPS)
            assert len(self.pool.held(row)) == needed <= self.pool.blocks


TestBooksBalanceInAnyOrder = Books.TestCase


def test_a_dry_pool_counts_who_waits() -> None:
    pool = PagePool(2, 4, 18)
    assert pool.draw([0], [8])
    assert not pool.draw([1], [1])
    assert pool.counters() == {"pages": 2, "pages_free": 0, "page_waits": 1}


@pytest.mark.parametrize("numbers", [(0, 4, 18, 0), (2, 0, 18, 0), (2, 4, 0, 0), (2, 4, 18, -1)])
def test_numbers_that_make_no_pool_are_refused(numbers: tuple[int, int, int, int]) -> None:
    pages, page_steps, context, reserve = numbers
    with pytest.raises(ValueError, match="pages"):
        PagePool(pages, page_steps, context, reserve=reserve)
