"""When somebody who was replaced goes, and how those who talk through it are told: pure, time injected."""

import asyncio
import math
from collections.abc import Callable
from typing import Final

from serve_app.errors import EngineDraining
from serve_app.serving.caller import Sleep, Tell
from serve_app.serving.term import WARNING_S

LOOK_S: Final = 0.5
NEWS_S: Final = 5.0
"""A date that comes forward by less is the same date, read from another clock."""
WHY: Final = "rollout"


class Departure:
    """How long one that was replaced still stays. Belongs to one event loop.

    Args:
        stays_s: from the word of it to its end.
        clock: monotonic seconds.
    """

    def __init__(self, stays_s: float, clock: Callable[[], float]) -> None:
        self._stays_s = max(0.0, stays_s)
        self._clock = clock
        self._ends_s = math.inf
        self._word = asyncio.Event()

    def begin(self) -> None:
        """It was replaced. Idempotent."""
        if not self._word.is_set():
            self._ends_s = self._clock() + self._stays_s
            self._word.set()

    async def begun(self) -> None:
        """Wait until it was replaced, which may be never."""
        await self._word.wait()

    @property
    def left_s(self) -> float | None:
        """How long it still stays; None where nobody replaces it."""
        return max(0.0, self._ends_s - self._clock()) if self._word.is_set() else None

    @property
    def since_s(self) -> float:
        """How long ago it was replaced; 0 before."""
        left_s = self.left_s
        return 0.0 if left_s is None else max(0.0, self._clock() - self._ends_s + self._stays_s)


async def mind_departure(
    left_s: Callable[[], float | None], tell: Tell, clock: Callable[[], float], sleep: Sleep
) -> None:
    """Tell a client once that what carries it goes, again where it goes sooner, and once more a minute before.

    Args:
        left_s: how long what carries it still stays; None while nothing goes.
        tell: sends metadata.

    Raises:
        EngineDraining: the time is up.
    """
    promised_s, warned = math.inf, False
    while True:
        left = left_s()
        if left is None:
            promised_s, warned = math.inf, False
        else:
            ends_s, last = clock() + left, left <= WARNING_S
            if ends_s < promised_s - NEWS_S or (last and not warned):
                await tell({"going_away": {"s": round(left), "why": WHY}})
                promised_s, warned = ends_s, last
            if left <= 0:
                raise EngineDraining
        await sleep(LOOK_S if left is None else min(LOOK_S, left))


def soonest(*left_s: float | None) -> float | None:
    """The first of several ends; None where there is none."""
    return min((left for left in left_s if left is not None), default=None)
