"""The slot table: transitions, generations, expiry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from serve_app.engine.slots import TRANSITIONS, Lease, RowTable, SlotState, SlotTable
from serve_app.errors import EngineFull, StaleLease
from serve_app.units import Generation, Slot

SLOTS = 5
WAYS_OUT = {
    SlotState.LEASED: (SlotState.FREE,),
    SlotState.PRIMING: (SlotState.DRAINING, SlotState.FREE),
    SlotState.LIVE: (SlotState.FAILED, SlotState.FREE),
    SlotState.PARKED: (SlotState.DRAINING, SlotState.FREE),
}


class AnyOrderOfLeases(RuleBasedStateMachine):
    """Leases come, move on, end and expire in any order."""

    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(SLOTS, unopened_s=2.0)
        self.now_s = 0.0
        self.given: set[Lease] = set()

    @rule(target=leases)
    def acquire(self) -> Lease:
        if self.table.count(SlotState.FREE) == 0:
            with pytest.raises(EngineFull):
                self.table.acquire(self.now_s)
            return Lease(Slot(0), Generation(-1))
        lease = self.table.acquire(self.now_s)
        assert lease not in self.given
        self.given.add(lease)
        return lease

    @rule(lease=leases, data=st.data())
    def move(self, lease: Lease, data: st.DataObject) -> None:
        if not self.table.holds(lease):
            with pytest.raises(StaleLease):
                self.table.move(lease, SlotState.LIVE)
            return
        allowed = sorted(TRANSITIONS[self.table.state(lease)], key=lambda state: state.value)
        self.table.move(lease, data.draw(st.sampled_from(allowed)))

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        if self.table.holds(lease):
            state = self.table.state(lease)
            for way in WAYS_OUT.get(state, (SlotState.FREE,)):
                self.table.move(lease, way)
            assert not self.table.holds(lease)

    @rule(passed_s=st.floats(0, 3))
    def expire(self, passed_s: float) -> None:
        self.now_s += passed_s
        for lease in self.table.expire(self.now_s):
            assert not self.table.holds(lease)

    @invariant()
    def every_slot_is_somewhere_and_free_ones_can_be_had(self) -> None:
        assert sum(self.table.count(state) for state in SlotState) == SLOTS
        holders = [lease.slot for lease in self.given if self.table.holds(lease)]
        assert len(holders) == len(set(holders)) == SLOTS - self.table.count(SlotState.FREE)


TestAnyOrderOfAcquireReleaseExpireKeepsTheSlotCount = AnyOrderOfLeases.TestCase


def test_full_table_refuses_and_names_its_size() -> None:
    table = SlotTable(2, unopened_s=2.0)
    table.acquire(0.0)
    table.acquire(0.0)
    with pytest.raises(EngineFull, match="all 2 slots"):
        table.acquire(0.0)


def test_given_back_slot_makes_its_old_lease_stale() -> None:
    table = SlotTable(1, unopened_s=2.0)
    old = table.acquire(0.0)
    table.move(old, SlotState.FREE)
    new = table.acquire(0.0)
    assert new.slot == old.slot
    with pytest.raises(StaleLease):
        table.state(old)


@pytest.mark.parametrize("slot", [-1, 2])
def test_lease_of_a_slot_that_does_not_exist_is_stale(slot: int) -> None:
    table = SlotTable(2, unopened_s=2.0)
    assert not table.holds(Lease(Slot(slot), Generation(0)))


def test_only_unopened_leases_expire() -> None:
    table = SlotTable(2, unopened_s=2.0)
    opened, unopened = table.acquire(0.0), table.acquire(0.5)
    table.move(opened, SlotState.PRIMING)
    assert table.expire(2.4) == []
    assert table.expire(2.5) == [unopened]
    assert table.holds(opened)


def test_transition_that_the_table_lacks_is_our_own_fault() -> None:
    table = SlotTable(1, unopened_s=2.0)
    lease = table.acquire(0.0)
    with pytest.raises(AssertionError, match="from leased to live"):
        table.move(lease, SlotState.LIVE)


def test_table_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        SlotTable(0, unopened_s=2.0)


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 5)), max_size=40))
def test_any_order_of_taking_and_giving_keeps_the_row_count(moves: list[tuple[int, int]]) -> None:
    table, owned = RowTable(5), list[tuple[Slot, ...]]()
    for count, leaver in moves:
        if leaver < len(owned):
            table.release(owned.pop(leaver))
        elif count <= table.free:
            owned.append(table.acquire(count))
            assert len(owned[-1]) == count
        given = [row for rows in owned for row in rows]
        assert len(given) == len(set(given)) == table.rows - table.free


def test_too_few_rows_are_refused_with_what_is_free_and_what_is_wanted() -> None:
    table = RowTable(3)
    table.acquire(2)
    table.require(1, slots=3)
    with pytest.raises(EngineFull, match="a guided session needs 2 rows of the batch and 1 is free"):
        table.require(2, slots=3)
