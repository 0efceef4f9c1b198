"""Keys of tenants: 32 random bytes that are shown once; only a hash is kept.

SHA-256 without salt or stretching is enough for 256 random bits: there is nothing to guess and no two are alike.
A refusal never says which part was wrong, and nothing here holds a key in a field that prints.
"""

import base64
import dataclasses
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from serve_app.errors import NotAllowed

PREFIX: Final = "chorus"
KEY_BYTES: Final = 32
ID_BYTES: Final = 6
_KEY: Final = re.compile(rf"{PREFIX}_([0-9a-f]{{{2 * ID_BYTES}}})_([A-Za-z0-9_-]{{43}})")
_NOBODY: Final = "0" * 64

Randomness = Callable[[int], bytes]
"""Gives so many random bytes: `secrets.token_bytes`, or a test's own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is kept of a key.

    Attributes:
        key: its id, which is no secret: logs and `serve_app keys list` show it.
        tenant: whose it is.
        digest: SHA-256 of the whole key, hexadecimal.
        created_s, expires_s, revoked_s: Unix seconds; None is never.
    """

    key: str
    tenant: str
    digest: str = dataclasses.field(repr=False)
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None

    def valid(self, now_s: float) -> bool:
        """Whether it opens anything now. A revoked key is dead even if the clock goes back before its end."""
        return self.revoked_s is None and (self.expires_s is None or now_s < self.expires_s)


@dataclasses.dataclass(frozen=True, slots=True)
class NewKey:
    """A key on its way to its owner: the only object that knows the text."""

    record: KeyRecord
    text: str = dataclasses.field(repr=False)


def mint_key(tenant: str, random: Randomness, now_s: float, life_s: float | None = None) -> NewKey:
    """Make a key. The text is ``chorus_ID_SECRET``; it fits a header and a shell without quotes."""
    key = random(ID_BYTES).hex()
    secret = base64.urlsafe_b64encode(random(KEY_BYTES)).rstrip(b"=").decode()
    text = f"{PREFIX}_{key}_{secret}"
    expires_s = None if life_s is None else now_s + life_s
    record = KeyRecord(key=key, tenant=tenant, digest=digest_of(text), created_s=now_s, expires_s=expires_s)
    return NewKey(record, text)


def digest_of(text: str) -> str:
    """What is kept of a secret text."""
    return hashlib.sha256(text.encode()).hexdigest()


class KeyRing:
    """Every key as of one reading of the file. Immutable.

    Args:
        records: with ids that differ.
        wall: Unix seconds: expiry is a date.
    """

    def __init__(self, records: Iterable[KeyRecord], wall: Callable[[], float]) -> None:
        self._by_id: Mapping[str, KeyRecord] = {record.key: record for record in records}
        self._wall = wall

    def __iter__(self) -> Iterator[KeyRecord]:
        return iter(self._by_id.values())

    def verify(self, presented: str) -> KeyRecord:
        """Whose key that is.

        Raises:
            NotAllowed: missing, malformed, unknown, wrong, expired or revoked; does not say which.
        """
        match = _KEY.fullmatch(presented) if len(presented) <= 128 else None
        record = self._by_id.get(match[1]) if match else None
        # An unknown id costs the same hash and comparison as a wrong secret.
        digest = digest_of(presented) if match else _NOBODY
        same = hmac.compare_digest(digest, record.digest if record else _NOBODY)
        if record is None or match is None or not same or not record.valid(self._wall()):
            raise NotAllowed("missing or wrong key")
        return record

    def alive(self, key: str) -> bool:
        """Whether the key of that id is still valid: asked when a ticket comes back."""
        record = self._by_id.get(key)
        return record is not None and record.valid(self._wall())
