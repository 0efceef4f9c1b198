"""Why a session could not be opened, or why it ended before its time.

Each is a leaf of :mod:`serve_app.errors`, so that ``except CapacityError`` means "try again later" on this side too.
"""

from pathlib import Path

from serve_app.errors import CapacityError, ChorusError, Fault, NotAllowed, PeerError

__all__ = [
    "AudioFileError",
    "NotAllowed",
    "RequestRefused",
    "ServerFull",
    "ServerGone",
    "ServerUnreachable",
    "UnexpectedServer",
]

GOING_AWAY_CODES = frozenset({1001, 1006, 1012, 1013})


class ServerFull(CapacityError):
    """The server has no room for this session now (HTTP 503 or 429, or close code 1013).

    Attributes:
        why: the server's reason slug: ``full``, ``draining``, ``engine_lost``...
        message: the server's sentence for a person, possibly empty.
        retry_after_s: when it asks to be tried again; None when it did not say.
    """

    def __init__(self, why: str, message: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(why, message, retry_after_s)
        self.why, self.message, self.retry_after_s = why, message, retry_after_s

    def __str__(self) -> str:
        said = f"{self.why}: {self.message}" if self.message else self.why
        again = "" if self.retry_after_s is None else f"; try again in {self.retry_after_s:g} s"
        return f"the server takes no new session now ({said}){again}"


class ServerUnreachable(CapacityError):
    """Nobody answers at the address, or not in time."""

    reason = "unreachable"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url, self.why = url, why

    def __str__(self) -> str:
        return f"cannot reach {self.url}: {self.why}"


class RequestRefused(PeerError):
    """The server refuses what this session asks for, before the upgrade: a parameter, or the path.

    Attributes:
        status: the HTTP status.
        why: the server's reason slug.
        message: the server's sentence for a person.
    """

    reason = "refused"

    def __init__(self, status: int, why: str, message: str) -> None:
        super().__init__(status, why, message)
        self.status, self.why, self.message = status, why, message

    def __str__(self) -> str:
        return f"the server refuses the session (HTTP {self.status}, {self.why}): {self.message}"


class ServerGone(ChorusError):
    """The connection ended and it was not this side's wish.

    Attributes:
        code: WebSocket close code; 1006 when the connection broke without one.
        why: the close reason that came with it.
        said: the last error message (kind 5) before the end.
    """

    reason = "gone"
    fault = Fault.CAPACITY

    def __init__(self, code: int, why: str = "", said: str = "") -> None:
        super().__init__(code, why, said)
        self.code, self.why, self.said = code, why, said

    @property
    def worth_retrying(self) -> bool:
        """Whether the same session may be opened again at once or a little later."""
        return self.code in GOING_AWAY_CODES

    def __str__(self) -> str:
        told = "; ".join(part for part in (self.said, self.why) if part)
        return f"the server ended the session (close code {self.code})" + (f": {told}" if told else "")


class UnexpectedServer(ChorusError):
    """Whoever answered does not speak the protocol of `/api/chat`."""

    reason = "unexpected_server"

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url, self.why = url, why

    def __str__(self) -> str:
        return f"{self.url} does not speak the protocol of /api/chat: {self.why}"


class AudioFileError(ChorusError):
    """A sound file that cannot be read or written."""

    reason = "audio_file"
    fault = Fault.PEER

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"
