"""The way back to a session whose connection broke: the server's token, and when to try it."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from serve_app.client.address import with_parameter
from serve_app.client.failures import ServerGone

CUT_OFF_CODES: Final = frozenset({1001, 1006, 1012})
"""Ends of a connection that need not be the session's: it broke, or whoever held it went away."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
SPREAD: Final = 0.5
"""Clients of a gateway that died shall not come all at once: pauses are longer by up to this share."""
ATTEMPT_S: Final = 3.0
"""A proxy that has not noticed a death yet lets callers hang."""
MAX_GRACE_S: Final = 3_600.0


class WayBack:
    """Keeps the last token that the server gave. Belongs to one event loop.

    Args:
        sleep: seconds, as `asyncio.sleep`.
    """

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._token: str | None = None
        self._grace_s = 0.0

    def hears(self, value: object) -> bool:
        """Whether metadata was the server's word about coming back, which is nobody else's business."""
        match value:
            case {"resume": {"token": str(token), "grace_s": float() | int() as grace_s}}:
                self._token, self._grace_s = token, min(float(grace_s), MAX_GRACE_S)
                return True
        return False

    def leads_back(self, gone: ServerGone) -> bool:
        """Whether a session that ended like this may be kept for us."""
        return self._token is not None and gone.code in CUT_OFF_CODES

    async def attempts(self, address: str, given_up: Callable[[], bool]) -> AsyncIterator[tuple[str, float]]:
        """Where to connect and how long that may take, again and again, at once and then less and less often."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._grace_s
        pause_s = FIRST_PAUSE_S
        while self._token is not None and not given_up() and (left_s := until_s - loop.time()) > 0:
            yield with_parameter(address, "resume", self._token), min(left_s, ATTEMPT_S)
            await self._sleep(pause_s * (1.0 + SPREAD * random.random()))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
