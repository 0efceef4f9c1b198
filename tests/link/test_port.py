"""Grants and what a peer holds."""

import pytest

from serve_app.errors import EngineDraining, SessionMoved, StaleLease
from serve_app.link.messages import TOKEN_BYTES, Attach, Detach, Downward, Ended, Frame, Key, Opened
from serve_app.link.port import Address, GrantBook, Holdings
from tests.link.fakes import EchoPort, frame

ADDRESS = Address("127.0.0.1", 1)


class Peer:
    """One peer's holdings, over an echoing engine."""

    def __init__(self) -> None:
        self.port = EchoPort()
        self.grants = GrantBook()
        self.heard: list[Downward] = []
        self.holdings = Holdings(self.port, self.grants, self.heard.extend)

    def attach(self, slot: int = 0, generation: int = 0) -> Key:
        grant = self.grants.issue(ADDRESS, slot, generation)
        self.holdings.receive(Attach(grant.key, grant.token))
        return grant.key


def test_token_is_good_once() -> None:
    grants = GrantBook()
    grant = grants.issue(ADDRESS, 2, 5)
    grants.redeem(grant.key, grant.token)
    with pytest.raises(StaleLease):
        grants.redeem(grant.key, grant.token)


def test_forged_token_is_refused_and_voids_nothing() -> None:
    grants = GrantBook()
    grant = grants.issue(ADDRESS, 2, 5)
    with pytest.raises(StaleLease):
        grants.redeem(grant.key, bytes(TOKEN_BYTES))
    grants.redeem(grant.key, grant.token)


def test_token_of_another_generation_is_refused() -> None:
    grants = GrantBook()
    grant = grants.issue(ADDRESS, 2, 5)
    with pytest.raises(StaleLease):
        grants.redeem(Key(2, 6), grant.token)


def test_new_grant_of_a_slot_voids_the_old_one() -> None:
    grants = GrantBook()
    old, new = grants.issue(ADDRESS, 2, 5), grants.issue(ADDRESS, 2, 6)
    with pytest.raises(StaleLease):
        grants.redeem(old.key, old.token)
    grants.redeem(new.key, new.token)


def test_revoked_grant_is_refused() -> None:
    grants = GrantBook()
    grant = grants.issue(ADDRESS, 2, 5)
    grants.revoke(grant.key)
    with pytest.raises(StaleLease):
        grants.redeem(grant.key, grant.token)


def test_revoking_an_old_lease_leaves_its_slots_next_grant_alone() -> None:
    grants = GrantBook()
    old = grants.issue(ADDRESS, 2, 5)
    new = grants.issue(ADDRESS, 2, 6)
    grants.revoke(old.key)
    grants.redeem(new.key, new.token)


def test_tokens_differ_and_stay_out_of_the_repr() -> None:
    grants = GrantBook()
    first, second = grants.issue(ADDRESS, 0, 0), grants.issue(ADDRESS, 1, 0)
    assert first.token != second.token
    assert len(first.token) == TOKEN_BYTES
    assert repr(first.token) not in repr(first)


def test_attached_session_is_opened_and_heard() -> None:
    peer = Peer()
    key = peer.attach()
    assert peer.heard == [Opened(key)]


def test_attach_without_a_grant_is_answered_with_stale_lease() -> None:
    peer = Peer()
    peer.holdings.receive(Attach(Key(0, 0), bytes(TOKEN_BYTES)))
    (ended,) = peer.heard
    assert isinstance(ended, Ended)
    assert isinstance(ended.error, StaleLease)
    assert peer.port.sinks == {}


def test_refusal_of_the_engine_is_answered() -> None:
    peer = Peer()
    peer.port.refusal = EngineDraining()
    key = peer.attach()
    assert peer.heard == [Ended.of(key, EngineDraining())]
    assert len(peer.holdings) == 0


@pytest.mark.parametrize("message", [Frame(Key(0, 0), 0, frame(0.0)), Detach(Key(0, 0))])
def test_message_for_a_session_that_the_peer_does_not_hold_is_counted_and_dropped(message: Frame | Detach) -> None:
    peer = Peer()
    peer.attach(slot=0, generation=1)
    peer.holdings.receive(message)
    assert (peer.port.pushed, peer.port.closed) == ([], [])
    assert peer.holdings.stale_messages == 1


def test_frame_after_the_session_ended_never_reaches_the_engine() -> None:
    peer = Peer()
    key = peer.attach()
    peer.holdings.receive(Detach(key))
    peer.holdings.receive(Frame(key, 0, frame(0.0)))
    assert peer.port.pushed == []


def test_ousted_peer_is_told_why_and_its_words_count_no_more() -> None:
    peer = Peer()
    key, other = peer.attach(0), peer.attach(1)
    peer.holdings.oust(key, SessionMoved())
    assert peer.heard[2:] == [Ended.of(key, SessionMoved())]
    peer.holdings.receive(Frame(key, 0, frame(0.0)))
    peer.holdings.receive(Detach(key))
    peer.holdings.release()
    assert (peer.port.pushed, peer.port.closed) == ([], [other])


def test_peer_that_does_not_hold_a_session_is_not_told_of_its_moving() -> None:
    peer = Peer()
    key = peer.attach(0)
    peer.holdings.oust(Key(0, 1), SessionMoved())
    assert peer.heard == [Opened(key)]
    assert len(peer.holdings) == 1


def test_lost_peer_frees_what_it_held_and_nothing_else() -> None:
    peer = Peer()
    ended, held = peer.attach(0), peer.attach(1)
    peer.port.say(Ended(ended))
    peer.holdings.release()
    assert peer.port.closed == [held]
