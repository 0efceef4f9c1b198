"""Rows, masked writes and resets: the laws every streaming state obeys."""

import dataclasses

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serve_app.model.state import Rows, all_rows, commit, leaves, reset, state_bytes_per_slot

SLOTS = 5


@dataclasses.dataclass(frozen=True)
class _Inner:
    count: Tensor = dataclasses.field(metadata={"fresh": -2})


@dataclasses.dataclass(frozen=True)
class _State:
    small: Tensor
    bulk: Tensor = dataclasses.field(metadata={"masked": True})
    parts: tuple[_Inner, ...] = ()


def _state() -> _State:
    return _State(
        torch.randn(SLOTS + 1, 3),
        torch.randn(SLOTS + 1, 4, 2),
        (_Inner(torch.arange(SLOTS + 1)), _Inner(torch.ones(SLOTS + 1, 2))),
    )


@given(st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS), st.permutations(range(SLOTS)))
def test_a_commit_changes_exactly_the_rows_that_execute(mask: list[bool], order: list[int]) -> None:
    store = torch.randn(SLOTS + 1, 3)
    before = store.clone()
    rows = Rows.of(torch.tensor(order), torch.tensor(mask), SLOTS)
    value = torch.randn(SLOTS, 3)
    commit(store, rows, value)
    for row, slot in enumerate(order):
        expected = value[row] if mask[row] else before[slot]
        assert torch.equal(store[slot], expected)


@given(st.sets(st.integers(0, SLOTS - 1)))
def test_a_reset_makes_the_named_slots_fresh_and_leaves_the_others_alone(slots: set[int]) -> None:
    state = _state()
    before = [t.clone() for t in leaves(state)]
    reset(state, torch.tensor(sorted(slots), dtype=torch.int64))
    for slot in range(SLOTS):
        if slot in slots:
            assert torch.equal(state.small[slot], torch.zeros(3))
            assert state.parts[0].count[slot] == -2
        else:
            assert all(torch.equal(t[slot], b[slot]) for t, b in zip(leaves(state), before, strict=True))


def test_masked_bulk_survives_a_reset_and_is_cleared_by_a_wipe() -> None:
    state = _state()
    bulk = state.bulk.clone()
    reset(state, torch.tensor([1]))
    assert torch.equal(state.bulk, bulk)
    reset(state, torch.tensor([1]), wipe=True)
    assert torch.equal(state.bulk[1], torch.zeros(4, 2))
    assert torch.equal(state.bulk[0], bulk[0])


def test_addresses_hold_across_commit_and_reset() -> None:
    state = _state()
    addresses = [t.data_ptr() for t in leaves(state)]
    commit(state.small, all_rows(SLOTS), torch.zeros(SLOTS, 3))
    reset(state, torch.tensor([0, SLOTS]), wipe=True)
    assert [t.data_ptr() for t in leaves(state)] == addresses


def test_bytes_per_slot_count_every_tensor_once() -> None:
    assert state_bytes_per_slot(_state()) == 3 * 4 + 8 * 4 + 8 + 2 * 4


def test_masking_rows_twice_executes_their_intersection() -> None:
    rows = Rows.of(torch.tensor([2, 0, 1]), torch.tensor([True, False, True]), SLOTS)
    both = rows.masked(torch.tensor([True, True, False]), SLOTS)
    assert both.write.tolist() == [2, SLOTS, SLOTS]


def test_a_run_of_slots_reads_the_same_as_its_indices() -> None:
    store, index = torch.randn(SLOTS + 1, 3), torch.arange(1, 4)
    every = torch.ones(3, dtype=torch.bool)
    run = Rows.of(index, every, SLOTS, run=1)
    assert torch.equal(run.read(store), Rows.of(index, every, SLOTS).read(store))
    assert torch.equal(run.masked(every, SLOTS).read(store), store[1:4])
