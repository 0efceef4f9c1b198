"""How long a session may last: a word a minute before, then a clean close."""

from typing import Final, Protocol

from serve_app.errors import SessionOver
from serve_app.serving.caller import Sleep, Tell

WARNING_S: Final = 60.0
"""So long before its end a session is told."""


class Lasting(Protocol):
    """What has a term."""

    @property
    def longest_s(self) -> float:
        """How long it may last; known once it lives."""
        ...

    @property
    def left_s(self) -> float:
        """How long it may last yet, from when its time begins here."""
        ...

    async def live(self) -> None:
        """Wait until its time begins."""
        ...


async def mind_term(session: Lasting, tell: Tell, sleep: Sleep) -> None:
    """Live as long as the session may. A session that may last less than the warning is told at once.

    Raises:
        SessionOver: its time is up.
    """
    await session.live()
    left_s = session.left_s
    warning_s = min(WARNING_S, left_s)
    await sleep(left_s - warning_s)
    await tell({"session": {"ends_in_s": round(warning_s)}})
    await sleep(warning_s)
    raise SessionOver(session.longest_s)
