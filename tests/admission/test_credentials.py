"""A key opens its own tenant's door, and only while it is whole, known, unexpired and not revoked."""

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.credentials import KeyRecord, KeyRing, NewKey, mint_key
from serve_app.errors import NotAllowed
from tests.admission.clock import Clock, counted_bytes


def revoked(record: KeyRecord, at_s: float) -> KeyRecord:
    return KeyRecord(
        key=record.key, tenant=record.tenant, digest=record.digest, created_s=record.created_s, revoked_s=at_s
    )


def ring_of(*keys: NewKey, clock: Clock | None = None) -> KeyRing:
    return KeyRing([key.record for key in keys], clock or Clock())


def test_each_key_opens_its_own_tenant() -> None:
    random = counted_bytes()
    first, second = mint_key("acme", random, 0.0), mint_key("other", random, 0.0)
    ring = ring_of(first, second)
    assert ring.verify(first.text).tenant == "acme"
    assert ring.verify(second.text).tenant == "other"


def test_a_key_has_256_random_bits_and_fits_a_header() -> None:
    key = mint_key("acme", secrets.token_bytes, 0.0)
    assert len(key.text) == len("chorus_") + 12 + 1 + 43
    assert key.text.isascii()
    assert key.text.isprintable()


def test_nothing_that_is_kept_or_printed_holds_the_secret() -> None:
    key = mint_key("acme", secrets.token_bytes, 0.0)
    secret = key.text.split("_", 2)[2]
    for shown in (repr(key), str(key), repr(key.record), key.record.digest, repr(ring_of(key))):
        assert secret not in shown
    assert key.record.digest not in repr(key)


def test_a_key_ends_at_its_hour() -> None:
    clock = Clock(1_000.0)
    key = mint_key("acme", counted_bytes(), clock(), life_s=60.0)
    ring = ring_of(key, clock=clock)
    clock.now_s = 1_059.9
    assert ring.verify(key.text).tenant == "acme"
    clock.now_s = 1_060.0
    with pytest.raises(NotAllowed):
        ring.verify(key.text)


def test_a_revoked_key_stays_dead_when_the_clock_goes_back() -> None:
    clock = Clock(1_000.0)
    key = mint_key("acme", counted_bytes(), 0.0)
    ring = KeyRing([revoked(key.record, 900.0)], clock)
    for now_s in (1_000.0, 0.0):
        clock.now_s = now_s
        with pytest.raises(NotAllowed):
            ring.verify(key.text)
        assert not ring.alive(key.record.key)


KEY = mint_key("acme", secrets.token_bytes, 0.0)
RING = ring_of(KEY, mint_key("other", secrets.token_bytes, 0.0))


@given(place=st.integers(0, len(KEY.text) - 1), letter=st.characters(codec="utf-8"))
def test_one_changed_letter_opens_nothing(place: int, letter: str) -> None:
    changed = KEY.text[:place] + letter + KEY.text[place + 1 :]
    if changed != KEY.text:
        with pytest.raises(NotAllowed):
            RING.verify(changed)


@given(presented=st.text(max_size=300))
def test_any_text_is_refused_in_the_same_words(presented: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        RING.verify(presented)
    assert str(caught.value) == "not allowed: missing or wrong key"


@pytest.mark.parametrize(
    "presented",
    ["", KEY.text + "\n", KEY.text + "=", " " + KEY.text, KEY.text.upper(), KEY.text[:-1], KEY.text * 2, KEY.record.key,
     KEY.record.digest, f"chorus_{KEY.record.key}_" + "A" * 43, f"chorus_{'0' * 12}_" + KEY.text[-43:], "x" * 10**6,
     "\ud800", "../" + KEY.text],
    ids=range(14),  # the key is another one in every process
)  # fmt: skip
def test_nearly_a_key_opens_nothing(presented: str) -> None:
    with pytest.raises(NotAllowed):
        RING.verify(presented)
