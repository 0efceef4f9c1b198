"""Who may open a conversation: where the page came from, and the key that the client presents.

A page of somebody else may not talk to a server on the visitor's machine: browsers send Origin, and it is checked.
Without a key we also answer to loopback names only, so that a foreign name which resolves to 127.0.0.1 opens nothing.
"""

import hmac
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from serve_app.config import is_loopback
from serve_app.errors import NotAllowed

KEY_PARAMETERS: Final = ("auth_id", "worker_auth_id")
"""As Kyutai's clients spell it: browsers cannot set a header on a WebSocket. Headers come first: URLs get logged."""


class Door:
    """Checks one request before anything is done for it.

    Args:
        key: what clients must present; None asks for nothing and answers to loopback names only.
        origins: web origins that are welcome besides the server's own and loopback.
    """

    def __init__(self, key: str | None, origins: Sequence[str] = ()) -> None:
        self._key = key.encode() if key is not None else None
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    def admit(self, headers: Mapping[str, str], query: Mapping[str, str]) -> None:
        """Let the request pass.

        Raises:
            NotAllowed: foreign host or origin, missing or wrong key. Never says what was presented.
        """
        host = _host_of(headers.get("host", ""))
        if self._key is None and not is_loopback(host):
            raise NotAllowed("without a key this server answers to localhost only")
        origin = headers.get("origin")
        if origin is not None and not self._welcome(origin, headers.get("host", "")):
            raise NotAllowed("a page of another origin")
        if self._key is not None and not hmac.compare_digest(self._key, _presented(headers, query).encode()):
            raise NotAllowed("missing or wrong key")

    def _welcome(self, origin: str, own_host: str) -> bool:
        if origin.rstrip("/").lower() in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname
        except ValueError:
            return False
        if name is None or parts.scheme not in ("http", "https"):
            return False
        return parts.netloc.lower() == own_host.lower() or is_loopback(name)


def _presented(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credential:
        return credential.strip()
    if "kyutai-api-key" in headers:
        return headers["kyutai-api-key"]
    return next((query[name] for name in KEY_PARAMETERS if name in query), "")


def _host_of(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
