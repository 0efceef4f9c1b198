"""A ticket opens one session of its tenant, soon, once, from its own page; memory stays bounded."""

import secrets

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.admission.credentials import KeyRecord, KeyRing, mint_key
from serve_app.admission.gate import Gate
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.tickets import Tickets
from serve_app.errors import Forbidden, NotAllowed, TooManyTickets
from tests.admission.clock import Clock, counted_bytes

PAGE = "https://acme.example"


def record(tenant: str = "acme") -> KeyRecord:
    return KeyRecord(key=f"key-{tenant}", tenant=tenant, digest="0" * 64, created_s=0.0)


def test_a_ticket_opens_once() -> None:
    tickets = Tickets(Clock(), secrets.token_bytes)
    ticket = tickets.issue(record())
    assert tickets.redeem(ticket.text).tenant == "acme"
    with pytest.raises(NotAllowed):
        tickets.redeem(ticket.text)
    assert len(tickets) == 0


def test_a_ticket_ends_after_its_life() -> None:
    clock = Clock()
    tickets = Tickets(clock, secrets.token_bytes, life_s=30.0)
    in_time, late = tickets.issue(record()), tickets.issue(record())
    clock.now_s += 29.9
    assert tickets.redeem(in_time.text).tenant == "acme"
    clock.now_s += 0.1
    with pytest.raises(NotAllowed):
        tickets.redeem(late.text)
    assert len(tickets) == 0


def test_a_ticket_of_one_page_is_burnt_when_another_shows_it() -> None:
    tickets = Tickets(Clock(), secrets.token_bytes)
    ticket = tickets.issue(record(), PAGE)
    for origin in ("https://evil.example", PAGE):
        with pytest.raises(NotAllowed):
            tickets.redeem(ticket.text, origin)


def test_one_tenant_cannot_take_the_room_of_another() -> None:
    clock = Clock()
    tickets = Tickets(clock, secrets.token_bytes, per_tenant=3)
    for _ in range(3):
        tickets.issue(record("greedy"))
    with pytest.raises(TooManyTickets) as caught:
        tickets.issue(record("greedy"))
    assert caught.value.retry_after_s == 30.0
    tickets.issue(record("modest"))
    clock.now_s += 30.0
    tickets.issue(record("greedy"))
    assert len(tickets) == 1


def test_no_ticket_is_printed() -> None:
    ticket = Tickets(Clock(), secrets.token_bytes).issue(record())
    assert ticket.text not in repr(ticket)


@pytest.mark.parametrize("presented", ["", "x" * 43, "x" * 10**6, "é" * 43, "\ud800"])
def test_what_is_no_ticket_opens_nothing(presented: str) -> None:
    tickets = Tickets(Clock(), secrets.token_bytes)
    tickets.issue(record())
    with pytest.raises(NotAllowed):
        tickets.redeem(presented)
    assert len(tickets) == 1


class AnyOrder(RuleBasedStateMachine):
    """Tickets are issued, used, replayed and forgotten in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.tickets = Tickets(self.clock, counted_bytes(), life_s=30.0, per_tenant=4)
        self.unused: dict[str, tuple[str, float]] = {}
        self.spent: list[str] = []

    @rule(tenant=st.sampled_from(["a", "b"]))
    def issue(self, tenant: str) -> None:
        try:
            ticket = self.tickets.issue(record(tenant))
        except TooManyTickets:
            assert sum(owner == tenant for owner, _ in self.alive().values()) == 4
            return
        self.unused[ticket.text] = (tenant, self.clock.now_s)

    @rule(passed_s=st.floats(0, 40))
    def wait(self, passed_s: float) -> None:
        self.clock.now_s += passed_s

    @rule(data=st.data())
    def redeem(self, data: st.DataObject) -> None:
        if not self.unused and not self.spent:
            return
        text = data.draw(st.sampled_from([*self.unused, *self.spent]))
        expected = self.alive().get(text)
        if expected is None:
            with pytest.raises(NotAllowed):
                self.tickets.redeem(text)
        else:
            assert self.tickets.redeem(text).tenant == expected[0]
        self.unused.pop(text, None)
        self.spent.append(text)

    def alive(self) -> dict[str, tuple[str, float]]:
        return {text: held for text, held in self.unused.items() if self.clock.now_s < held[1] + 30.0}

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.tickets) <= 8


TestATicketOpensOnceInAnyOrder = AnyOrder.TestCase


class TestGate:
    def setup_method(self) -> None:
        self.clock = Clock()
        self.tenants = Tenants([Tenant(name="acme", origins=frozenset({PAGE})), Tenant(name="other")])
        self.acme, self.other = (mint_key(name, secrets.token_bytes, 0.0) for name in ("acme", "other"))
        self.gate = Gate(self.tenants, self.ring(self.acme.record, self.other.record), self.clock, secrets.token_bytes)

    def ring(self, *records: KeyRecord) -> KeyRing:
        return KeyRing(records, self.clock)

    def test_key_and_ticket_lead_to_the_same_tenant(self) -> None:
        assert self.gate.by_key(self.acme.text).name == "acme"
        assert self.gate.by_ticket(self.gate.ticket(self.acme.text, PAGE).text, PAGE).name == "acme"

    def test_a_key_is_no_ticket_and_a_ticket_no_key(self) -> None:
        ticket = self.gate.ticket(self.acme.text)
        with pytest.raises(NotAllowed):
            self.gate.by_ticket(self.acme.text)
        with pytest.raises(NotAllowed):
            self.gate.by_key(ticket.text)

    def test_a_foreign_page_gets_no_ticket(self) -> None:
        with pytest.raises(Forbidden):
            self.gate.ticket(self.acme.text, "https://evil.example")
        with pytest.raises(Forbidden):
            self.gate.ticket(self.other.text, PAGE)

    def test_a_ticket_fetched_by_a_server_opens_from_the_tenants_pages_only(self) -> None:
        with pytest.raises(Forbidden):
            self.gate.by_ticket(self.gate.ticket(self.acme.text).text, "https://evil.example")
        assert self.gate.by_ticket(self.gate.ticket(self.acme.text).text, PAGE).name == "acme"

    def test_a_ticket_dies_with_its_key(self) -> None:
        ticket = self.gate.ticket(self.acme.text)
        self.gate.replace(self.tenants, self.ring(self.other.record))
        with pytest.raises(NotAllowed):
            self.gate.by_ticket(ticket.text)

    def test_keys_and_tickets_die_with_their_tenant(self) -> None:
        ticket = self.gate.ticket(self.acme.text)
        self.gate.replace(Tenants([Tenant(name="other")]), self.ring(self.acme.record))
        with pytest.raises(NotAllowed):
            self.gate.by_ticket(ticket.text)
        with pytest.raises(NotAllowed):
            self.gate.by_key(self.acme.text)
