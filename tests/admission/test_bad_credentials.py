"""Five hundred ways to come in without the right: none is accepted, and no secret shows in a refusal or a log."""

import logging
import random
import secrets
import traceback
from collections.abc import Callable

import pytest

from serve_app.admission.credentials import KeyRecord, KeyRing, NewKey, mint_key
from serve_app.admission.gate import Gate
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.errors import Forbidden, NotAllowed
from tests.admission.clock import Clock

PAGE, EVIL = "https://acme.example", "https://evil.example"
CASES = 500
LETTERS = "ABCabc019-_=. /\\%\n\0é\ud800"


class House:
    """A gate with a good key, an expired one, a revoked one, and one whose tenant is gone."""

    def __init__(self) -> None:
        self.clock, self.wall = Clock(), Clock(1e6)
        self.good, self.expired, self.revoked, self.orphan = (
            mint_key(tenant, secrets.token_bytes, 0.0, life_s)
            for tenant, life_s in (("acme", None), ("acme", 60.0), ("acme", None), ("gone", None))
        )
        record = self.revoked.record
        dead = KeyRecord(key=record.key, tenant="acme", digest=record.digest, created_s=0.0, revoked_s=1.0)
        records = [self.good.record, self.expired.record, dead, self.orphan.record]
        tenants = Tenants([Tenant(name="acme", origins=frozenset({PAGE}))])
        self.gate = Gate(tenants, KeyRing(records, self.wall), self.clock, secrets.token_bytes)

    @property
    def keys(self) -> list[NewKey]:
        return [self.good, self.expired, self.revoked, self.orphan]


def mangled(text: str, chance: random.Random) -> str:
    place = chance.randrange(len(text))
    kinds: list[Callable[[], str]] = [
        lambda: text[:place] + chance.choice(LETTERS) + text[place:],
        lambda: text[:place] + text[place + 1 :],
        lambda: text[:place],
        lambda: text + chance.choice(LETTERS),
        text.swapcase,
        lambda: text[::-1],
        lambda: "../" + text,
        lambda: text * chance.randrange(2, 50),
        lambda: "",
        lambda: secrets.token_urlsafe(32),
    ]
    return chance.choice(kinds)()


def attempt(house: House, chance: random.Random) -> tuple[Callable[[], object], list[str]]:
    """One way in, and the secrets that it knows."""
    gate, good = house.gate, house.good.text
    ticket = gate.ticket(good, PAGE).text
    match chance.randrange(9):
        case 0:
            return lambda: gate.by_key(mangled(good, chance)), [good]
        case 1:
            dead = chance.choice([house.expired, house.revoked, house.orphan]).text
            return lambda: gate.by_key(dead), [dead]
        case 2:
            return lambda: gate.by_key(
                good, chance.choice([EVIL, "null", "", PAGE + ".evil", "http://acme.example"])
            ), [good]
        case 3:
            return lambda: gate.by_ticket(mangled(ticket, chance), PAGE), [ticket]
        case 4:
            gate.by_ticket(ticket, PAGE)
            return lambda: gate.by_ticket(ticket, PAGE), [ticket]
        case 5:
            house.clock.now_s += 30.0
            return lambda: gate.by_ticket(ticket, PAGE), [ticket]
        case 6:
            return lambda: gate.by_ticket(ticket, chance.choice([EVIL, None, "null", PAGE + "/x"])), [ticket]
        case 7:
            return lambda: gate.by_ticket(good, PAGE), [good]
        case _:
            mixed = house.good.text[:20] + chance.choice([house.expired, house.orphan]).text[20:]
            return lambda: gate.ticket(mixed, PAGE), [good, mixed]


def test_five_hundred_wrong_ways_in_lead_nowhere_and_leave_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    chance, house = random.Random(1), House()
    caplog.set_level(logging.DEBUG)
    for _ in range(CASES):
        enter, known = attempt(house, chance)
        with pytest.raises((NotAllowed, Forbidden)) as caught:
            enter()
        shown = "".join(traceback.format_exception_only(caught.value)) + repr(caught.value) + caplog.text
        assert not [secret for secret in known if secret[-24:] in shown]
    for key in house.keys:
        assert key.text.split("_", 2)[2] not in repr(house.gate) + repr(key) + repr(key.record)
    assert house.gate.by_key(house.good.text).name == "acme"
