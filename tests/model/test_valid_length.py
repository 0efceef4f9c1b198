"""Attention over what a row holds gives what attention over the whole ring gives."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model import window as window_module
from serve_app.model.ring import KvRing
from serve_app.model.state import Rows
from serve_app.model.window import Held, Window

SLOTS, CAPACITY, HEADS, DIM = 5, 7, 2, 8
CPU = torch.device("cpu")


def _ring() -> KvRing:
    ring = KvRing.empty(SLOTS, CAPACITY, HEADS, DIM, CPU, torch.float32)
    for store in (ring.keys, ring.values):
        store.copy_(torch.randn_like(store))  # what a session before it has left: nobody may see it
    return ring


@st.composite
def ticks(draw: st.DrawFn) -> tuple[list[int], list[int], list[bool], int]:
    """Slots, their offsets, whether each executes, and how many steps they make."""
    slots = draw(st.permutations(range(SLOTS)).map(lambda order: order[: draw(st.integers(1, SLOTS))]))
    offsets = [draw(st.integers(0, 4 * CAPACITY)) for _ in slots]
    return slots, offsets, [draw(st.booleans()) for _ in slots], draw(st.integers(1, CAPACITY))


@pytest.mark.parametrize("call_elements", [0, window_module.CALL_ELEMENTS], ids=["row by row", "all at once"])
@given(tick=ticks(), one_by_one=st.booleans(), groups=st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_valid_keys_give_what_the_whole_ring_gives(
    call_elements: int, tick: tuple[list[int], list[int], list[bool], int], one_by_one: bool, groups: int
) -> None:
    slots, offsets, executes, steps = tick
    run = slots[0] if slots == list(range(slots[0], slots[0] + len(slots))) else None
    rows = Rows.of(torch.tensor(slots), torch.tensor(executes), SLOTS, run)
    offset, whole = torch.tensor(offsets), _ring()
    valid = dataclasses.replace(whole, keys=whole.keys.clone(), values=whole.values.clone())
    query = torch.randn(len(slots), groups * HEADS, steps, DIM)
    keys, values = torch.randn(2, len(slots), HEADS, steps, DIM).unbind(0)
    make = Window.one_by_one if one_by_one else Window.at
    expected = whole.step(query, keys, values, rows, make(offset, steps, CAPACITY, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_module, "CALL_ELEMENTS", call_elements)
        window = Window.valid(offset, steps, CAPACITY, rows, one_by_one=one_by_one)
        got = valid.step(query, keys, values, rows, window)
    live = torch.tensor(executes)  # what another row does not write, it does not see either; both drop it
    torch.testing.assert_close(got[live], expected[live], atol=1e-6, rtol=0)
    assert torch.equal(valid.keys[:SLOTS], whole.keys[:SLOTS])
    assert torch.equal(valid.values[:SLOTS], whole.values[:SLOTS])


def test_a_short_conversation_does_not_read_what_lies_behind_it() -> None:
    ring = _ring()
    ring.keys[:, 4:] = ring.values[:, 4:] = float("nan")
    rows = Rows.of(torch.tensor([0, 2]), torch.tensor([True, True]), SLOTS)
    window = Window.valid(torch.tensor([1, 3]), 1, CAPACITY, rows)
    query, keys, values = torch.randn(3, 2, HEADS, 1, DIM).unbind(0)
    assert window.held is not None
    assert window.held.steps == (2, 4)
    assert bool(ring.step(query, keys, values, rows, window).isfinite().all())


def test_one_step_of_rows_of_one_length_needs_no_mask() -> None:
    rows = Rows.of(torch.tensor([0, 2]), torch.tensor([True, True]), SLOTS)
    alike = [
        Window.valid(torch.tensor(offsets), steps, CAPACITY, rows).held
        for offsets, steps in (([3, 3], 1), ([CAPACITY, 3 * CAPACITY], 1), ([3, 4], 1), ([3, 3], 2))
    ]
    assert [held is not None and held.alike for held in alike] == [True, True, False, False]


@pytest.mark.parametrize(
    ("steps", "gathered", "apart"),
    [
        ((750, 750, 750), False, False),  # nothing is read in vain
        ((750, 700, 740), False, False),  # 60 steps in vain, but two more calls cost as much as 114
        ((750, 10, 10), False, True),
        ((20, 10, 10), True, False),
        ((750, 750, 750), True, True),  # else they had to be copied together
        ((750,), False, False),
    ],
)
def test_rows_are_attended_one_by_one_where_that_reads_less(
    steps: tuple[int, ...], gathered: bool, apart: bool
) -> None:
    held = Held(tuple(range(len(steps))), steps, alike=False)
    assert held.apart(768, gathered=gathered) is apart


def test_a_host_that_may_not_look_spans_the_ring() -> None:
    meta = torch.device("meta")
    rows = Rows.of(torch.zeros(2, dtype=torch.int64, device=meta), torch.ones(2, dtype=torch.bool, device=meta), SLOTS)
    window = Window.valid(torch.zeros(2, dtype=torch.int64, device=meta), 1, CAPACITY, rows)
    assert window.held is None
    assert window.visible.shape == (2, 1, 1, CAPACITY)
