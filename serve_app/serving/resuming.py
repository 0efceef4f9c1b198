"""What lets a client that was cut off come back to its session: the token, and what gateways and engines say of it."""

import base64
import dataclasses
import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final, Self

from serve_app.errors import SessionGone

SECRET_BYTES: Final = 18
"""A multiple of three, so that base64 has no padding: 24 characters."""
GRACE_LIMIT_S: Final = 600.0
"""An engine keeps no slot longer, whatever a gateway asks."""

_TOKEN: Final = re.compile(r"([A-Za-z0-9_-]{1,64})\.([A-Za-z0-9_-]{24})")

Asked = tuple[tuple[str, str], ...]
"""A session's parameters as its query spelt them, in the order of their names."""


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """Good for one return. The secret is in no repr.

    Attributes:
        engine: that has the session; calls that show the token are sent there.
        secret: made by that engine, which keeps its digest alone.
    """

    engine: str
    secret: bytes = dataclasses.field(repr=False)

    @classmethod
    def fresh(cls, engine: str) -> Self:
        """A token that nobody has seen."""
        return cls(engine, secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def read(cls, text: str) -> Self:
        """What a client presents. Raises SessionGone, as for any token that opens nothing."""
        found = _TOKEN.fullmatch(text)
        if found is None:
            raise SessionGone
        return cls(found[1], base64.urlsafe_b64decode(found[2]))

    def text(self) -> str:
        """For its client's eyes only."""
        return f"{self.engine}.{base64.urlsafe_b64encode(self.secret).decode()}"

    @property
    def digest(self) -> bytes:
        """What may be kept of it. The engine's name is in it: there is one way to write a token."""
        return hashlib.sha256(self.engine.encode() + b"." + self.secret).digest()


@dataclasses.dataclass(frozen=True, slots=True)
class Keeping:
    """A new session's client can come back: its slot shall be kept.

    Attributes:
        grace_s: for how long.
        asked: what a client that comes back may repeat, and not change.
    """

    grace_s: float
    asked: Asked = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Returning:
    """A client that comes back.

    Attributes:
        tenant: whose credential it presented; None where there are no tenants.
        asked: parameters that its query repeats.
    """

    token: Token
    tenant: str | None = None
    asked: Asked = ()


@dataclasses.dataclass(frozen=True, slots=True)
class WayBack:
    """What a client is given to come back with.

    Attributes:
        grace_s: for so long after it is cut off.
    """

    token: Token
    grace_s: float

    def told(self) -> Mapping[str, Any]:
        """As its client hears it, once it is live."""
        return {"resume": {"token": self.token.text(), "grace_s": self.grace_s}}
